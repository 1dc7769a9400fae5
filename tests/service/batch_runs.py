"""Running ``dm-batch-run`` in tests, on a real Grid Engine and on a real Slurm alike."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.service.batch_program import batch_program
from tests.service.sge_server import SgeCluster, sge
from tests.service.slurm_server import SlurmCluster, slurm

__all__ = ["Runs", "all_runs", "batch_program", "make_runs", "runs", "sge", "slurm", "until"]


@dataclass
class Ended:
    """A run of ``dm-batch-run`` that has ended."""

    status: int
    stdout: str
    stderr: str
    values: dict[str, Any]

    @property
    def job(self) -> str:
        """The job id of its first line."""
        first = self.stdout.splitlines()[0]
        assert first.startswith("Job id: "), self
        return first.removeprefix("Job id: ")

    @property
    def printed(self) -> str:
        """What came after the two lines of its own."""
        return self.stdout.split("\n", 2)[2]

    @property
    def said(self) -> str:
        """What it said itself on standard error."""
        return "".join(line for line in self.stderr.splitlines(True) if line.startswith("dm-batch-run: "))


@dataclass
class Run:
    """A run of ``dm-batch-run``."""

    process: subprocess.Popen[bytes]
    directory: Path
    number: int

    def path(self, name: str) -> Path:
        """Return one of its files."""
        return self.directory / f"{self.number}.{name}"

    def text(self, name: str) -> str:
        """Return what is in one of its files by now."""
        return os.fsdecode(self.path(name).read_bytes())

    def job(self) -> str:
        """Wait for its first line and return the job id."""
        until(lambda: "Job name: " in self.text("out"), lambda: f"no job: {self.text('err')}")
        return self.text("out").split("\n")[0].removeprefix("Job id: ")

    def ended(self) -> Ended:
        """Wait for its end."""
        status = self.process.wait(90)
        values = self.path("json")
        found = json.loads(values.read_bytes()) if values.exists() and values.stat().st_size else {}
        return Ended(status, self.text("out"), self.text("err"), found)


@dataclass
class Runs:
    """Runs of ``dm-batch-run`` in a directory of the account that submits."""

    cluster: SgeCluster | SlurmCluster
    program: Path
    directory: Path
    scheduler: str
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str | Path | bytes, environment: dict[str, str] | None = None, cwd: Any = None) -> Run:
        """Start one. :param arguments: after the scheduler's."""
        number = len(self._processes)
        given = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "DM_OUTPUT_FILE": str(self.directory / f"{number}.json"),
            **self.cluster.environment,
            **(environment or {}),
        }
        with (self.directory / f"{number}.out").open("wb") as out, (self.directory / f"{number}.err").open("wb") as err:
            process = subprocess.Popen(
                [self.program, "--scheduler", self.scheduler, *arguments],
                env=given,
                cwd=cwd or self.directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                **self.cluster.identity,
            )
        self._processes.append(process)
        return Run(process, self.directory, number)

    def run(self, *arguments: str | Path | bytes, **options: Any) -> Ended:
        """Run one to its end."""
        return self.start(*arguments, **options).ended()

    def left(self) -> list[str]:
        """Return the names of what runs have left in the directory."""
        return [path.name for path in self.directory.glob(".dm-batch*")]

    def delete(self, job: str) -> None:
        """Delete a job as its owner would."""
        self.cluster.run("qdel" if self.scheduler == "sge" else "scancel", job)

    def release(self, job: str) -> None:
        """Let a held job go."""
        self.cluster.run(*(["qrls", job] if self.scheduler == "sge" else ["scontrol", "release", job]))

    def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(params=["sge", pytest.param("slurm", marks=pytest.mark.long)])
def runs(request: pytest.FixtureRequest, batch_program: Path, open_directory: Path) -> Iterator[Runs]:
    """Runs on a Grid Engine, and in long rounds also on a Slurm."""
    yield from make_runs(request.getfixturevalue(request.param), request.param, batch_program, open_directory)


@pytest.fixture(params=["sge", "slurm"])
def all_runs(request: pytest.FixtureRequest, batch_program: Path, open_directory: Path) -> Iterator[Runs]:
    """Runs on a Grid Engine, and then on a Slurm."""
    yield from make_runs(request.getfixturevalue(request.param), request.param, batch_program, open_directory)


def make_runs(cluster: SgeCluster | SlurmCluster, name: str, program: Path, directory: Path) -> Iterator[Runs]:
    """Yield runs on a cluster, once. :param name: of the scheduler."""
    directory.chmod(0o777)
    runs = Runs(cluster, program, directory, name)
    try:
        yield runs
    finally:
        runs.close()


def until(condition: Callable[[], bool], otherwise: Callable[[], str] | str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, otherwise() if callable(otherwise) else otherwise
        time.sleep(0.05)
