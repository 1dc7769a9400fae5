"""The thread of one DAQ or upload: watches its directory, decides what is whole, and sees the task to its end."""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable, Iterator

from dm.common import statuses
from dm.common.errors import DmException, ServiceUnavailable
from dm.common.paths import display
from dm.station.acquisition.closing import Closing
from dm.station.acquisition.completion import Rule, SettleTimes, Tracker, Verdict, look
from dm.station.acquisition.ledger import Item, State, path_key
from dm.station.acquisition.pipeline import Pipeline
from dm.station.acquisition.resume import resume
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.task import UPLOAD, Task
from dm.station.acquisition.transports.base import FileStamp, SourceEntry
from dm.station.acquisition.watch.filesystem import has_events
from dm.station.acquisition.watch.inotify import TreeWatch
from dm.station.acquisition.watch.scan import Walk, kind_of

_log = logging.getLogger(__name__)
_STEP = 2000  # entries of a walk looked at before events get their turn
_CANDIDATES = 20_000  # a walk pauses while so many files are waiting to be whole
_SCAN_SHARE = 10  # a walk is repeated at the earliest after so many times its own duration
_IDLE = 1.0
_KINDS = {"link": "a symbolic link; links are not followed", "other": "no regular file (fifo, socket or device)"}


class Runner:
    """See the module.

    :param closing: ends the task. :param ended: called with the task when its thread is over.
    """

    def __init__(
        self,
        task: Task,
        pipeline: Pipeline,
        settings: AcquisitionSettings,
        closing: Closing,
        ended: Callable[[Task], None],
    ) -> None:
        self.task = task
        self.pipeline = pipeline
        self.settings = settings
        self.closing = closing
        self.ended = ended
        scanned = settings.settle_upload_seconds if task.kind == UPLOAD else settings.settle_scanned_seconds
        root = task.source.root if task.source.is_local else None
        self.tracker = Tracker(
            root, SettleTimes(settings.settle_closed_seconds, scanned, settings.settle_temporary_seconds)
        )
        task.settling = lambda: self.tracker.waiting(limit=len(self.tracker))
        self.watch: TreeWatch | None = None
        self.thread = threading.Thread(target=self._run, name=f"{task.kind}-{task.id[:8]}", daemon=True)
        self._walk: Iterator[SourceEntry] | None = None
        self._walked: Walk | None = None
        self._walk_started = 0.0
        self._walks = 0
        self._next_walk = 0.0
        self._new_directories: dict[bytes, None] = {}
        self._unwritten: list[tuple[bytes, FileStamp, Rule]] = []
        self._skipped: list[tuple[Item, State, dict[str, str]]] = []
        self._retry = 0
        self._not_before = 0.0
        self._finalizing = False
        self._final_walk = 0
        self._final_deadline = 0.0

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    # --- life -------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        task = self.task
        try:
            self._insist(lambda: resume(task, self.pipeline))
            self.pipeline.attach(task)
            self._open_watch()
            if task.status == statuses.PENDING:
                self._insist(lambda: task.set(status=statuses.RUNNING))
            while not self._stopped() and not self._turn():
                pass
            if not self._stopped():
                self._insist(lambda: self.closing.close(task))
        except _Stopped:
            _log.info("%s %s pauses: the service stops.", task.kind, task.id)
        except Exception:
            _log.exception("%s %s stopped unexpectedly; a restart of the service continues it.", task.kind, task.id)
            task.trouble = "Its thread stopped unexpectedly; a restart of the service continues it."
        finally:
            self.pipeline.detach(task)
            if self.watch is not None:
                self.watch.close()
            self.ended(task)
            task.wake.close()

    def _stopped(self) -> bool:
        return self.pipeline.stop_event.is_set()

    def _insist(self, action: Callable[[], object]) -> None:
        """Do something, again and again while the database or a service is down."""
        attempt = 0
        while True:
            if self._stopped():
                raise _Stopped
            try:
                action()
                return
            except DmException as error:
                attempt += 1
                self.task.trouble = error.message
                _log.warning("%s %s waits: %s", self.task.kind, self.task.id, error)
                self.pipeline.stop_event.wait(self.pipeline.pause_for(attempt))

    def _open_watch(self) -> None:
        task = self.task
        if task.kind == UPLOAD or not task.source.is_local:
            return
        wanted = self.settings.watch
        if wanted == "events" or (wanted == "auto" and has_events(task.source.root)):
            try:
                self.watch = TreeWatch(task.source.root)
            except OSError as error:
                _log.warning("No events for %s: %s; it is polled.", display(task.source.root), error.strerror)

    # --- one turn ---------------------------------------------------------------------------------------------------
    def _turn(self) -> bool:
        """Do what there is to do, waiting a little for it; return whether the task has come to its end."""
        task = self.task
        self._sleep()
        now = time.monotonic()
        if task.halted:
            return self._wind_down()
        self._events(now)
        self._inbox(now)
        self._walk_on(now)
        self._decide(now)
        self._write(now)
        if task.spilled and now >= self._not_before:
            self._try(lambda: self.pipeline.refill(task))
        if task.aborting:
            return self._wind_down()
        if not self._finalizing and self._over(now):
            self._finalize(now)
        return self._finalizing and self._finished(now)

    def _sleep(self) -> None:
        now = time.monotonic()
        moments = [now + _IDLE, max(self._next_walk, now)]
        if (due := self.tracker.next_due()) is not None and self.tracker.root is not None:
            moments.append(due)
        if self.task.deadline is not None:
            moments.append(self.task.deadline)
        if self._unwritten or self._skipped:
            moments.append(self._not_before)
        wait = max(0.0, min(moments) - now)
        if self._walk is not None and not self._crowded():
            wait = 0.0
        poller = select.poll()
        poller.register(self.task.wake.fileno(), select.POLLIN)
        if self.watch is not None and not self._finalizing:
            poller.register(self.watch.fileno(), select.POLLIN)
        poller.poll(wait * 1000 + (1 if wait else 0))
        self.task.wake.clear()

    def _crowded(self) -> bool:
        return len(self.tracker) >= _CANDIDATES or bool(self._unwritten)

    def _events(self, now: float) -> None:
        if self.watch is None or self._finalizing:
            return
        self._take_events(now)

    def _take_events(self, now: float) -> None:
        assert self.watch is not None
        task = self.task
        changes = self.watch.read()
        for path in changes.files:
            if task.selection.takes(path):
                if task.ledger.state(path) is State.BASELINE:
                    task.ledger.forget(path)  # it lay there before, but somebody has written it since
                self.tracker.offer(path, None, Rule.CLOSED, now)
        for directory in changes.directories:
            if task.selection.enters(directory):
                self._new_directories[directory] = None
        if changes.overflow:
            _log.warning("%s %s: the kernel lost events; the whole directory is looked through.", task.kind, task.id)
        if changes.overflow or changes.root_gone:
            self._walk, self._next_walk = None, now

    def _inbox(self, now: float) -> None:
        """Look again at files the pipeline found changed."""
        task = self.task
        while True:
            with self.pipeline.condition:
                if not task.inbox:
                    return
                path = task.inbox.popleft()
                # Not idle before the tracker has it, or it is gone.
                if task.source.is_local and look(task.source.root + b"/" + path)[0] is None:
                    self._gone(path)
                else:
                    self.tracker.offer(path, None, Rule.CLOSED, now)
                    if not task.source.is_local:
                        self._next_walk = min(self._next_walk, now + self.settings.polling_seconds)

    # --- walking ----------------------------------------------------------------------------------------------------
    def _walk_on(self, now: float) -> None:
        """Go on with the present walk a bit, or begin the next one when it is due."""
        if self._crowded():
            return
        if self._walk is None:
            if now < self._next_walk and not self._new_directories:
                return
            self._begin_walk(now)
        assert self._walk is not None
        try:
            for _count in range(_STEP):
                entry = next(self._walk, None)
                if entry is None:
                    self._end_walk()
                    return
                self._seen(entry, now)
        except DmException as error:
            self.task.trouble = error.message
            self._end_walk()

    def _begin_walk(self, now: float) -> None:
        task = self.task
        self._walk_started = now
        full = now >= self._next_walk
        if not task.source.is_local:
            self._walked = None
            self._walk = task.transport.walk(task.source, task.selection.only or b"")
            return
        if task.selection.only is not None:
            self._walked = None
            self._walk = _one(task.source.root, task.selection.only)
            return
        start = (b"",) if full else tuple(self._new_directories)
        self._new_directories.clear()
        before = self.watch.add if self.watch is not None else _always
        self._walked = Walk(task.source.root, task.selection.enters, before, start)
        self._walk = iter(self._walked)

    def _end_walk(self) -> None:
        now = time.monotonic()
        walked, self._walk, self._walked = self._walked, None, None
        if walked is not None and walked.start != (b"",):
            return
        self._walks += 1
        if walked is not None and walked.problems:
            self.task.trouble = next(iter(walked.problems.values()))
        evented = self.watch is not None and not self.watch.exhausted
        interval = self.settings.scan_seconds if evented else self.settings.polling_seconds
        self._next_walk = now + max(interval, _SCAN_SHARE * (now - self._walk_started))
        if self._finalizing or self.task.kind == UPLOAD:
            self._next_walk = now + (_IDLE if self.tracker.root is None else 3600)

    def _seen(self, entry: SourceEntry, now: float) -> None:
        task = self.task
        if not task.selection.takes(entry.path):
            return
        known = task.ledger.knows(entry.path, entry.stamp)
        if entry.kind != "file":
            if known is None:
                item = Item(entry.path, entry.stamp.size, entry.stamp.mtime_ns, "")
                self._skipped.append((item, State.SKIPPED, {"lastError": f"Skipped: {_KINDS[entry.kind]}."}))
            return
        if known is not None:
            return
        if self.tracker.offer(entry.path, entry.stamp, Rule.SETTLED, now):
            self._accept([(entry.path, entry.stamp, Rule.SETTLED)])

    # --- deciding ---------------------------------------------------------------------------------------------------
    def _decide(self, now: float) -> None:
        if self._unwritten:
            return
        found = []
        for path, verdict, stamp, rule in self.tracker.take(now):
            if verdict is Verdict.GONE:
                self._gone(path)
            elif verdict is Verdict.OTHER:
                self._next_walk = now  # a walk says what it is now
            elif stamp is not None and self.task.ledger.knows(path, stamp) is None:
                found.append((path, stamp, rule))
        self._accept(found)

    def _accept(self, found: list[tuple[bytes, FileStamp, Rule]]) -> None:
        """Take whole files; one that is still on its way from before waits until that is over."""
        task = self.task
        with self.pipeline.condition:
            for path, stamp, rule in found:
                if path_key(path) in task.busy:
                    task.deferred.add(path)
                else:
                    self._unwritten.append((path, stamp, rule))

    def _gone(self, path: bytes) -> None:
        if self.task.ledger.state(path) is State.READY and path_key(path) not in self.task.busy:
            self._skipped.append((Item(path, 0, 0, ""), State.VANISHED, {"lastError": ""}))

    def _write(self, now: float) -> None:
        """Write what was found into the ledger and hand it to the pipeline."""
        if now < self._not_before:
            return
        if self._unwritten:
            found = self._unwritten
            if not self._try(lambda: self.pipeline.add(self.task, self.task.ledger.ready(found))):
                return
            self._unwritten = []
        if self._skipped:
            skipped = self._skipped
            if self._try(lambda: self.task.ledger.finish([(item, state, dict(why)) for item, state, why in skipped])):
                self._skipped = []

    def _try(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except ServiceUnavailable as error:
            self._retry += 1
            self._not_before = time.monotonic() + self.pipeline.pause_for(self._retry)
            self.task.trouble = error.message
            return False
        self._retry = 0
        return True

    # --- ending -----------------------------------------------------------------------------------------------------
    def _over(self, now: float) -> bool:
        task = self.task
        if task.stopping or (task.deadline is not None and now >= task.deadline):
            return True
        return task.kind == UPLOAD and self._walks > 0

    def _finalize(self, now: float) -> None:
        """From now on no new event counts; one more walk finds what was written before."""
        self._insist(lambda: self.task.set(status=statuses.FINALIZING))
        if self.watch is not None:
            self._take_events(now)
        self._finalizing = True
        self._final_deadline = now + self.settings.finalize_seconds
        self.tracker.hurry(now)
        self._final_walk = self._walks
        if self.task.kind != UPLOAD:
            self._final_walk += 1
            self._walk, self._next_walk = None, now

    def _finished(self, now: float) -> bool:
        task = self.task
        if self._walks < self._final_walk or self._walk is not None or self._new_directories:
            return False
        if len(self.tracker) and now >= self._final_deadline:
            for path in self.tracker.waiting(limit=len(self.tracker)):
                self.tracker.drop(path)
                why = f"The file was still changing {self.settings.finalize_seconds:g} s after the end."
                self._skipped.append((Item(path, 0, 0, ""), State.FAILED, {"lastError": why}))
        if len(self.tracker) or self._unwritten or self._skipped:
            return False
        with self.pipeline.condition:
            return task.idle

    def _wind_down(self) -> bool:
        """Give up what has not begun; return whether what has begun is over."""
        task = self.task
        with self.pipeline.condition:
            task.queue.clear()
            task.delayed.clear()
            task.spilled = False
            task.deferred.clear()
            task.inbox.clear()
            if task.active:
                return False
            if task.halted:
                return True
            if not self._final_deadline:
                self._final_deadline = time.monotonic() + self.settings.finalize_seconds
            # What storage has already is seen to its end, unless that takes too long.
            return not task.batches or time.monotonic() >= self._final_deadline


def _one(root: bytes, path: bytes) -> Iterator[SourceEntry]:
    stamp, mode = look(root + b"/" + path)
    if stamp is not None:
        yield SourceEntry(path, stamp, kind_of(mode))


def _always(_directory: bytes) -> bool:
    return True


class _Stopped(Exception):  # noqa: N818 - not an error
    """The service stops."""
