"""Finding the files of a data directory: events as hints, walks as the truth."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

from dm.common.errors import DmException
from dm.common.paths import display
from dm.station.acquisition.completion import look
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.task import UPLOAD, Task
from dm.station.acquisition.transports.base import SourceEntry
from dm.station.acquisition.watch.filesystem import has_events
from dm.station.acquisition.watch.inotify import TreeWatch
from dm.station.acquisition.watch.scan import Walk, kind_of

_log = logging.getLogger(__name__)
_STEP = 2000  # entries of a walk looked at before events get their turn
_SHARE = 10  # a walk is repeated at the earliest after so many times its own duration
_REMOTE_SHARE = 2  # the same for another host, where most of the duration is waiting
_FINAL_REMOTE_SECONDS = 1.0  # between the last walks of a source on another host
_NEVER = 86_400.0


class Scout:
    """Watches and walks one data directory; not thread safe.

    :ivar walks: complete walks so far. :ivar problems: what the last complete walk could not look into; the empty path
        stands for the data directory itself. :ivar final: no more events, and walks only as they are needed.
    """

    def __init__(self, task: Task, settings: AcquisitionSettings) -> None:
        self.task = task
        self.settings = settings
        self.walks = 0
        self.problems: dict[bytes, str] = {}
        self.final = task.kind == UPLOAD
        self._watch: TreeWatch | None = None
        self._walk: Iterator[SourceEntry] | None = None
        self._walked: Walk | None = None
        self._started = 0.0
        self._next = 0.0
        self._new_directories: dict[bytes, None] = {}

    def open(self) -> None:
        """Start to listen, where there is something to hear."""
        task = self.task
        if task.kind == UPLOAD or not task.source.is_local:
            return
        wanted = self.settings.watch
        if wanted == "events" or (wanted == "auto" and has_events(task.source.root)):
            try:
                self._watch = TreeWatch(task.source.root)
            except OSError as error:
                _log.warning("No events for %s: %s; it is polled.", display(task.source.root), error.strerror)

    def close(self) -> None:
        """Stop listening."""
        if self._watch is not None:
            self._watch.close()

    # --- when -------------------------------------------------------------------------------------------------------
    def descriptor(self) -> int | None:
        """Return what to poll for reading, if anything."""
        return self._watch.fileno() if self._watch is not None and not self.final else None

    @property
    def walking(self) -> bool:
        """Whether a walk is under way."""
        return self._walk is not None or bool(self._new_directories)

    @property
    def next(self) -> float:
        """When the next walk is due (monotonic seconds)."""
        return self._next

    def look_at_all(self, when: float) -> None:
        """Have everything looked through at that time at the latest."""
        self._next = min(self._next, when)

    def start_over(self, now: float) -> None:
        """Give up the present walk and look at everything now."""
        self._walk, self._walked, self._next = None, None, now

    # --- what -------------------------------------------------------------------------------------------------------
    def events(self, now: float) -> list[bytes]:
        """Return the files that were closed or moved in since the last call."""
        if self._watch is None or self.final:
            return []
        task = self.task
        changes = self._watch.read()
        for directory in changes.directories:
            if task.selection.enters(directory):
                self._new_directories[directory] = None
        if changes.overflow:
            _log.warning("%s %s: the kernel lost events; the whole directory is looked through.", task.kind, task.id)
        if changes.overflow or changes.root_gone:
            self.start_over(now)
        return [path for path in changes.files if task.selection.takes(path)]

    def step(self, now: float) -> list[SourceEntry]:
        """Go on a bit with the walk under way, or begin one that is due, and return what was seen."""
        if self._walk is None:
            if now < self._next and not self._new_directories:
                return []
            self._begin(now)
        assert self._walk is not None
        found: list[SourceEntry] = []
        try:
            while len(found) < _STEP:
                entry = next(self._walk, None)
                if entry is None:
                    self._end()
                    break
                if self.task.selection.takes(entry.path):
                    found.append(entry)
        except DmException as error:  # another host did not answer: nothing is known, so nothing was walked
            self.task.trouble = error.message
            self._walk, self._next = None, time.monotonic() + self.settings.polling_seconds
        return found

    def _begin(self, now: float) -> None:
        task = self.task
        self._started = now
        self._walked = None
        if not task.source.is_local:
            self._walk = task.transport.walk(task.source, task.selection.only or b"")
            return
        if task.selection.only is not None:
            self._walk = _one(task.source.root, task.selection.only)
            return
        start = (b"",) if now >= self._next else tuple(self._new_directories)
        self._new_directories.clear()
        before = self._watch.add if self._watch is not None else _always
        self._walked = Walk(task.source.root, task.selection.enters, before, start)
        self._walk = iter(self._walked)

    def _end(self) -> None:
        now = time.monotonic()
        walked, self._walk, self._walked = self._walked, None, None
        if walked is not None and walked.start != (b"",):
            return
        self.walks += 1
        self.problems = walked.problems if walked is not None else {}
        if self.problems:
            self.task.trouble = next(iter(self.problems.values()))
        if self.final:
            self._next = now + (_NEVER if self.task.source.is_local else _FINAL_REMOTE_SECONDS)
            return
        evented = self._watch is not None and not self._watch.exhausted and b"" not in self.problems
        interval = self.settings.scan_seconds if evented else self.settings.polling_seconds
        share = _SHARE if self.task.source.is_local else _REMOTE_SHARE
        self._next = now + max(interval, share * (now - self._started))


def _one(root: bytes, path: bytes) -> Iterator[SourceEntry]:
    stamp, mode = look(os.path.join(root, path))
    if stamp is not None:
        yield SourceEntry(path, stamp, kind_of(mode))


def _always(_directory: bytes) -> bool:
    return True
