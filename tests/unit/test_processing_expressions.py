"""Conditions: their meaning, and what they cannot be made to do."""

from __future__ import annotations

import pytest

from dm.common.errors import InvalidArgument
from dm.station.processing import expressions


def holds(text: str, **variables: object) -> bool:
    return expressions.evaluate(text, variables, "runIf")


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ('"$machine" == "polaris"', {"machine": "polaris"}, True),
        ("'$machine' != 'polaris'", {"machine": "polaris"}, False),
        ('"${machine}-1" == "polaris-1"', {"machine": "polaris"}, True),
        ('"$demand" in ["True", "true"]', {"demand": True}, True),
        ('not ("$a" == "1" and ("$b" == "2" or "$b" == "3"))', {"a": "1", "b": "3"}, False),
        ("$count >= $wanted", {"count": "10", "wanted": "9"}, True),
        ('"$count" >= "$wanted"', {"count": "10", "wanted": "9"}, False),
        ("$n * 2 + 1 == 7 and -$n < 0", {"n": 3}, True),
        ('"h5" in "$filePath"', {"filePath": "/a b/x.h5"}, True),
        ('"$a".lower().endswith("x")', {"a": "ABX"}, True),
        ("int('$a') > 5 and len('$a') == 1", {"a": "7"}, True),
        ('"yes" if $flag else ""', {"flag": "False"}, False),
        ("1 < $n < 3", {"n": "2"}, True),
        ("True", {}, True),
        # values are data, whatever they hold
        ('"$a" == "x"', {"a": '" or "1" == "1'}, False),
        ('"$a" == "$b"', {"a": "$b", "b": "$b"}, True),
        ("$a == 'x'", {"a": "__import__('os')"}, False),
        # a name that is not set never matches a real value, and is not empty
        ('"$unset" == ""', {}, False),
        ('"$unset" == "unset"', {}, False),
        ('"unset" in "$unset"', {}, False),
        ('"$unset" != "a"', {}, True),
        ("$unset == None", {}, False),
        ("$unset in ['a', '']", {}, False),
        ("$unset != 5", {}, True),
        ("$unset", {}, False),
        ("not $unset", {}, True),
    ],
)
def test_meaning(text: str, variables: dict[str, object], expected: bool) -> None:
    assert holds(text, **variables) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "$a ==",
        "polaris == 1",
        "__import__('os').system('id')",
        "$a.__class__",
        "'a'.__class__.__mro__",
        "'{0.__class__}'.format(1)",
        "'a'.replace('a', 'b')",
        "[x for x in 'ab']",
        "lambda: 1",
        "9 ** 9",
        "1 << 99",
        "'a'[0]",
        "f'{1}'",
        "(yield)",
        "(a := 1)",
        "open('/etc/passwd')",
        "int(*[1])",
        "int(x=1)",
        "(" * 300 + ")" * 300,
        "-" * 9000 + "1",
        "1+" * 4000 + "1",
        "'" + "a" * 20_000 + "'",
        "b'a'",
        "...",
    ],
)
def test_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(InvalidArgument, match="runIf"):
        expressions.check(text, "runIf")


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ('"a" < 5', {}),
        ("$a < 5", {"a": "x"}),
        ("int('$a') == 1", {"a": "x"}),
        ("1 / $z", {"z": "0"}),
        ("$a + $a", {"a": [1]}),
        ("5 .lower()", {}),
    ],
)
def test_what_cannot_be_evaluated_says_so(text: str, variables: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="cannot be evaluated"):
        holds(text, **variables)


@pytest.mark.timeout(30)
def test_numbers_and_texts_cannot_grow_without_bound() -> None:
    with pytest.raises(InvalidArgument, match="too large"):
        holds("*".join(["$n"] * 40), n="9" * 39)
    with pytest.raises(InvalidArgument, match="too long"):
        holds("+".join(['"$n"'] * 40), n="x" * 1_000_000)
    assert holds('"b" in "$n"', n="a" * 1_000_000 + "b")


def test_names() -> None:
    assert expressions.names('"$a" == "${b}" and $c') == {"a", "b", "c"}
