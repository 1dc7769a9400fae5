"""What an executor is: the part of the engine that runs one process somewhere and knows it again after a restart.

Executors are plugins of the entry-point group ``dm.executors``. ``local`` runs processes on the service's own host.
"""

from __future__ import annotations

import signal
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from dm.station.processing.accounts import Account

MARKER = "DM_PROCESSING_KEY"  # in the environment of every process of a stage: the task's key
OUTPUT_FILE = "DM_OUTPUT_FILE"  # the same: where a stage may write a JSON object of values for later stages
MAX_OUTPUT_FILE = 1 << 20


class ExecutorSettings(BaseModel):
    """Base of the settings models of executors; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Task:
    """One process to run.

    :param key: unique for ever; a file-name-safe text under which the executor knows the process again.
    :param script: a POSIX shell script that sets its own environment and working directory. The executor adds
        ``DM_OUTPUT_FILE`` to the environment it starts with.
    :param account: who it runs as.
    """

    key: str
    script: bytes = field(repr=False)
    account: Account


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    :param exit_status: its exit status, 128 + n when signal n ended it; ``None`` when it was never started or nobody
        saw its end. :param end_time: epoch seconds. :param start_time: epoch seconds, where known.
    :param signal: the signal that ended it, if one did.
    :param reason: what to tell the user where ``exit_status`` is ``None``, or where the executor itself ended it.
    :param lost: it was or may have been started, and nobody saw its end; whether it runs again is the workflow's say.
    :param stdout: :param stderr: files on this host with all it printed, as far as the executor kept it; the engine
        may move them away; ``None`` or a missing file is no output. They go with :meth:`Executor.forget`.
    :param output: what it wrote to the file named by ``DM_OUTPUT_FILE``, at most :data:`MAX_OUTPUT_FILE` + 1 bytes.
    :param cpu_seconds: :param max_memory: CPU time and largest resident size (bytes) of it and its children.
    """

    exit_status: int | None
    end_time: float
    start_time: float | None = None
    signal: int | None = None
    reason: str = ""
    lost: bool = False
    stdout: Path | None = None
    stderr: Path | None = None
    output: bytes = b""
    cpu_seconds: float | None = None
    max_memory: int | None = None


class Executor(Protocol):
    """Runs processes. All methods are called in the engine's event loop and must not block it.

    Made as ``executor_class(spool, settings_model(**executor_settings))``; ``spool`` is a directory on a local disk
    that belongs to this executor alone.
    """

    name: ClassVar[str]
    settings_model: ClassVar[type[ExecutorSettings]]

    async def open(self, keys: Collection[str]) -> None:
        """Begin: find again the processes of these keys, remove what is kept about ended ones of other keys.

        :raises ConfigurationError: the settings cannot work. :raises ServiceUnavailable: what it needs is not there.
        """

    async def find(self, key: str) -> bool:
        """Say whether a process of an earlier engine was started; after ``False`` it never will be under this key."""

    async def start(self, task: Task) -> None:
        """Start a process, which is then found again by its key after any crash of this service.

        Returning does not mean that it runs yet: what goes wrong later is told by :meth:`wait`.

        :raises ProcessingError: it cannot be started.
        """

    async def wait(self, key: str) -> Outcome:
        """Wait for the end of a started process. May be called again for the same key until it is forgotten."""

    def output(self, key: str, stream: str) -> Path | None:
        """Return the file with what a process has printed so far, if there is one on this host; from any thread.

        :param stream: ``stdout`` or ``stderr``.
        """

    async def stop(self, key: str, number: signal.Signals) -> None:
        """Signal the process and all it started, also what left its process group."""

    async def forget(self, key: str) -> None:
        """Remove what is kept about an ended process: its result has been recorded."""

    async def close(self) -> None:
        """End this executor, not its processes: the next one finds them."""
