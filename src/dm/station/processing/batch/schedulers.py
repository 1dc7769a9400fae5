"""What batch schedulers have in common, and running their commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from dm.station.processing.batch.outcome import REFUSED, BatchError, Record, Unavailable
from dm.station.processing.batch.request import Request

_SECONDS = 60.0  # for one of the scheduler's commands
WAITS, RUNS, BROKEN = "waits", "runs", "broken"


@dataclass(frozen=True)
class Listed:
    """A job in the scheduler's list. :param state: :data:`WAITS`, :data:`RUNS` or :data:`BROKEN` (never to start)."""

    name: str
    state: str


class Scheduler(Protocol):
    """A batch scheduler, through its own commands. All methods raise :class:`Unavailable` when it does not answer."""

    name: ClassVar[str]
    title: ClassVar[str]
    prefix: ClassVar[str]  # of directives in job scripts
    forbidden: ClassVar[re.Pattern[str]]  # directives and arguments that make something else than one job

    def submit(self, request: Request, name: str, script: Path, keep: int) -> str:
        """Submit a job and return its id.

        :param name: the job's. :param script: what to run. :param keep: a descriptor the submitting command inherits.
        :raises Refused: it is not accepted.
        """

    def listing(self) -> dict[str, Listed]:
        """Return the account's jobs that have not ended, by id."""

    def record(self, job: str, name: str, last: bool) -> Record | None:
        """Return what the accounting tells of a job; ``None`` when it tells nothing yet.

        :param last: the accounting has had its time; what else is known will do.
        """

    def find(self, name: str) -> str:
        """Return the id of an ended job of this name; empty when there is none."""

    def why(self, job: str) -> str:
        """Return why a job can never start, one sentence; empty when unknown."""

    def deletion(self, job: str) -> Sequence[str]:
        """Return the command that deletes a job."""

    def place(self) -> str:
        """Return what tells this cluster from others."""


def detected(environment: Mapping[str, str], wanted: str = "") -> str:
    """Return which scheduler there is: ``sge`` or ``slurm``.

    :param wanted: a person's choice, which needs no looking.
    :raises BatchError: there is none, or several.
    """
    if wanted:
        return wanted
    programs = {"sge": ("qsub", "qacct"), "slurm": ("sbatch", "squeue")}
    found = [name for name, needs in programs.items() if all(shutil.which(each) for each in needs)]
    if len(found) > 1:
        variables = {"sge": "SGE_ROOT", "slurm": "SLURM_CONF"}
        found = [name for name in found if variables[name] in environment] or found
    if not found:
        raise BatchError("Neither qsub and qacct nor sbatch and squeue are in the PATH of this process.", REFUSED)
    if len(found) > 1:
        raise BatchError("There are both a Grid Engine and a Slurm here; choose with --scheduler.", REFUSED)
    return found[0]


def run(*command: str | Path, keep: int | None = None, seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a scheduler's command, in a session of its own, so that signals to the stage do not hit it.

    :param keep: a descriptor it inherits.
    :raises Unavailable: it does not end in time. :raises BatchError: there is no such command.
    """
    try:
        return subprocess.run(
            [*command],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=seconds,
            check=False,
            start_new_session=True,
            pass_fds=() if keep is None else (keep,),
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} did not answer within {seconds:g} s.") from None
    except OSError as error:
        raise BatchError(f"{command[0]} cannot be run: {error.strerror}.", REFUSED) from error


def environment() -> dict[str, str]:
    """Return the environment of the scheduler's commands: ours, but for what tells of this stage's own process."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DM_")} | {"LC_ALL": "C"}


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a failed command said, as one line."""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines()]
    text = " ".join(line for line in lines if line and line != "Exiting.")
    return text[:500] or f"exit status {done.returncode}"


def number(text: str) -> float:
    """Read an amount such as ``3.559MB``, ``316808K``, ``0.009s``, ``17``; 0 for anything else."""
    found = re.fullmatch(r"([0-9.]+)\s*([KMGTP]?)i?B?s?", text.strip())
    if not found or found[1].count(".") > 1 or found[1] == ".":
        return 0.0
    return float(found[1]) * 1024 ** " KMGTP".index(found[2] or " ")
