"""Variables in commands: every shell, every quoting, hostile values; nothing is ever executed but the template."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

from dm.common.errors import InvalidArgument
from dm.station.processing.substitution import interpreted, prologue, script, shown

SHELLS = [shell for shell in ("/bin/sh", "/bin/dash", "/bin/bash") if shutil.which(shell)]
ALL_BYTES = bytes(range(1, 256)).decode("utf-8", "surrogateescape")
HOSTILE = [
    "; touch canary",
    "$(touch canary)",
    "`touch canary`",
    "a\nb; touch canary\n#",
    "--flag",
    "-n",
    "'; touch canary; '",
    '"; touch canary; "',
    "$other",
    "${other}",
    "\\",
    "a\\'",
    "*",
    "|| touch canary",
    "${IFS}touch${IFS}canary",
    "'\"'\"'",
    "> canary",
    "%s%n",
    "!!",
    "~root",
    "a  b",
    "\t x ",
    "",
    "}",
    "EOF\ntouch canary\nEOF",
    "ünï-日本",
    ALL_BYTES,
]
# template -> what it prints for a value
TEMPLATES = {
    'printf "[%s]" "$x"': "[{}]",
    "printf '[%s]' '$x'": "[{}]",
    'printf "[%s]" "a${x}b"': "[a{}b]",
    "printf '[%s]' 'before $x after'": "[before {} after]",
    'printf "[%s]" "`printf %s "$x"`"': "[{}]",
    'printf "[%s]" "$(printf %s "$x")"': "[{}]",
    "printf '[%s]' \"$(printf %s '$x')\"": "[{}]",
    'printf "[%s]" $filePath': "[{}]",
    "printf '[%s]' \"`printf %s $filePath`\"": "[{}]",
    "printf '[%s]' \"`printf %s '$filePath'`\"": "[{}]",
    "cat <<EOF\n[$x]\nEOF": "[{}]\n",
    "cat <<-'A B'\n\t[z]\n\tA B\nprintf %s \"$x\"": "[z]\n{}",
    "printf '[%s]' \"it's $x\" # don't '$x'\nprintf %s '$x'": "[it's {}]{}",
    "case a in a) printf %s '$x';; esac": "{}",
    "y=$(case a in (a) printf q;; esac); printf %s '$x'": "{}",
    'printf %s "$((1 + 2))$x"': "3{}",
    'y="$x"; printf %s "$y"': "{}",
    "for y in $filePath; do printf '[%s]' \"$y\"; done": "[{}]",
    "bash_is_not_here=1; [ \"$x\" = '$x' ] && printf %s '$x'": "{}",
}


def run(directory: Path, shell: str, command: str, head: str = "", **variables: str) -> str:
    file = directory / "script"
    file.write_bytes(script(command, variables, head))
    done = subprocess.run([shell, str(file)], capture_output=True, cwd=directory, timeout=30, check=False, env={})
    return done.stdout.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("command", TEMPLATES)
def test_values_arrive_as_they_are(shell: str, command: str, tmp_path: Path) -> None:
    for value in HOSTILE:
        printed = run(tmp_path, shell, command, x=value, filePath=value, other="OTHER")
        assert printed == TEMPLATES[command].replace("{}", value), (command, value)
    assert [path.name for path in tmp_path.iterdir()] == ["script"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_splits_an_unquoted_value_into_words(shell: str, tmp_path: Path) -> None:
    command = "set -- $args; echo $#; printf '<%s>' \"$@\""
    assert run(tmp_path, shell, command, args="--gpu 1  --name x") == "4\n<--gpu><1><--name><x>"


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_not_a_known_variable_is_left_to_the_shell(shell: str, tmp_path: Path) -> None:
    assert run(tmp_path, shell, 'printf "[%s]" "$unset" "${unset:-default}"', x="v") == "[][default]"
    assert run(tmp_path, shell, "echo a b | awk '{print $2}'", x="v") == "b\n"
    assert run(tmp_path, shell, 'set -- one; echo "$1" \\$x "\\$x"', x="v") == "one $x $x\n"
    assert run(tmp_path, shell, '[ "$$x" != v ] && echo pid', x="v") == "pid\n"
    assert run(tmp_path, shell, 'echo "${x:-default}" "${e:-default}" "${x#v}"', x="v", e="") == "v default \n"
    assert run(tmp_path, shell, "for x2 in 1 2; do echo $x2 $x2$x; done", x="v") == "1 1v\n2 2v\n"


def test_variables_of_the_environment_do_not_reach_children_but_ours_do(tmp_path: Path) -> None:
    head = prologue({"DM_STATION_NAME": "25ID'C"}, ["/nowhere", str(tmp_path)], None, True)
    hostile = {"PATH": "/evil", "LD_PRELOAD": "/evil.so", "IFS": "/", "x": "v"}
    command = (
        'echo "$PATH $LD_PRELOAD $IFS $x"; env | sort | grep -v -e ^_= -e ^PWD= -e ^OLDPWD= -e ^SHLVL=; umask; pwd'
    )
    printed = run(tmp_path, "/bin/sh", command, head, **hostile)
    assert printed.splitlines() == ["/evil /evil.so / v", "DM_STATION_NAME=25ID'C", "0027", str(tmp_path)]


def test_a_working_directory_that_cannot_be_entered_stops_the_script(tmp_path: Path) -> None:
    head = prologue({}, ["/"], str(tmp_path / "no'where"), False)
    assert run(tmp_path, "/bin/sh", "echo reached", head) == ""


def test_a_value_of_a_megabyte(tmp_path: Path) -> None:
    assert run(tmp_path, "/bin/sh", 'printf %s "$x" | wc -c', x="a'" * (1 << 19)).strip() == str(1 << 20)


@pytest.mark.parametrize("value", ["a\0b", "x" * (5 << 20), "\ud800"])
def test_values_no_shell_can_hold_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgument, match="'x'"):
        script('echo "$x"', {"x": value})


def test_a_quoted_here_document_with_a_variable_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="here-document"):
        script("cat <<'E'\n$x\nE\n", {"x": "1"})


@pytest.mark.parametrize(
    ("command", "risky"),
    [
        ('ssh host "cd $x"', True),
        ('/usr/bin/ssh -t host cat "$x"', True),
        ('eval "$x"', True),
        ('bash -c "echo $x"', True),
        ("bash -lc 'echo $x'", True),
        ("find . -exec sh -c 'echo $x' \\;", True),
        ("su -l other -c 'echo $x'", True),
        ("awk '{print \"$x\"}'", True),
        ('sed -e "s/a/$x/" file', True),
        ("python3 -c \"print('$x')\"", True),
        ('echo "$x" | bash', True),
        ("sh <<EOF\n$x\nEOF", True),
        ("qsub -q all <<EOF\nrun $x\nEOF", True),
        ('bash -c \'tool "$1"\' tool "$x"', False),
        ("awk '{print $1}' \"$x\"", False),
        ('bash run.sh "$x"', False),
        ('echo "$x" | bash run.sh', False),
        ('grep -c "$x" file', False),
        ("echo '$x' \"`cat $x`\"", False),
    ],
)
def test_only_plain_values_reach_a_second_interpreter(command: str, risky: bool) -> None:
    assert interpreted(command, {"x": "plain-value_1.2,a/b c=d:e@f+g~"}) is None
    for value in ("a;b", "$(id)", "`id`", "a'b", 'a"b', "a\nb", "a|b", "(a)"):
        assert (interpreted(command, {"x": value}) == "x") is risky, value
    if risky:
        with pytest.raises(InvalidArgument, match="second shell"):
            script(command, {"x": "$(id)"})


def test_what_people_see_is_the_command_with_the_values_in_place() -> None:
    assert shown("a '$x' ${x}y ${x:-z} \\$x $z $$", {"x": "V;1"}) == "a 'V;1' V;1y ${x:-z} \\$x $z $$"
    assert len(shown("$x" * 100, {"x": "y" * 1000}, 500)) < 600


def test_any_command_can_be_read() -> None:
    pieces = ["$x", "'", '"', "`", "$(", ")", "\\", "<<E\n", "<<'E'\n", "#", "\n", "${x", "}", "$((", "a"]
    for parts in itertools.product(pieces, repeat=3):
        command = "".join(parts)
        assert shown(command, {"x": "V"}) is not None
        try:
            text = script(command, {"x": "; touch canary"})
        except InvalidArgument:
            continue
        assert b"touch canary" not in text.partition(b"\n")[2]  # only in the quoted assignment of the first line
