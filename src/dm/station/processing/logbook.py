"""The logbook: which job was accepted when, from whom and with what input.

One file of JSON lines per local day, ``2026-03-05.jsonl``. A line is on disk before the job is stored, and the job is
stored before its submitter is told, so no accepted job is missing; where the job could not be stored after all, a line
``withdrawn`` follows. When a line cannot be written (a full disk), the submission is refused.

Submissions that come at the same time share one flush: whoever gets the file writes for all that wait.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dm.common import timestamps
from dm.common.errors import ConfigurationError, InvalidArgument, ServiceUnavailable

log = logging.getLogger(__name__)
MAX_ENTRIES = 10_000
INPUT_KEYS = ("filePath", "filePathList", "filePathPattern", "dataDir", "experimentName", "dataset", "queryDict")
_DIRECTORY_MODE, _FILE_MODE = 0o750, 0o640
_PAGE_BYTES = 8 << 20
_LONGEST = 256
_CHUNK = 1 << 20

Entry = dict[str, Any]


def entry(
    document: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    submitted_by: str,
    via: str,
    idempotency_key: str | None = None,
) -> Entry:
    """Return the entry of a job about to be accepted.

    :param document: of the job. :param arguments: as submitted. :param submitted_by: user name of the caller.
    :param via: the interface, ``REST`` or ``ZeroMQ``.
    :param idempotency_key: only its SHA-256 is kept: keys may be made of what is not for everybody.
    """
    workflow = json.loads(document["workflow"])
    moment = float(document["submissionTime"])
    found: Entry = {
        "time": moment,
        "timestamp": timestamps.text(moment),
        "id": document["_id"],
        "owner": document["owner"],
        "submittedBy": submitted_by,
        "via": via,
        "workflowName": document["workflowName"],
        "workflowOwner": document["workflowOwner"],
        "workflowId": workflow.get("id"),
        "workflowRevision": workflow.get("revision"),
        "workflowVersion": workflow.get("version"),
        "input": {key: _short(arguments[key]) for key in INPUT_KEYS if key in arguments},
        "countFiles": document["countFiles"],
        "priority": document.get("priority") or 0,
        "inputError": document.get("inputError"),
        "idempotencyKeyHash": hashlib.sha256(idempotency_key.encode("utf-8", "surrogatepass")).hexdigest()
        if idempotency_key
        else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _short(value: Any) -> Any:
    """Return what is said of an input: a number, or a text of moderate length."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


@dataclass
class _Ticket:
    """Lines of one caller. :param day: of the file they belong to."""

    day: datetime.date
    data: bytes
    done: bool = False
    failure: OSError | None = None


@dataclass
class _File:
    """The file that is written at present. :param glue: what must come first: the end of a line that was torn."""

    day: datetime.date
    descriptor: int
    glue: bytes = field(default=b"")


