"""The thread of one DAQ or upload: decides which files are whole, and sees the task to its end."""

from __future__ import annotations

import os
import select
import stat
import time
from typing import Any

from dm.common import statuses
from dm.station.acquisition import telling as telling_
from dm.station.acquisition.amends import feed
from dm.station.acquisition.completion import Decision, Rule, SettleTimes, Tracker, Verdict, look
from dm.station.acquisition.life import Life, Means
from dm.station.acquisition.rows import Item, State, path_key
from dm.station.acquisition.rules import choice
from dm.station.acquisition.rules.base import RuleContext
from dm.station.acquisition.scout import Scout
from dm.station.acquisition.task import UPLOAD, Task
from dm.station.acquisition.transports.base import FileStamp, SourceEntry
from dm.station.acquisition.watch.filesystem import method_of

_CANDIDATES = 20_000  # a walk pauses while so many files are waiting to be whole
_IDLE = 1.0
_NOTHING = FileStamp(0, 0)
_TAKEN = frozenset({State.READY, State.STORED, State.DONE, State.FAILED})
_KINDS = {"link": "a symbolic link; links are not followed", "other": "no regular file (fifo, socket or device)"}


class Runner(Life):
    """See the module.

    :raises InvalidArgument: the task's completion rule is not to be had any more.
    """

    def __init__(self, task: Task, means: Means) -> None:
        super().__init__(task, means)
        self.settings = settings = means.settings
        scanned = settings.settle_upload_seconds if task.kind == UPLOAD else settings.settle_scanned_seconds
        times = SettleTimes(
            settings.settle_closed_seconds,
            scanned,
            settings.settle_temporary_seconds,
            settings.settle_proven_seconds,
        )
        root = task.source.root if task.source.is_local else None
        local = root is not None and method_of(root)[0] == "events"
        default = choice.DEFAULT if task.kind == UPLOAD else settings.completion_rule
        self.rule = choice.build(
            task.spec.completion_rule or default,
            task.spec.completion_args,
            settings.completion,
            RuleContext(root, times, local=local),
        )
        self.tracker = Tracker(root, self.rule, remote=root is not None and not local)
        self.tracker.woken = task.wake.set
        self.scout = Scout(task, settings, self.rule)
        task.settling = lambda: list(self.tracker.paths())
        task.waiting, task.waiting_for = self.tracker.waiting, self.tracker.waiting_for
        task.watched = self._watched
        self._unwritten: list[tuple[bytes, FileStamp, Rule]] = []
        self._skipped: list[tuple[Item, State, str]] = []
        self._finalizing = False
        self._final_walk = 0
        self._final_deadline = 0.0
        self._recheck = 0.0
        self._told = telling_.Told()
        self._walks = 0

    def _open(self) -> None:
        self.scout.open()

    def _look_again(self) -> None:
        self.scout.start_over(time.monotonic())

    def _close(self) -> None:
        self.scout.close()
        self.rule.close()

    # --- one turn ---------------------------------------------------------------------------------------------------
    def _turn(self) -> bool:
        task = self.task
        self._sleep()
        task.note_pace()
        now = time.monotonic()
        if task.kind == UPLOAD and task.out_of_time and not (task.aborting or task.document.get("reopened")):
            self._insist(lambda: task.set(abortRequested=True, outOfTime=True, status=statuses.ABORTING))
            task.aborting = True
        if task.halted or task.aborting:
            return self._wind_down(now)
        self._hints(now)
        self._inbox(now)
        self._messages(now)
        if not self._crowded():
            for entry in self.scout.step(now):
                self._seen(entry, now)
        if self.scout.walks != self._walks:  # what waits for a marker, say, may have gone
            self._walks = self.scout.walks
            self.tracker.recheck(now)
        self._decide(now)
        self._write(now)
        if task.spilled and now >= self._not_before:
            self._try(lambda: self.pipeline.refill(task))
        if task.unfed and now >= max(self._not_before, task.feed_at):
            self._try(lambda: feed(task, self.pipeline))
        if not self._finalizing and self._over(now):
            self._finalize(now)
        return self._finalizing and self._finished(now)

    def _sleep(self) -> None:
        now = time.monotonic()
        moments = [now + _IDLE]
        if not self._crowded():
            moments.append(now if self.scout.walking else self.scout.next)
        if (due := self.tracker.next_due()) is not None and self.tracker.root is not None and not self._unwritten:
            moments.append(due)
        if self.task.deadline is not None and not self.task.out_of_time:
            moments.append(self.task.deadline)
        if self._unwritten or self._skipped:
            moments.append(self._not_before)
        wait = max(0.0, min(moments) - now)
        poller = select.poll()
        poller.register(self.task.wake.fileno(), select.POLLIN)
        if (descriptor := self.scout.descriptor()) is not None:
            poller.register(descriptor, select.POLLIN)
        poller.poll(wait * 1000 + (1 if wait else 0))
        self.task.wake.clear()

    def _crowded(self) -> bool:
        return self.tracker.busy >= _CANDIDATES or bool(self._unwritten)

    def _watched(self) -> dict[str, Any]:
        """Return what info records tell of the watch."""
        return {"nSettlingFiles": len(self.tracker), **self.scout.report()}

    # --- what was found ---------------------------------------------------------------------------------------------
    def _hints(self, now: float) -> None:
        """Take in what events say."""
        hints = self.scout.events(now)
        for path in hints.closed:
            state = self.task.ledger.state(path)
            if state is State.BASELINE:
                self.task.ledger.forget(path)  # it lay there before, but somebody has written it since
            self.tracker.offer(path, None, now, closed=True, again=state in _TAKEN)
        for path in hints.woken:
            self.tracker.offer(path, None, now)

    def _inbox(self, now: float) -> None:
        """Look again at files the pipeline found changed."""
        task = self.task
        while True:
            with self.pipeline.condition:  # until it is in the tracker, the inbox says that the task is not idle
                if not task.inbox:
                    return
                path = task.inbox.popleft()
                if not task.source.is_local:
                    self.tracker.offer(path, None, now)
                    self.scout.look_at_all(now + self.settings.polling_seconds)
                elif look(os.path.join(task.source.root, path))[0] is None:
                    self._gone(path)
                else:
                    self.tracker.offer(path, None, now, closed=True, again=True)

    def _seen(self, entry: SourceEntry, now: float) -> None:
        if entry.kind != "file":
            item = Item(entry.path, entry.stamp.size, entry.stamp.mtime_ns, "")
            self._skipped.append((item, State.SKIPPED, f"Skipped: {_KINDS[entry.kind]}."))
            return
        decided = self.tracker.offer(entry.path, entry.stamp, now, unannounced=self.scout.reconciling)
        if decided is not None:
            self._accept([decided])

    def _messages(self, now: float) -> None:
        """Take in what writers say."""
        task = self.task
        while True:
            with self.pipeline.condition:
                if not task.told:
                    return
                telling = task.told.popleft()
            for path, state in list(telling.states.items()):
                if state == telling_.PENDING:
                    self._told.expect(path, telling)
                    self._message(path, now)

    def _message(self, path: bytes, now: float) -> None:
        task, stamp = self.task, None
        if not self.scout.wanted(path) or path_key(path) in task.declined:
            self._told.settle(path, telling_.IGNORED)
            return
        if task.source.is_local:
            stamp, mode = look(os.path.join(task.source.root, path))
            if stamp is None or not stat.S_ISREG(mode):
                self._told.settle(path, telling_.MISSING if stamp is None else telling_.IGNORED)
                return
            state = task.ledger.knows(path, stamp)
            if state in _TAKEN:
                self._told.settle(path, telling_.TAKEN)
                return
            if state is not None:  # it lay there before, say; but now somebody wants it
                task.ledger.forget(path)
        else:
            self.scout.look_at_all(now)
        decided = self.tracker.offer(path, stamp, now, closed=task.source.is_local, told=True)
        if decided is not None:
            self._accept([decided])

    # --- deciding ---------------------------------------------------------------------------------------------------
    def _decide(self, now: float) -> None:
        if self._unwritten:
            return
        found = []
        for decided in self.tracker.take(now):
            path = decided.path
            if decided.verdict is Verdict.GONE:
                self._gone(path)
                self._told.settle(path, telling_.MISSING)
            elif decided.verdict is Verdict.OTHER:
                self.scout.look_at_all(now)  # a walk says what it is now
                self._told.settle(path, telling_.IGNORED)
            elif decided.stamp is not None and self.task.ledger.knows(path, decided.stamp) is None:
                found.append(decided)
            else:
                self._told.settle(path, telling_.TAKEN)
        self._accept(found)

    def _accept(self, found: list[Decision]) -> None:
        """Take whole files; one that is still on its way from before waits until that is over."""
        task = self.task
        with self.pipeline.condition:
            for decided in found:
                path, stamp = decided.path, decided.stamp
                assert stamp is not None
                if path_key(path) in task.declined:
                    continue
                if path_key(path) in task.busy:
                    task.deferred.add(path)
                else:
                    self.scout.unannounced += decided.unannounced
                    self._unwritten.append((path, stamp, decided.rule))

    def _gone(self, path: bytes) -> None:
        if self.task.ledger.state(path) is State.READY and path_key(path) not in self.task.busy:
            self._skipped.append((Item(path, 0, 0, ""), State.VANISHED, ""))

    def _write(self, now: float) -> None:
        """Write what was found into the ledger and hand it to the pipeline."""
        if now < self._not_before:
            return
        ledger = self.task.ledger
        if self._unwritten:
            found = self._unwritten
            if not self._try(lambda: self.pipeline.add(self.task, ledger.ready(found))):
                return
            self._unwritten = []
            if self._told:
                for path, _stamp, _rule in found:
                    self._told.settle(path, telling_.TAKEN)
        if self._skipped:
            outcomes = [(item, state, {"lastError": why}) for item, state, why in self._skipped]
            if self._try(lambda: ledger.finish(list(outcomes))):
                self._skipped = []

    # --- ending -----------------------------------------------------------------------------------------------------
    def _over(self, now: float) -> bool:
        task = self.task
        if task.stopping or (task.deadline is not None and now >= task.deadline):
            return True
        return task.kind == UPLOAD and self.scout.walks > 0

    def _finalize(self, now: float) -> None:
        """From now on no new event counts; one more walk finds what was written before."""
        self._insist(lambda: self.task.set(status=statuses.FINALIZING))
        self._hints(now)
        self._finalizing = True
        self._final_deadline = now + self.settings.finalize_seconds
        self.tracker.hurry(now)
        self._final_walk = self.scout.walks
        if not self.scout.final:
            self.scout.final = True
            self._final_walk += 1
            self.scout.start_over(now)

    def _finished(self, now: float) -> bool:
        task = self.task
        if self.scout.walks < self._final_walk or self.scout.walking:
            return False
        if self._unwritten:  # the database is down, say: then nobody can tell what still changes
            self._final_deadline = now + self.settings.finalize_seconds
        if len(self.tracker):
            self._wait_for_the_last(now)
        self._tell_problems()
        if len(self.tracker) or self._unwritten or self._skipped:
            return False
        with self.pipeline.condition:
            return task.end()

    def _wait_for_the_last(self, now: float) -> None:
        """See to the files that are not whole at the end: each is asked about once a second, as events tell nothing any
        more, and what is not whole in time is not taken, which is told."""
        if now >= self._recheck:
            self._recheck = now + _IDLE
            self.tracker.recheck(now)
        if now < self._final_deadline:
            return
        what = "upload" if self.task.kind == UPLOAD else "DAQ"
        for path in self.tracker.paths():
            waited = self.tracker.waiting_for(path)
            seen = self.tracker.drop(path)
            if waited is None or seen is None:
                continue
            if seen.stamp is None:  # only said to have changed, and not seen since
                if self.task.ledger.state(path) not in _TAKEN - {State.READY}:
                    self._skipped.append((Item(path, 0, 0, ""), State.VANISHED, ""))
                continue
            why = (
                f"Not taken: {self.settings.finalize_seconds:g} s after the end of the {what} the file was "
                f"not whole by the rule {waited.rule!r}; {waited.why}."
            )
            self._skipped.append((Item(path, seen.stamp.size, seen.stamp.mtime_ns, ""), State.FAILED, why))

    def _tell_problems(self) -> None:
        """Count what the last walk could not look into: a part is skipped; the whole directory is an error."""
        for path, problem in self.scout.problems.items():
            if not path:
                self.task.directory_error = problem
            elif self.task.ledger.knows(path, _NOTHING) is None:
                self._skipped.append((Item(path, 0, 0, ""), State.SKIPPED, f"Skipped: {problem}"))
        self.scout.problems = {}

    def _wind_down(self, now: float) -> bool:
        """Give up what has not begun; return whether what has begun is over."""
        task = self.task
        with self.pipeline.condition:
            task.queue.clear()
            task.delayed.clear()
            task.spilled = False
            task.deferred.clear()
            task.inbox.clear()
            if task.active or task.orders:
                return False
            self._final_deadline = self._final_deadline or now + self.settings.finalize_seconds
            # What storage has already is seen to its end, unless that takes too long.
            over = bool(task.halted) or not task.batches or now >= self._final_deadline
            if over:
                self.pipeline.detach(task)  # what rests must not be carried on while its files are decided
            return over
