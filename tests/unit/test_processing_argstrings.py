"""Argument strings: quotes in a captured value mean what they mean when the text is pasted, and nothing more."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dm.common.errors import InvalidArgument
from dm.station.processing import argstrings
from dm.station.processing.substitution import interpreted, script

SHELLS = [shell for shell in ("/bin/dash", "/bin/bash") if shutil.which(shell)]
FITTED = r"-s sqmap -i -1 -dq \"1, 2, 5-7\" -t Both -v"
PIECES = ["a", "-b", " ", "  ", '"', "'", '\\"', "\\'", "1, 2", "=", "é"]


def ran(shell: str, text: bytes, directory: Path) -> bytes:
    done = subprocess.run(
        [shell], input=text, capture_output=True, cwd=directory, env={"PATH": "/usr/bin:/bin"}, check=False, timeout=30
    )
    return done.stdout


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A program called ssh that does what a remote shell does: read all words after the host as one command."""
    program = tmp_path / "ssh"
    program.write_text('#!/bin/sh\nshift\nexec /bin/sh -c "$*"\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "command",
    [
        "{ssh} host \"printf '<%s>' $args\"",
        "{ssh} host printf '\"<%s>\"' $args",
        "/bin/sh -c \"printf '<%s>' $args\"",
        "eval \"printf '<%s>' $args\"",
        "eval printf '\"<%s>\"' $args",
    ],
)
def test_a_second_shell_reads_an_argument_string_as_when_it_is_pasted(
    shell: str, command: str, remote: Path, tmp_path: Path
) -> None:
    command = command.replace("{ssh}", str(remote))
    wanted = "<-s><sqmap><-i><-1><-dq><1, 2, 5-7><-t><Both><-v>"
    assert ran(shell, command.replace("$args", FITTED).encode(), tmp_path).decode() == wanted
    assert interpreted(command, {"args": FITTED}) is None
    assert ran(shell, script(command, {"args": FITTED}), tmp_path).decode() == wanted


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ('ssh host "tool $args"', r"\"a; touch canary\""),
        ('ssh host "tool $args"', r"\"a"),
        ('ssh host "tool $args"', r"\"$(id)\""),
        ('ssh host "tool $args"', '"a b"'),
        ("ssh host 'tool $args'", r"\"a b\""),
        ('python3 -c "print($args)"', r"\"a\""),
        ('echo "$args" | python3', r"\"a\""),
        ('ssh host "tool $filePath"', r"a\"b\".h5"),
        ('awk "{print $args}"', r"\"a\""),
    ],
)
def test_all_else_stays_refused(command: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match="second shell"):
        script(command, {"args": value, "filePath": value})


@pytest.mark.parametrize("shell", SHELLS)
def test_quotes_group_the_words_of_an_unquoted_value(shell: str, tmp_path: Path) -> None:
    show = "printf '<%s>' "
    for value, wanted in (
        ('-dq "1, 2" -v', "<-dq><1, 2><-v>"),
        ("a'b c'd ''", "<ab cd><>"),
        (FITTED, '<-s><sqmap><-i><-1><-dq><"1,><2,><5-7"><-t><Both><-v>'),
        ("it's", "<it's>"),
        ('a; "b c"', '<a;><"b><c">'),
        ('{"a":1}', '<{"a":1}>'),
        ("$(id) 'b c'", "<$(id)><'b><c'>"),
    ):
        assert ran(shell, script(f"{show} $x", {"x": value}), tmp_path).decode() == wanted, value
        assert ran(shell, script(f'{show} "$x"', {"x": value}), tmp_path).decode() == f"<{value}>"
        assert ran(shell, script(f'y=$x; {show} "$y"', {"x": value}), tmp_path).decode() == f"<{value}>"
        assert ran(shell, script(f"{show} $filePath", {"filePath": value}), tmp_path).decode() == f"<{value}>"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_grouping_is_what_the_shell_does_with_pasted_text(tmp_path: Path, value: str) -> None:
    if argstrings.words(value) is None:
        return
    command = "printf '<%s>' . $x"
    pasted = command.replace("$x", value).encode()
    assert ran("/bin/sh", script(command, {"x": value}), tmp_path) == ran("/bin/sh", pasted, tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet="ab \\\"'$`;|&()<>\n*~=-,#", max_size=30))
def test_no_value_becomes_syntax(value: str) -> None:
    """Whatever a value holds: what is read as a word has no sign of the shell's but those it had as data."""
    words = argstrings.words(value)
    if words is not None:
        assert not set(value) & set("$`;|&()<>\n*#")
    other = argstrings.for_remote(value)
    if other is not None:
        assert not set(other) & set("\\'$`;|&()<>\n*#") and other.count('"') % 2 == 0


@pytest.mark.timeout(20)
@pytest.mark.parametrize("value", ['"a"' * 350_000, '"a' * 500_000, '\\"' * 500_000, "a " * 500_000 + '"'])
def test_long_values_take_no_time(value: str) -> None:
    text = script('tool $x "$x" $x', {"x": value})
    assert text.count(value.encode()) == 1
    with pytest.raises(InvalidArgument, match="second shell"):
        script('ssh host "tool $x"', {"x": value})


def test_a_command_does_not_grow_without_bound() -> None:
    with pytest.raises(InvalidArgument, match="'x' make the command longer"):
        script("tool " + "$x " * 50_000, {"x": "'a' " * 4_000})
