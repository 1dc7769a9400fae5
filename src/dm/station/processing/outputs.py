"""What the processes of a job printed, whole: of ended ones and of those that still run."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from dm.common.errors import ObjectNotFound
from dm.common.web.routes import Principal, Stream
from dm.station.processing.documents import Child

Locate = Callable[[str, int, str], Path | None]
STREAMS = {"stdOut": "stdout", "stdErr": "stderr"}
_CHUNK = 256 << 10
_LOOK = 0.1
_ASK = 1.0


class Processes(Protocol):
    """What is asked of :class:`dm.station.processing.jobs.Jobs`."""

    def child(self, principal: Principal, job_id: str, owner: str | None, number: int) -> tuple[Child | None, bool]:
        """Return a process of a job, and whether the job has not ended. :raises ObjectNotFound: no job to see."""
        ...


class Outputs:
    """Output of processes as byte streams.

    :param processes: who may see what. :param running: :param kept: where the file with all output of a process is
        while it runs, and afterwards, by job id, process number and ``stdout`` or ``stderr``; ``None``: nowhere.
    :param waiters: how many callers may wait for more output at the same time; others are answered at once.
    """

    def __init__(self, processes: Processes, running: Locate, kept: Locate, waiters: int) -> None:
        self._processes = processes
        self._running = running
        self._kept = kept
        self._waiters = threading.BoundedSemaphore(max(1, waiters))

    def stream(  # noqa: PLR0917
        self, principal: Principal, job_id: str, owner: str | None, number: int, name: str, offset: int, wait: float
    ) -> Stream:
        """Return what a process printed.

        :param name: a key of :data:`STREAMS`. :param offset: bytes to leave out at the beginning.
        :param wait: seconds to wait until there is more than that, or the process has ended.
        :raises ObjectNotFound: no job the caller may see, or it has not begun this process.
        """
        child = self._child(principal, job_id, owner, number)
        if wait > 0 and not self._enough(job_id, child, name, offset) and self._waiters.acquire(blocking=False):
            try:
                deadline = time.monotonic() + wait
                while not self._enough(job_id, child, name, offset) and time.monotonic() < deadline:
                    self._look(job_id, number, name, offset, min(deadline, time.monotonic() + _ASK))
                    child = self._child(principal, job_id, owner, number)
            finally:
                self._waiters.release()
        if child is None:
            raise ObjectNotFound(f"Process {number} of job {job_id} does not exist, or not yet.")
        size = self._size(job_id, child, name)
        length = max(0, size - offset)

        def read(first: int, count: int) -> Iterator[bytes]:
            return self._read(job_id, child, name, offset + first, count)

        return Stream(
            read=read,
            length=length,
            filename=f"{job_id}-{number}.{STREAMS[name]}.txt",
            etag=f"{job_id}-{number}-{name}-{child.ended:d}-{offset}-{size}",  # it only ever grows
            content_type="text/plain; charset=utf-8",
        )

    def _child(self, principal: Principal, job_id: str, owner: str | None, number: int) -> Child | None:
        child, active = self._processes.child(principal, job_id, owner, number)
        if child is None and not active:
            raise ObjectNotFound(f"Process {number} of job {job_id} does not exist.")
        return child

    def _enough(self, job_id: str, child: Child | None, name: str, offset: int) -> bool:
        return child is not None and (child.ended or self._size(job_id, child, name) > offset)

    def _look(self, job_id: str, number: int, name: str, offset: int, until: float) -> None:
        """Watch the file of a running process until it has more than the offset, is gone, or the time has come."""
        path = self._running(job_id, number, STREAMS[name])
        while time.monotonic() < until:
            time.sleep(max(0.0, min(_LOOK, until - time.monotonic())))
            if path is not None:
                try:
                    if path.stat().st_size > offset:
                        return
                except OSError:
                    return

    def _places(self, child: Child) -> tuple[Locate, ...]:
        """Return where the file may be: that of a running process is put aside just before its end is recorded."""
        return (self._kept,) if child.ended else (self._running, self._kept)

    def _size(self, job_id: str, child: Child, name: str) -> int:
        for locate in self._places(child):
            path = locate(job_id, child.number, STREAMS[name])
            if path is not None:
                with contextlib.suppress(FileNotFoundError):
                    return path.stat().st_size
        return len(_text(child, name))

    def _read(self, job_id: str, child: Child, name: str, first: int, count: int) -> Iterator[bytes]:
        for locate in self._places(child):
            path = locate(job_id, child.number, STREAMS[name])
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) if path else None
            except FileNotFoundError:
                continue
            if descriptor is not None:
                yield from _part(descriptor, first, count)
                return
        yield _text(child, name)[first : first + count]


def _text(child: Child, name: str) -> bytes:
    """Return the output as the record has it."""
    return (child.stdOut if name == "stdOut" else child.stdErr).encode("utf-8", "surrogateescape")


def _part(descriptor: int, first: int, count: int) -> Iterator[bytes]:
    try:
        end = first + count
        while first < end and (chunk := os.pread(descriptor, min(_CHUNK, end - first), first)):
            yield chunk
            first += len(chunk)
    finally:
        os.close(descriptor)
