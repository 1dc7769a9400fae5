"""What an executor is: the part of the engine that runs one process somewhere and knows it again after a restart.

Executors are plugins of the entry-point group ``dm.executors``. ``local`` runs processes on the service's own host.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from dm.station.processing.accounts import Account

MARKER = "DM_PROCESSING_KEY"  # in the environment of every process of a stage: the task's key


@dataclass(frozen=True)
class Task:
    """One process to run.

    :param key: unique for ever; a file-name-safe text under which the executor knows the process again.
    :param script: a POSIX shell script that sets its own environment and working directory.
    :param account: who it runs as.
    """

    key: str
    script: bytes = field(repr=False)
    account: Account


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    :param exit_status: its exit status, 128 + n when signal n ended it; ``None`` when nobody saw the end.
    :param stdout: :param stderr: what it printed, each cut at the executor's limit.
    :param end_time: epoch seconds.
    :param reason: what to tell the user where ``exit_status`` is ``None``.
    """

    exit_status: int | None
    stdout: bytes = b""
    stderr: bytes = b""
    end_time: float = 0.0
    truncated: bool = False
    reason: str = ""


class Executor(Protocol):
    """Runs processes. ``start``, ``find``, ``stop`` and ``forget`` block and are called from worker threads."""

    name: ClassVar[str]

    def start(self, task: Task) -> None:
        """Start the process; once this returns it can be found again by its key after any crash.

        :raises ProcessingError: it cannot be started.
        """

    def find(self, key: str) -> bool:
        """Say whether the process was started; after ``False`` it never will be under this key."""

    async def wait(self, key: str) -> Outcome:
        """Wait for the end of a started process."""

    def stop(self, key: str, number: signal.Signals) -> None:
        """Signal the process and all it started."""

    def forget(self, key: str) -> None:
        """Remove what is kept about an ended process."""

    def sweep(self, keys: Collection[str]) -> None:
        """Remove what is kept about ended processes other than these; called before any is started."""
