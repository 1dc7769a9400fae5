"""Finding the files of a data directory: events as hints, walks as the truth.

Three kinds of walks: over everything, looking at every file (the reconcile: at the start, after lost events, and from
time to time); over a new directory, after it is watched; and, where there are no events, often over the directories
alone, of which only those are read that changed. How often is a matter of what it costs: a share of one core, so that a
large tree is looked at less often rather than all the time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dm.common import timestamps
from dm.common.errors import DmException
from dm.station.acquisition.completion import look
from dm.station.acquisition.rows import State
from dm.station.acquisition.rules.base import CompletionRule
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.task import UPLOAD, Task
from dm.station.acquisition.transports.base import SourceEntry
from dm.station.acquisition.watch.filesystem import Method, Mount, MountTable, method_of, mounts_of
from dm.station.acquisition.watch.inotify import TreeWatch
from dm.station.acquisition.watch.polling import DirectoryTimes
from dm.station.acquisition.watch.scan import Walk, kind_of

_log = logging.getLogger(__name__)
_STEP = 2000  # entries of a walk looked at before events get their turn
_STEP_SECONDS = 0.1
_REST = 120  # a walk is repeated at the earliest after so many times the processor time it took: 0.8 % of a core
_REST_BUSY = 10  # the same when it found something: files are coming, and are waited for
_REST_WALL = 2  # the same with the time it took, which on another host or file server is mostly waiting
_FINAL_REMOTE_SECONDS = 1.0  # between the last walks of a source on another host
_LOOK_SECONDS = 1.0  # between looks at the data directory itself
_NEVER = 86_400.0
WATCH_KEYS = (  # of info records
    "watchMethod", "watchNote", "nFilesFoundByScan", "lastReconcileTime", "lastReconcileTimestamp",
    "lastReconcileSeconds",
)  # fmt: skip
_SEEN = frozenset(State) - {State.VANISHED}


class _Kind(Enum):
    ALL = "all"
    PART = "part"
    QUICK = "quick"


@dataclass
class Hints:
    """What events say.

    :param closed: files that were closed after writing, or moved in. :param woken: files to look at for other reasons.
    """

    closed: list[bytes] = field(default_factory=list)
    woken: list[bytes] = field(default_factory=list)


class Scout:
    """Watches and walks one data directory; not thread safe.

    :param rule: knows which names are wanted, and which wake others.
    :ivar walks: complete walks so far. :ivar problems: what the last complete walk could not look into; the empty path
        stands for the data directory itself. :ivar final: no more events, and walks only as they are needed.
    :ivar reconciling: entries of :meth:`step` come from a walk over everything that is not the first one.
    :ivar unannounced: files taken that only such walks found; counted by the watching thread.
    """

    def __init__(self, task: Task, settings: AcquisitionSettings, rule: CompletionRule) -> None:
        self.task = task
        self.settings = settings
        self.rule = rule
        self.walks = 0
        self.problems: dict[bytes, str] = {}
        self.final = task.kind == UPLOAD
        self.reconciling = False
        self.unannounced = 0
        self._wakes = type(rule).wakes is not CompletionRule.wakes
        self._method: Method = "polling"
        self._note = ""
        self._watch: TreeWatch | None = None
        self._mounts: MountTable | None = None
        self._mounted: list[Mount] = []
        self._identity: tuple[int, int] | None = None
        self._looked = 0.0
        self._times = DirectoryTimes()
        self._walk: Iterator[list[SourceEntry]] | None = None
        self._walked: Walk | None = None
        self._kind = _Kind.ALL
        self._started = 0.0
        self._cost = 0.0
        self._found = 0
        self._next = 0.0
        self._next_quick = _NEVER
        self._new_directories: dict[bytes, None] = {}
        self._reconciled = 0.0  # epoch seconds
        self._reconcile_seconds = 0.0

    def open(self) -> None:
        """Start to listen, where there is something to hear."""
        task = self.task
        if task.kind == UPLOAD or not task.source.is_local:
            self._note = "" if task.source.is_local else "the data directory is on another host"
            return
        self._mounts = MountTable()
        self._mounted = mounts_of(task.source.root)
        self._identity = self._root_identity()
        self._choose()

    def _choose(self) -> None:
        """Choose between events and polling."""
        root = self.task.source.root
        wanted = self.task.spec.watch_method or self.settings.watch
        self._note = ""
        if wanted == "auto":
            self._method, kind = method_of(root)
            if self._method != "events":
                self._note = f"file system {kind}"
        else:
            self._method = wanted
        if self._method == "polling":
            self._unwatch()
        elif self._watch is None:
            try:
                self._watch = TreeWatch(root)
            except OSError as error:
                self._method = "polling"
                self._note = f"no events: {error.strerror}; raise fs.inotify.max_user_instances"
                _log.warning("%s %s is polled: %s.", self.task.kind, self.task.id, self._note)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def close(self) -> None:
        """Stop listening."""
        self._unwatch()
        if self._mounts is not None:
            self._mounts.close()
            self._mounts = None

    def report(self) -> dict[str, Any]:
        """Return what info records tell of the watch (any thread)."""
        found: dict[str, Any] = {"watchMethod": self._effective(), "nFilesFoundByScan": self.unannounced}
        if self._note:
            found["watchNote"] = self._note
        if self._reconciled:
            found["lastReconcileTime"] = self._reconciled
            found["lastReconcileTimestamp"] = timestamps.text(self._reconciled)
            found["lastReconcileSeconds"] = round(self._reconcile_seconds, 3)
        return found

    def _effective(self) -> str:
        if self.task.kind == UPLOAD:
            return "scan"
        watch = self._watch
        return "both" if watch is not None and watch.exhausted else self._method

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
        return min(self._next, self._next_quick)

    def look_at_all(self, when: float) -> None:
        """Have everything looked through at that time at the latest."""
        self._next = min(self._next, when)

    def start_over(self, now: float) -> None:
        """Give up the present walk and look at everything now."""
        self._walk, self._walked, self._next = None, None, now

    # --- events -----------------------------------------------------------------------------------------------------
    def events(self, now: float) -> Hints:
        """Return what happened since the last call."""
        hints = Hints()
        if self.final:
            return hints
        self._look_at_root(now)
        if self._watch is None:
            return hints
        task = self.task
        changes = self._watch.read()
        task.meters.watch_events.inc(len(changes.files))
        task.meters.watch_overflows.inc(bool(changes.overflow))
        for directory in changes.directories:
            if task.selection.enters(directory):
                self._new_directories[directory] = None
        if changes.overflow:
            _log.warning("%s %s: the kernel lost events; the whole directory is looked through.", task.kind, task.id)
        if changes.overflow or changes.root_gone:
            self.start_over(now)
        for path in changes.files:
            if self.wanted(path):
                hints.closed.append(path)
            if self._wakes:
                hints.woken += self.woken_by(path)
        return hints

    def wanted(self, path: bytes) -> bool:
        """Whether a file of that name is taken."""
        return self.task.selection.takes(path) and self.rule.wants(path)

    def woken_by(self, path: bytes) -> list[bytes]:
        """Return the files to look at because this one appeared; directories are walked by :meth:`step`."""
        files = []
        for woken in self.rule.wakes(path):
            if not woken.endswith(b"/"):
                files.append(woken)
            elif (directory := woken.rstrip(b"/")) == b"" or self.task.selection.enters(directory):
                self._new_directories[directory] = None
        return [woken for woken in files if self.wanted(woken)]

    def _root_identity(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.task.source.root)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _look_at_root(self, now: float) -> None:
        """Look whether the data directory is another one now: mounted over, a link that was turned, moved and back."""
        if self._mounts is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if self._mounts.changed() and (mounted := mounts_of(self.task.source.root)) != self._mounted:
            # What is mounted on a directory inside hides what we watch there: a walk watches what is on top.
            self._mounted = mounted
            self._choose()
            self.start_over(now)
        identity = self._root_identity()
        if identity != self._identity:
            self._identity = identity
            self.start_over(now)

    # --- walks ------------------------------------------------------------------------------------------------------
    def step(self, now: float) -> list[SourceEntry]:
        """Go on a bit with the walk under way, or begin one that is due, and return what is not known in this shape."""
        if self._walk is None:
            if now < self.next and not self._new_directories:
                return []
            self._begin(now)
        assert self._walk is not None
        self.reconciling = self._kind is _Kind.ALL and self.walks > 0 and not self.final
        found: list[SourceEntry] = []
        ledger = self.task.ledger
        began = time.thread_time()
        deadline = time.monotonic() + _STEP_SECONDS
        ended = False
        try:
            while not ended and len(found) < _STEP and time.monotonic() < deadline:
                chunk = next(self._walk, None)
                ended = chunk is None
                for entry in chunk or ():
                    if self.wanted(entry.path):
                        if ledger.knows(entry.path, entry.stamp) is None:
                            found.append(entry)
                    elif self._wakes and not self.task.source.is_local:
                        self.rule.wakes(entry.path)  # it remembers markers of another host
        except DmException as error:  # another host did not answer: nothing is known, so nothing was walked
            self.task.trouble = error.message
            self._walk, self._next = None, time.monotonic() + self.settings.polling_seconds
        self._cost += time.thread_time() - began
        self._found += len(found)
        if ended:
            self._end()
        return found

    def _begin(self, now: float) -> None:
        task = self.task
        self._started, self._cost, self._found, self._walked = now, 0.0, 0, None
        self._kind = _Kind.ALL
        if not task.source.is_local:
            self._walk = ([entry] for entry in task.transport.walk(task.source, task.selection.only or b""))
            return
        if task.selection.only is not None:
            self._walk = _one(task.source.root, task.selection.only)
            return
        if now >= self._next:
            self._walked = self._whole()
        elif self._new_directories:
            self._kind = _Kind.PART
            self._walked = self._part(tuple(self._new_directories))
        else:
            self._kind = _Kind.QUICK
            self._walked = self._quick()
        self._new_directories.clear()
        self._walk = self._walked.chunks()

    def _whole(self) -> Walk:
        self._times.begin()
        if self._watch is not None:
            self._watch.begin()
        return self._part((b"",))

    def _part(self, start: tuple[bytes, ...]) -> Walk:
        def opened(directory: bytes, descriptor: int) -> bool:
            self._times.note(directory, descriptor)
            return True

        before = self._watch.add if self._watch is not None else _always
        return Walk(self.task.source.root, self.task.selection.enters, before, start, opened)

    def _quick(self) -> Walk:
        """Return a walk over the known directories that reads only those whose time changed."""
        known, ledger = self._times, self.task.ledger

        def enters(directory: bytes) -> bool:
            return directory not in known and self.task.selection.enters(directory)

        def passes(path: bytes) -> bool:
            # Only names that nobody has seen are looked at; those that wait to be whole are none of those.
            return ledger.state(path) in _SEEN

        start = known.directories()
        known.begin()
        before = self._watch.add if self._watch is not None else _always
        return Walk(self.task.source.root, enters, before, start, known.note, passes)

    def _end(self) -> None:
        now = time.monotonic()
        walked, self._walk, self._walked = self._walked, None, None
        if self._kind is _Kind.PART:
            return
        self._times.end()
        wall = now - self._started
        if self._kind is _Kind.ALL:
            if self._watch is not None:
                self._watch.sweep()
                self._tell_limit()
            self.walks += 1
            self.task.meters.walks.inc()
            self.problems = walked.problems if walked is not None else {}
            if self.problems:
                self.task.trouble = next(iter(self.problems.values()))
            self._reconciled, self._reconcile_seconds = timestamps.now(), wall
            self._plan_reconcile(now, wall)
        self._plan_quick(now, wall)

    def _plan_reconcile(self, now: float, wall: float) -> None:
        settings, local = self.settings, self.task.source.is_local
        if self.final:
            self._next = now + (_NEVER if local else _FINAL_REMOTE_SECONDS)
        elif not local:
            self._next = now + max(settings.polling_seconds, _REST_WALL * wall)
        elif b"" in self.problems:  # it may come back
            self._next = now + settings.polling_seconds
        else:
            self._next = now + max(settings.scan_seconds, _REST * self._cost, _REST_WALL * wall)

    def _plan_quick(self, now: float, wall: float) -> None:
        if self.final or not self.task.source.is_local or self._effective() == "events" or b"" in self.problems:
            self._next_quick = now + _NEVER
            return
        rest = _REST_BUSY if self._found else _REST
        cost = self._cost if self._kind is _Kind.QUICK else 0.0
        self._next_quick = now + max(self.settings.polling_seconds, rest * cost, _REST_WALL * wall)

    def _tell_limit(self) -> None:
        """Say it when the system's limit of watches is reached, and when it is not any more."""
        reached = self._watch is not None and self._watch.exhausted
        text = "polled, too: the limit of inotify watches is reached; raise fs.inotify.max_user_watches"
        if reached and self._note != text:
            self._note = text
            _log.warning("%s %s is %s.", self.task.kind, self.task.id, text)
        elif not reached and self._note == text:
            self._note = ""


def _one(root: bytes, path: bytes) -> Iterator[list[SourceEntry]]:
    stamp, mode = look(os.path.join(root, path))
    if stamp is not None:
        yield [SourceEntry(path, stamp, kind_of(mode))]


def _always(_directory: bytes) -> bool:
    return True