class Logbook:
    """The logbook of one service. Thread-safe.

    :param directory: its own; made by :meth:`prepare`. :param days: days a file is kept; 0 for ever.
    """

    def __init__(self, directory: Path, days: int = 0) -> None:
        self.directory = directory
        self._days = days
        self._queue: list[_Ticket] = []
        self._queue_lock = threading.Lock()
        self._writing = threading.Lock()
        self._file: _File | None = None
        self.problem = ""  # why the last lines could not be written

    def prepare(self) -> None:
        """Make the directory and drop what is too old. :raises ConfigurationError: it cannot be written to."""
        try:
            self.directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"Logbook directory {self.directory} cannot be made: {error.strerror}.") from None
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise ConfigurationError(f"Logbook directory {self.directory} is not writable for this account.")
        self.expire()

    def close(self) -> None:
        """Close the file."""
        with self._writing:
            self._forget()

    # --- writing ---------------------------------------------------------------------------------------------

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Write entries to the file of their day; they are on disk when this returns.

        :raises ServiceUnavailable: they are not, and nothing of them stays; what they speak of must not happen.
        """
        if not entries:
            return
        day = datetime.date.fromtimestamp(float(entries[0]["time"]))
        ticket = _Ticket(day, b"".join(json.dumps(one, separators=(",", ":")).encode() + b"\n" for one in entries))
        with self._queue_lock:
            self._queue.append(ticket)
        with self._writing:  # whoever waited here finds its lines written by the one before, mostly
            if not ticket.done:
                with self._queue_lock:
                    group, self._queue = self._queue, []
                self._write(group)
        if ticket.failure is not None:
            raise ServiceUnavailable(
                f"The logbook in {self.directory} cannot be written: {ticket.failure.strerror}. No job was accepted; "
                "tell the station's managers and submit again."
            )

    def withdraw(self, job_id: str, reason: str) -> None:
        """Note that the job of an entry was not accepted after all; a failure is logged only."""
        moment = time.time()
        line = {"time": moment, "timestamp": timestamps.text(moment), "id": job_id, "withdrawn": reason}
        try:
            self.append(line)
        except ServiceUnavailable:
            log.exception("job %s was not accepted, but the logbook says so no more", job_id)

    def _write(self, group: list[_Ticket]) -> None:
        for day in sorted({ticket.day for ticket in group}):
            tickets = [ticket for ticket in group if ticket.day == day]
            failure: OSError | None = None
            try:
                self._write_day(day, b"".join(ticket.data for ticket in tickets))
            except OSError as error:
                failure = error
                log.error("the logbook cannot be written: %s", error)
                self._forget()
            self.problem = (failure.strerror or str(failure)) if failure is not None else ""
            for ticket in tickets:
                ticket.done, ticket.failure = True, failure

    def _write_day(self, day: datetime.date, data: bytes) -> None:
        file = self._opened(day)
        size = os.fstat(file.descriptor).st_size
        try:
            rest = memoryview(file.glue + data)
            while rest:
                rest = rest[os.write(file.descriptor, rest) :]
            os.fdatasync(file.descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # else the next one to open the file ends the torn line
                os.ftruncate(file.descriptor, size)
            raise
        file.glue = b""

    def _opened(self, day: datetime.date) -> _File:
        if self._file is not None and self._file.day == day and self._in_place(self._file):
            return self._file
        new_day = self._file is None or self._file.day != day
        self._forget()
        path = self._path(day)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, _FILE_MODE)
        try:
            size = os.fstat(descriptor).st_size
            if not size:
                os.fchmod(descriptor, _FILE_MODE)
                directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        except OSError:
            os.close(descriptor)
            raise
        self._file = _File(day, descriptor, b"\n" if torn else b"")
        if new_day:
            self.expire()
        return self._file

    def _in_place(self, file: _File) -> bool:
        """Whether the open file still is the one of that name: somebody may have moved it away."""
        try:
            return os.path.samestat(os.fstat(file.descriptor), self._path(file.day).lstat())
        except FileNotFoundError:
            return False

    def _forget(self) -> None:
        if self._file is not None:
            os.close(self._file.descriptor)
            self._file = None

    def _path(self, day: datetime.date) -> Path:
        return self.directory / f"{day.isoformat()}.jsonl"

    def expire(self) -> None:
        """Remove the files of days past the limit."""
        if not self._days:
            return
        oldest = (datetime.date.today() - datetime.timedelta(days=self._days)).isoformat()
        try:
            for path in self.directory.glob("[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9].jsonl"):
                if path.stem < oldest:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("old files of the logbook cannot be removed: %s", error)

    # --- reading ---------------------------------------------------------------------------------------------

    def page(self, date: str, after: str | None = None, limit: int = 1_000) -> dict[str, Any]:
        """Return a page of a day's entries, in the order of their acceptance.

        :param date: ``2026-03-05``, or ``today``. :param after: the cursor of the page before; ``None`` starts.
        :returns: ``{"entries": [...], "after": cursor}``; the cursor is ``None`` on the last page.
        :raises InvalidArgument: not a date, or not a cursor of that day.
        """
        path = self._path(day_of(date))
        start = _offset(after)
        entries: list[Entry] = []
        position = start
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if start:
                raise _bad_cursor(after) from None
            return {"entries": [], "after": None}
        except OSError as error:
            raise ServiceUnavailable(f"The logbook of {date} cannot be read: {error.strerror}.") from None
        try:
            if start and os.pread(descriptor, 1, start - 1) != b"\n":
                raise _bad_cursor(after)
            for line in _lines(descriptor, start):
                if len(entries) >= limit or position - start >= _PAGE_BYTES:
                    return {"entries": entries, "after": str(position)}
                position += len(line)
                with contextlib.suppress(ValueError):  # a line torn by a crash, whose job nobody was promised
                    entries.append(json.loads(line))
        finally:
            os.close(descriptor)
        return {"entries": entries, "after": None}


def day_of(date: str) -> datetime.date:
    """Return the day a text names. :raises InvalidArgument: it names none."""
    if date == "today":
        return datetime.date.today()
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError:
        day = None
    if day is None or day.isoformat() != date:  # weeks and dates without dashes are ISO's as well
        raise InvalidArgument(f"Date {date[:40]!a} is not understood; write it like 2026-03-05, or today.")
    return day


def _offset(after: str | None) -> int:
    if not after:
        return 0
    if not (after.isascii() and after.isdigit() and len(after) <= 16):
        raise _bad_cursor(after)
    return int(after)


def _bad_cursor(after: str | None) -> InvalidArgument:
    return InvalidArgument(f"Cursor {(after or '')[:40]!a} is not one the logbook gave; start without 'after'.")


def _lines(descriptor: int, position: int) -> Iterator[bytes]:
    """Yield the complete lines from a position on."""
    left = b""
    while chunk := os.pread(descriptor, _CHUNK, position):
        position += len(chunk)
        *lines, left = (left + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
