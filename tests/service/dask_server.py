"""A real dask scheduler and workers as processes, under an unprivileged account."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dm.common.accounts import Account, switched
from dm.deploy import runtime
from dm.station.processing.executors.dask_settings import DaskSettings

PATIENCE = 60.0
UNPRIVILEGED = "nobody"
_QUIET = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")


def stage_account() -> Account:
    """Return the account that workers run under: the caller's own, unless that is root."""
    if os.geteuid() == 0:
        return switched(UNPRIVILEGED, "stages")
    entry = pwd.getpwuid(os.geteuid())
    return Account(entry.pw_name, entry.pw_dir)


def give(directory: Path, account: Account) -> Path:
    """Make a directory that belongs to an account."""
    directory.mkdir(exist_ok=True)
    shutil.chown(directory, account.name)
    return directory


def interpreter(directory: Path, account: Account) -> Path:
    """Return a Python that the account can run: a copy below the directory where it cannot run the tests' own."""
    if not account.prefix or not runtime.needs_copy(pwd.getpwnam(account.name)):
        return Path(sys.executable)
    copy = directory / "dask-runtime"
    runtime.prepare(copy, pwd.getpwnam(account.name))
    return copy / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


@dataclass
class DaskServer:
    """A scheduler on a free port, and workers by name.

    :param directory: that other accounts may pass. :param tls: options of scheduler and workers for TLS.
    """

    directory: Path
    account: Account = field(default_factory=stage_account)
    python: Path = Path(sys.executable)
    tls: tuple[str, ...] = ()
    port: int = 0
    address: str = ""
    scheduler: subprocess.Popen[bytes] | None = None
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def settings(self, **changes: object) -> DaskSettings:
        """Return settings of an executor that uses this scheduler."""
        account = self.account.name if self.account.prefix else None
        mine = {"scheduler": self.address, "account": account, "output_grace": 1.0, **self.settings_of_python}
        return DaskSettings(**{**mine, **changes})

    @property
    def settings_of_python(self) -> dict[str, str]:
        """Return the setting ``python``, if one is needed."""
        return {} if str(self.python) == sys.executable else {"python": str(self.python)}

    def start(self, *names: str, threads: int = 2) -> None:
        """Start the scheduler, on its former port if it had one, and workers."""
        give(self.directory, self.account)
        file = self.directory / "scheduler.json"
        file.unlink(missing_ok=True)
        self.scheduler = self._run(
            [
                "scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--scheduler-file",
                str(file),
                *_QUIET,
                *self.tls,
            ],
            "scheduler",
        )
        self.address = self._until(lambda: _address(file))
        self.port = int(self.address.rpartition(":")[2])
        for name in names:
            self.add(name, threads)

    def add(self, name: str, threads: int = 2, *options: str, account: Account | None = None) -> None:
        """Start a worker; it is there some time later."""
        place = ["--local-directory", str(self.directory / name)]
        words = ["worker", self.address, "--name", name, "--nthreads", str(threads), "--no-nanny", *place]
        self.workers[name] = self._run([*words, *_QUIET, *self.tls, *options], name, account)

    def kill(self, name: str) -> None:
        """kill -9 a worker."""
        worker = self.workers.pop(name)
        worker.kill()
        worker.wait()

    def kill_scheduler(self) -> None:
        """kill -9 the scheduler."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def stop(self) -> None:
        """Stop all of it."""
        for process in [*self.workers.values(), *([self.scheduler] if self.scheduler else [])]:
            process.kill()
            process.wait()
        self.workers.clear()

    def log(self, name: str) -> str:
        """Return what a process wrote."""
        return (self.directory.parent / f"{name}.log").read_text()

    def _run(self, words: list[str], name: str, account: Account | None = None) -> subprocess.Popen[bytes]:
        account = account or self.account
        with (self.directory.parent / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*account.prefix, str(self.python), "-P", "-m", "dask", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.directory),
                    "LD_LIBRARY_PATH": str(self.python.parent.parent / "lib"),
                },
            )

    @staticmethod
    def _until(ask):  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if found := ask():
                return found
            time.sleep(0.02)
        raise AssertionError("not in time")


def _address(file: Path) -> str:
    """Return the address in a scheduler file; empty while it is being written."""
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads(file.read_text())["address"])
    return ""


@contextlib.contextmanager
def running_dask(run_directory: Path) -> Iterator[DaskServer]:
    """Run a dask scheduler with the workers w0 and w1, of two threads each."""
    directory = run_directory / "dask"
    directory.mkdir()
    account = stage_account()
    running = DaskServer(directory / "work", account, interpreter(run_directory, account))
    try:
        running.start("w0", "w1")
        yield running
    finally:
        running.stop()
        shutil.rmtree(directory, ignore_errors=True)
