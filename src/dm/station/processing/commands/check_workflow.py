"""``dm-check-workflow``"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dm.common.command import command
from dm.common.errors import InvalidArgument
from dm.common.records import DmObject
from dm.station.processing.commands.workflow_options import read_spec, spec_options


@command("dm-check-workflow")
@spec_options
def main(py_spec: Path | None, json_spec: Path | None) -> list[DmObject]:
    """Check a specification file without a service: print all that is wrong with it.

    Of a file that is in order it prints the stages as they will run: what each waits for, and which arguments it uses.
    The shell reads the commands to find errors in their syntax; nothing is executed.
    """
    from dm.station.processing import overview, specs

    spec: dict[str, Any] = read_spec(py_spec, json_spec)
    problems = specs.problems(spec, "owner")
    workflow = {} if problems else specs.checked(spec, "owner")
    problems += _unreadable(workflow.get("stages", {}))
    for problem in problems:
        click.echo(problem)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InvalidArgument(f"File {str(py_spec or json_spec)!r} has {count}.")
    return [DmObject(stage) for stage in overview.stages(workflow)]


def _unreadable(stages: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each command that is no shell text; the shell only reads it (``-n``)."""
    for name, stage in stages.items():
        text = stage["command"].encode("utf-8", "surrogateescape")
        done = subprocess.run(["/bin/sh", "-n"], input=text, capture_output=True, check=False, timeout=60)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0].removeprefix("/bin/sh: ")
            yield f"Stage {name[:80]!r}: the shell cannot read the command: {said[:200].rstrip('.')}."
