"""How batch jobs end, what the accounting tells of them, and the exit statuses of ``dm-batch-run``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

REFUSED = 81
LOST = 82
LIMIT = 83
DELETED = 84
SILENT = 85
SIGNALLED = 128  # plus the signal that dm-batch-run itself was sent

EXITED, OVER_LIMIT, KILLED, GONE, NOT_STARTED = "exited", "limit", "deleted", "lost", "refused"
_STATUS = {OVER_LIMIT: LIMIT, KILLED: DELETED, GONE: LOST, NOT_STARTED: REFUSED}
_NEAR = 0.9  # of its memory limit, a failed job is told to have reached it


class BatchError(Exception):
    """Something to tell in one sentence. :param status: exit status of ``dm-batch-run``."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Refused(BatchError):  # noqa: N818
    """The scheduler does not take the job."""

    def __init__(self, message: str) -> None:
        super().__init__(message, REFUSED)


class Unavailable(BatchError):  # noqa: N818
    """The scheduler does not answer; trying again later may help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, SILENT)


@dataclass(frozen=True)
class Record:
    """What the scheduler tells of an ended job.

    :param kind: :data:`EXITED`, :data:`OVER_LIMIT`, :data:`KILLED` (deleted, or killed from outside), :data:`GONE`
        (its host or the scheduler lost it) or :data:`NOT_STARTED`.
    :param exit_status: as a shell has it, 128 + n for signal n; ``None`` when unknown.
    :param reason: one sentence; empty for a job that exited.
    :param memory_limit: bytes that it asked for.
    """

    kind: str
    exit_status: int | None = None
    reason: str = ""
    host: str = ""
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    max_memory: int | None = None
    memory_limit: int | None = None


@dataclass(frozen=True)
class End:
    """The end of a job as its own script noted it.

    :param signalled: the script got a signal before, as a job does that is deleted or stopped.
    :param stdout: :param stderr: sizes of the outputs.
    """

    status: int
    signalled: bool
    stdout: int
    stderr: int


@dataclass(frozen=True)
class Outcome:
    """The end of a job: what its script noted and what the scheduler tells, put together.

    :param status: exit status of ``dm-batch-run``.
    """

    job: str
    name: str
    status: int
    exit_status: int | None
    reason: str
    record: Record = field(repr=False)

    def values(self) -> dict[str, Any]:
        """Return the members of the structured output; what is unknown is ``null``."""
        return {
            "jobId": self.job,
            "jobName": self.name,
            "exitStatus": self.exit_status,
            "outcome": self.record.kind,
            "reason": self.reason or None,
            "host": self.record.host or None,
            "wallSeconds": self.record.wall_seconds,
            "cpuSeconds": self.record.cpu_seconds,
            "maxMemory": self.record.max_memory,
        }


def judged(job: str, name: str, noted: End | None, record: Record) -> Outcome:
    """Say how a job ended.

    :param noted: what its own script noted; ``None`` when it was ended before it could.
    """
    by_itself = record.kind == EXITED or (record.kind == GONE and noted is not None and not noted.signalled)
    if noted is not None and by_itself:
        reason = ""
        if noted.status and _reached(record):
            reason = f"Batch job {job} exited with {noted.status} after it had used nearly all memory it asked for."
        return Outcome(job, name, noted.status, noted.status, reason, _exited(record))
    status = record.exit_status if noted is None else noted.status
    if record.kind == EXITED:  # without a note: the disk is full, or its files were removed
        return Outcome(job, name, LOST if status is None else status, status, record.reason, record)
    return Outcome(job, name, _STATUS[record.kind], status, f"Batch job {job} {record.reason}", record)


def _exited(record: Record) -> Record:
    fields = {name: getattr(record, name) for name in ("host", "wall_seconds", "cpu_seconds", "max_memory")}
    return Record(EXITED, **fields)


def _reached(record: Record) -> bool:
    return bool(record.max_memory and record.memory_limit and record.max_memory >= _NEAR * record.memory_limit)
