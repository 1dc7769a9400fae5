"""What writers say: "these files are whole".

The caller is answered when the ledger has the files, so an answer is as good as a stored file: the service may be
killed the moment after. What could not be taken in that time is named, and may be told again.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dm.common import statuses
from dm.common.errors import DmException, InvalidArgument, InvalidObjectState
from dm.common.paths import decode, encode, opened_parent, relative
from dm.station.acquisition.watch.scan import Walk

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office
    from dm.station.acquisition.task import Task

TAKEN = "taken"
MISSING = "missing"
IGNORED = "ignored"
PENDING = "pending"
MOST = 100_000
_SLICE = 0.25


class Telling:
    """One message and what became of its files. Thread-safe.

    :param paths: relative to the data directory.
    """

    def __init__(self, paths: Iterable[bytes]) -> None:
        self.states: dict[bytes, str] = dict.fromkeys(paths, PENDING)
        self._open = set(self.states)
        self._condition = threading.Condition()

    def settle(self, path: bytes, state: str) -> None:
        """Say what became of a file: :data:`TAKEN`, :data:`MISSING` or :data:`IGNORED`."""
        with self._condition:
            if path in self._open:
                self.states[path] = state
                self._open.discard(path)
                if not self._open:
                    self._condition.notify_all()

    def wait(self, seconds: float, stopping: threading.Event) -> None:
        """Wait until all is decided, the time has passed, or the service stops."""
        deadline = time.monotonic() + seconds
        with self._condition:
            while self._open and not stopping.is_set() and (left := deadline - time.monotonic()) > 0:
                self._condition.wait(min(left, _SLICE))

    def answer(self) -> dict[str, Any]:
        """Return ``{"count": n, "missing": [...], "ignored": [...], "pending": [...]}``, how many were taken, and the
        paths that were not."""
        with self._condition:
            states = dict(self.states)
        lists = {
            kind: [decode(path) for path, state in states.items() if state == kind]
            for kind in (MISSING, IGNORED, PENDING)
        }
        return {"count": sum(state == TAKEN for state in states.values()), **lists}


class Told:
    """The files of messages that the watching thread is seeing to; used by that thread alone."""

    def __init__(self) -> None:
        self._open: dict[bytes, list[Telling]] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def expect(self, path: bytes, telling: Telling) -> None:
        """Remember that a message waits for a file."""
        self._open.setdefault(path, []).append(telling)

    def settle(self, path: bytes, state: str) -> None:
        """Tell the messages that wait for a file what became of it."""
        for telling in self._open.pop(path, ()):
            telling.settle(path, state)


def complete(office: Office, task_id: str, paths: Sequence[str], seconds: float) -> dict[str, Any]:
    """Take files of a running DAQ as whole because their writer says so.

    :param paths: files or directories (all files in them), relative to the data directory or absolute.
    :param seconds: how long to wait until the ledger has them.
    :returns: see :meth:`Telling.answer`.
    :raises ObjectNotFound: no such DAQ. :raises InvalidObjectState: it is over.
    :raises InvalidArgument: a path that leaves the data directory, or too many.
    """
    document = office.document("daq", task_id)
    task = office.live.get(task_id)
    if task is None or document["status"] in statuses.INACTIVE:
        raise InvalidObjectState(f"DAQ {task_id} is {document['status']}; files can be completed while it runs.")
    found: dict[bytes, str] = {}
    for text in paths:
        for path, state in _expanded(task, text):
            found[path] = state
            if len(found) > MOST:
                raise InvalidArgument(f"More than {MOST} files are named at once; name fewer.")
    telling = Telling(found)
    for path, state in found.items():
        if state:
            telling.settle(path, state)
    with office.pipeline.condition:
        task.told.append(telling)
    task.wake.set()
    with office.waits.place() as held:
        if held:
            telling.wait(seconds, office.stopping)
    return telling.answer()


def _expanded(task: Task, text: str) -> Iterator[tuple[bytes, str]]:
    """Yield the files that a path means, with what is known to become of them."""
    raw = encode(text)
    root = task.source.root
    if raw.startswith(b"/"):
        prefix = root.rstrip(b"/") + b"/"
        if raw.rstrip(b"/") == root.rstrip(b"/"):
            raw = b""
        elif not raw.startswith(prefix):
            raise InvalidArgument(f"Path {text!r} is not below the data directory {decode(root)!r}.")
        raw = raw[len(prefix) :]
    path = relative(raw) if raw.strip(b"/") not in (b"", b".") else b""
    if not task.source.is_local:
        yield path, "" if path else MISSING
        return
    try:
        if path:
            with opened_parent(root, path) as (parent, name):  # not through a link to somewhere else
                directory = stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
            if not directory:
                yield path, ""
                return
    except (DmException, OSError):
        yield path, MISSING
        return
    for entry in Walk(root, task.selection.enters, start=(path,)):
        yield entry.path, "" if entry.kind == "file" else IGNORED
