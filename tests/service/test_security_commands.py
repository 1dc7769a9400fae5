"""Hostile values in stage commands, run by the shells that ``sh`` may be: none of them runs a command of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dm.common.errors import InvalidArgument
from dm.station.processing.substitution import script

CANARY = "canary"
VALUES = [
    f"; touch {CANARY}",
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"\ntouch {CANARY}\n",
    f"'; touch {CANARY}; '",
    f'"; touch {CANARY}; "',
    f'\\"; touch {CANARY}',
    f"EOF\ntouch {CANARY}\n",
    f"a[$(touch {CANARY})]",
    f"a[`touch {CANARY}`]",
    f'"); __import__("os").system("touch {CANARY}"); ("',
    f'"; system("touch {CANARY}"); "',
    "-rf",
]
FIRST_SHELL = [
    "echo $x",
    'echo "$x"',
    "echo '$x'",
    "cat <<EOF\n$x\nEOF",
    'echo $(echo "$x")',
    "echo `echo $x`",
    '[ "$x" = 1 ]',
]
ARITHMETIC = [
    "echo $((1+$x))",
    "n=$x; echo $((n + 1))",
    "echo $[ $x + 1 ]",
    "[[ $x -eq 1 ]]",
    "(( x = $x ))",
    'let "y=$x"',
    'declare -i n="$x"',
    "a[$x]=1",
    "echo ${a[$x]}",
    '[ -v "$x" ]',
    'printf -v "$x" 1',
    'read "$x" <<< 1',
]
SECOND_SHELL = [
    'sh \\\n -c "echo $x"',
    '"sh" -c "echo $x"',
    'SH=sh; $SH -c "echo $x"',
    '"eval" "echo $x"',
    '\\eval "echo $x"',
    'trap "echo $x" EXIT; true',
    'echo "$x" | xargs -I{} sh -c "echo {}"',
    'echo "$x" | xargs -0 bash -c',
    ". /dev/stdin <<EOF\n$x\nEOF",
    "source <(echo $x)",
    'bash <(echo "$x")',
    "tee >(sh) <<EOF\n$x\nEOF",
    "make -f - <<EOF\na:\n\techo $x\nEOF",
    'python3 <<EOF\nprint("$x")\nEOF',
    'python3 - <<EOF\nprint("$x")\nEOF',
    "echo 'print(\"'$x'\")' | python3",
    'perl <<EOF\nprint "$x";\nEOF',
]


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("command", [*FIRST_SHELL, *ARITHMETIC, *SECOND_SHELL])
def test_no_value_becomes_a_command(shell: str, command: str, tmp_path: Path) -> None:
    """It is passed as data or refused."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    for value in VALUES:
        try:
            text = script(command, {"x": value, "filePath": "/dev/null"})
        except InvalidArgument:
            continue
        (tmp_path / "script").write_bytes(text)
        subprocess.run(
            [program, "script"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
        assert not (tmp_path / CANARY).exists(), f"{value!r} ran"


@pytest.mark.parametrize(
    "command",
    [
        'tool "$filePath"',
        '[[ -f "$filePath" ]] && tool "$filePath"',
        'bash -c \'tool "$1"\' tool "$filePath"',
        "cat > parameters <<EOF\n$filePath\nEOF",
        'printf "%s\\n" "$filePath" | sort',
        "trap 'rm -f scratch' EXIT; tool $filePath",
        'python3 script.py "$filePath"',
        'xargs -n1 tool "$filePath" < list',
    ],
)
def test_odd_file_names_stay_usable(command: str) -> None:
    """What is data to every program in the command may hold any character."""
    assert script(command, {"filePath": "/data/a $(b) `c` ; 'd' \"e\".h5"})


@pytest.mark.parametrize("command", ["echo $(($x + 1))", 'sh \\\n -c "tool $x"', 'python3 <<EOF\nprint("$x")\nEOF'])
def test_plain_values_pass_everywhere(command: str) -> None:
    assert script(command, {"x": "scan_0001/a-b.h5"})
