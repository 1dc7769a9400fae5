"""Every ``dm-*`` command explains itself, and is run for real by some test."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import psutil
import pytest
from click.testing import CliRunner

from dm.deploy import components
from tests.live import PROGRAMS, Suite

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SERVICES = [name for name in SCRIPTS if name.endswith("-service")]
INSTALLED = {point.name: point for point in entry_points(group="console_scripts") if point.name in SCRIPTS}
ALIASES = {
    "dm-create-experiment": "dm-add-experiment",
    "dm-get-experiment-files": "dm-list-experiment-files",
    "dm-abort-processing-job": "dm-stop-processing-job",
}


def described(name: str, command: click.Command) -> Iterator[tuple[list[str], click.Command]]:
    """Yield a command with the words that lead to it, and those below it."""
    yield [name], command
    if isinstance(command, click.Group):
        for inner, below in command.commands.items():
            yield [name, inner], below


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in SERVICES])
def test_help(name: str) -> None:
    main = INSTALLED[name].load()
    assert isinstance(main, click.Command)
    for (first, *words), command in described(ALIASES.get(name, name), main):
        result = CliRunner().invoke(main, [*words, "--help"], prog_name=first, terminal_width=1000)
        shown = " ".join(result.output.split())
        assert result.exit_code == 0, shown
        assert shown.startswith(f"Usage: {' '.join([first, *words])} ")
        assert command.help and " ".join(command.help.split("\n\n")[0].split()) in shown
        for parameter in command.params:
            wanted = parameter.opts if isinstance(parameter, click.Option) and not parameter.hidden else []
            assert all(option in shown for option in wanted), f"{name} is silent about {wanted}"
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{name} does not explain {parameter.opts[0]}"


@pytest.mark.parametrize("name", SERVICES)
def test_help_of_a_service(name: str) -> None:
    done = subprocess.run([PROGRAMS / name, "--help"], capture_output=True, text=True, check=True, env={})
    assert done.stdout.startswith(f"usage: {name} ") and "--config" in done.stdout and "--foreground" in done.stdout


def test_all_are_installed() -> None:
    assert {name: point.value for name, point in INSTALLED.items()} == SCRIPTS, "install the package again"
    missing = [name for name in SCRIPTS if not os.access(PROGRAMS / name, os.X_OK)]
    assert not missing


def test_the_service_commands_run(suite: Suite) -> None:
    """They are what the running suite consists of."""
    running = set()
    for part in components.chosen("all", suite.installed.layout.settings):
        pid = part.pid_file.alive()
        assert pid is not None, f"{part.name} is down"
        running |= {Path(word).name for word in psutil.Process(pid).cmdline()}
    assert set(SERVICES) <= running


def words_of(source: str) -> set[str]:
    """Return the texts of a test's source that stand in calls, lists and tuples, as words of command lines do.

    A formatted text (``f"dm-add-{what}"``) stands for what it makes of the other texts of the same source.
    """
    texts, patterns = set(), []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Call):
            parts = node.args
        elif isinstance(node, ast.List | ast.Tuple):
            parts = node.elts
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):  # below a directory of programs
            parts = [node.right]
        elif isinstance(node, ast.Assign):
            parts = [node.value]
        for part in parts:
            for inner in (part.body, part.orelse) if isinstance(part, ast.IfExp) else (part,):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    texts.add(inner.value)
                elif isinstance(inner, ast.JoinedStr):
                    literals = [piece.value if isinstance(piece, ast.Constant) else None for piece in inner.values]
                    patterns.append("".join("(.+)" if text is None else re.escape(str(text)) for text in literals))
    made = {
        name
        for name, pattern in itertools.product(SCRIPTS, patterns)
        if pattern.startswith("dm") and (match := re.fullmatch(pattern, name)) and texts.issuperset(match.groups())
    }
    return texts | made


def test_every_command_is_run_by_a_test() -> None:
    sources = itertools.chain.from_iterable(
        sorted((ROOT / "tests" / kind).glob("test_*.py")) for kind in ("system", "service", "faults", "clients")
    )
    words = set().union(*(words_of(path.read_text()) for path in sources))
    missing = sorted(set(SCRIPTS) - set(SERVICES) - words)
    assert not missing, f"no test runs {', '.join(missing)}"
