"""Spec files as people write them, and as nobody should: long joins, odd line ends, sizes and depths."""

from __future__ import annotations

from typing import Any

import pytest

from dm.common.errors import InvalidArgument
from dm.station.processing import literals


def command(expression: str, before: str = "") -> Any:
    return literals.read_python(f"{before}{{'command': {expression}}}")["command"]


def test_joins_of_any_length_are_read() -> None:
    assert command(" + ".join(["'ab '"] * 10_000)) == "ab " * 10_000
    assert command(" + \\\n      ".join(["'ab '"] * 10_000)) == "ab " * 10_000
    assert command("(" + "\n".join(["'ab '  # a comment"] * 10_000) + "\n)") == "ab " * 10_000


@pytest.mark.parametrize("end", ["\n", "\r\n", " \\\n", "  # a '+' in a comment\n", " \f\n"])
def test_joins_go_on_over_all_kinds_of_line_ends(end: str) -> None:
    joined = command(f"'a' +{end}" * 300 + "\"b\" 'c' + '''d\n+ e''' + 'f'")
    assert joined == "a" * 300 + "bcd\n+ ef"


def test_names_and_strings_are_joined_in_their_order() -> None:
    expression = "A + '/run.sh ' + \\\n '\"$x\" ' + B + ' + ' + '\\'+\\'' + A" + " + 'z'" * 200
    assert command(expression, "A = '/opt'\nB = A + '/etc' + '\u2028'\n") == (
        "/opt/run.sh \"$x\" /opt/etc\u2028 + '+'/opt" + "z" * 200
    )


def test_lines_are_named_rightly_although_joins_were_rewritten() -> None:
    with pytest.raises(InvalidArgument, match="line 303: 'x\\(\\)' is not a plain value"):
        command("'a' +\n" * 300 + "'b',\n'c':\n 'd' + x()")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("'a %s' % 'x'", "not a plain value"),
        ("'a {}'.format('x')", "not a plain value"),
        ("f'a'", "not a plain value"),
        ("'a' + f'b'" + " + 'c'" * 200, "not a plain value"),
        ("'a' * 3 + 'b'" + " + 'c'" * 200, "not a plain value"),
        ("'a' + b'b'" + " + 'c'" * 200, "cannot mix bytes"),
        ("'a' + 1" + " + 'c'" * 200, "joins texts only"),
        ("'a' + " * 200, "line 1"),
        ("+" * 1_000_000, "words and signs"),
        ("'a'+" * 200_000 + "'a'", "words and signs"),
        ("a" + ".a" * 100_000, "nests too deeply"),
        ("a" + "()" * 100_000, "nests too deeply"),
        ("not " * 20_000 + "1", "nests too deeply"),
        ("(" * 250 + "1" + ")" * 250, "nested parentheses"),
    ],
)
def test_what_is_not_plain_is_refused_soon(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as refused:
        command(text)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("text", ['{"a": 1, // no\n"b": 2}', '# no\n{"a": 1}', '{"a": 1,}', "{'a': 1}"])
def test_json_has_no_comments(text: str) -> None:
    with pytest.raises(InvalidArgument, match="line 1"):
        literals.read_json(text)
