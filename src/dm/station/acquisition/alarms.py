"""What health warns of: DAQs and uploads that stand still, fail, fall behind, ended early, or whose disk fills up.

Every alarm has a threshold among the settings and stays until things are clearly better, so that it does not come and
go. Each is told twice: ``/status``, which strangers may read, names ids and numbers; the log and the info record of the
DAQ or upload name directory, experiment and reason, too.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from dm.common.errors import ServiceUnavailable
from dm.common.health import LEVELS, Health, Latch, Level
from dm.station.acquisition.rows import State
from dm.station.acquisition.task import DAQ, Task

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office

_log = logging.getLogger(__name__)
_REMEMBERED = 20
_GROWTH = 1.3
_CRITICAL_PART = 5
_GIGABYTE = 1e9


@dataclass(frozen=True)
class Finding:
    """What is wrong with one task.

    :param public: what comes after "DAQ <id>" for everybody. :param reason: what only those may read who see the task.
    """

    level: Level
    public: str
    reason: str = ""


Judge = Callable[[Task, bool, float], Finding | None]


class Alarms:
    """See the module. :meth:`start` lets a thread look at everything now and then, asked or not.

    :param office: whose tasks are looked at. :param health: what is told there.
    """

    def __init__(self, office: Office, health: Health) -> None:
        self.office = office
        self.health = health
        self.limits = office.parts.settings
        self._backlog = Latch()
        self._peaks: dict[str, int] = {}
        self._free: dict[str, deque[tuple[float, int]]] = {}
        self._halted: dict[str, str] = {}  # id -> claim
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        health.check("database", self._database)
        health.check("lease", self._lease)
        health.check("tasks", self._tasks)
        health.check("progress", lambda: self._each("progress", self._still, self._running))
        health.check("failures", lambda: self._each("failures", self._failing, lambda: "Files do not fail."))
        health.check("plugins", self._plugins)
        health.check("backlog", self._waiting)
        health.check(
            "sources", lambda: self._each("sources", self._disk, lambda: "The disks of all sources have room.")
        )
        office.on_ended = self.ended

    def _plugins(self) -> tuple[Level, str]:
        """Warn of a plugin that does not come back."""
        name, seconds = self.office.after.gate.longest()
        if seconds > self.limits.stalled_minutes * 60:
            return "warning", f"Plugin {name} has been busy with one batch for {seconds / 60:.0f} minutes."
        return "ok", "No plugin is busy with one batch for long."

    def start(self) -> None:
        """Look at everything every few seconds from now on."""
        self._thread = threading.Thread(target=self._watch, name="alarms", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)

    def _watch(self) -> None:
        while not self._stop.wait(self.limits.alarm_seconds):
            self.health.status()

    # --- one task ---------------------------------------------------------------------------------------------------
    def _still(self, task: Task, _raised: bool, now: float) -> Finding | None:
        seconds = task.pace.still_for(now)
        if seconds <= self.limits.stalled_minutes * 60:
            return None
        waiting = task.far().waiting
        return Finding("warning", f"has finished nothing for {_minutes(seconds)}; {waiting:,} files wait", task.trouble)

    def _failing(self, task: Task, raised: bool, now: float) -> Finding | None:
        span = self.limits.failing_minutes * 60
        recent, all_failed = task.pace.failed_within(now, span), task.far().failed
        limit = self.limits.failing_files
        if recent < (limit / 2 if raised else limit) or not all_failed:
            return None
        first = next(iter(list(task.ledger.errors.values())), "")
        return Finding(
            "warning", f"has {all_failed:,} failed files, {recent:,} of them of the last {_minutes(span)}", first
        )

    def _growing(self, task: Task, raised: bool, now: float) -> Finding | None:
        """Judge the trend: more files wait in each third of the time, and many more than at its beginning."""
        if task.kind != DAQ:  # an upload finds all its files at once
            return None
        span = self.limits.growth_minutes * 60
        waiting = task.far().waiting
        seen = task.pace.waiting_before(now, span)
        part = len(seen) // 3
        if raised:
            peak = self._peaks[task.id] = max(self._peaks.get(task.id, 0), waiting)
            if waiting < self.limits.growth_files / 2 or waiting < peak / 2:
                self._peaks.pop(task.id, None)
                return None
        elif part:
            first, second, third = (fmean(seen[number * part : (number + 1) * part]) for number in range(3))
            much = waiting - seen[0] >= self.limits.growth_files
            if not (much and first < second < third and waiting > _GROWTH * max(second, 1)):
                return None
        else:
            return None
        before = f", {seen[0]:,} did {_minutes(span)} ago" if seen else ""
        return Finding(
            "warning", f"gets files faster than they are stored: {waiting:,} files wait{before}", task.trouble
        )

    def _disk(self, task: Task, raised: bool, now: float) -> Finding | None:
        if not task.source.is_local:
            return None
        try:
            status = os.statvfs(task.source.root)
        except OSError as error:
            return Finding("warning", f"cannot see its data directory ({error.strerror})")
        if not status.f_blocks:
            return None
        free, share = status.f_bavail * status.f_frsize, 100 * status.f_bavail / status.f_blocks
        limit = self.limits.source_free_percent
        full = self._full_in(task.id, free, now)
        if share >= (limit * 1.25 if raised else limit):
            return None
        soon = f", full in about {_minutes(full)} as things go" if full is not None else ""
        level: Level = "critical" if share < limit / _CRITICAL_PART else "warning"
        return Finding(level, f"reads from a disk with {free / _GIGABYTE:.1f} GB ({share:.1f} %) free{soon}")

    def _full_in(self, task_id: str, free: int, now: float) -> float | None:
        """Return the seconds until a disk is full if it goes on as in the last ten minutes."""
        seen = self._free.setdefault(task_id, deque())
        seen.append((now, free))
        while now - seen[0][0] > 600:
            seen.popleft()
        passed, gone = now - seen[0][0], seen[0][1] - free
        return free * passed / gone if passed >= 60 and gone > 0 else None

    # --- all of them ------------------------------------------------------------------------------------------------
    def _each(self, name: str, judge: Judge, fine: Callable[[], str]) -> tuple[Level, str]:
        """Judge every task; tell what begins and what is over."""
        now = time.monotonic()
        found: list[tuple[Level, str]] = []
        for task in list(self.office.live.values()):
            finding = judge(task, name in task.alarms, now)
            if finding is None:
                if task.alarms.pop(name, None):
                    _log.info("%s is over: %s", _full(task), name)
                continue
            full = f"{_full(task)} {finding.public}" + (f": {finding.reason}" if finding.reason else "")
            full = full.rstrip(".") + "."
            if name not in task.alarms:
                _log.warning("%s", full.encode("ascii", "backslashreplace").decode())
            task.alarms[name] = full
            found.append((finding.level, f"{_named(task)} {finding.public}."))
        return _worst(found) or ("ok", fine())

    def _running(self) -> str:
        return f"{len(self.office.live)} DAQs and uploads are running."

    def _waiting(self) -> tuple[Level, str]:
        trend = self._each("backlog", self._growing, str)
        waiting = sum(task.far().waiting for task in list(self.office.live.values()))
        limit = self.limits.backlog_files
        many = self._backlog.update(waiting > limit, waiting < 0.8 * limit)
        if trend[0] != "ok":
            return trend
        return "warning" if many else "ok", f"{waiting:,} files are waiting."

    def _tasks(self) -> tuple[Level, str]:
        """Judge what does not run although it should."""
        self._forget_halted()
        found: list[tuple[Level, str]] = [
            ("critical", f"{_called(kind)} {identity} cannot be resumed with these settings; see the log.")
            for identity, kind in list(self.office.unresumed.items())
        ]
        found += [
            ("critical", f"{_named(task)} stands still, its thread ended; restart the service.")
            for task in self.office.without_thread()
        ]
        return _worst(found) or ("ok", self._running())

    def ended(self, task: Task) -> None:
        """Tell of a task that ended because it could not go on; called by the office at the end of each."""
        for memory in (self._peaks, self._free):
            memory.pop(task.id, None)
        if not task.halted or task.document.get("open"):
            return
        while len(self._halted) >= _REMEMBERED:
            self._resolve(next(iter(self._halted)))
        self._halted[task.id] = str(task.document["claim"])
        failed = task.ledger.count(State.FAILED)
        self.health.problem(
            _problem(task.id),
            f"{_named(task)} could not go on and has ended, {failed:,} files failed; start it again or clear it.",
            "critical",
        )

    def _forget_halted(self) -> None:
        """Resolve what was cleared or started again."""
        claims = {str(task.document["claim"]) for task in list(self.office.live.values())}
        for task_id, claim in list(self._halted.items()):
            document = self.office.store.task(task_id) if claim not in claims else None
            if document is None or document.get("cleared"):
                self._resolve(task_id)

    def _resolve(self, task_id: str) -> None:
        self._halted.pop(task_id, None)
        self.health.resolve(_problem(task_id))

    # --- the service itself -----------------------------------------------------------------------------------------
    def _database(self) -> tuple[Level, str]:
        try:
            self.office.store.ping()
        except ServiceUnavailable as error:
            return "critical", error.message
        return "ok", "The database answers."

    def _lease(self) -> tuple[Level, str]:
        paused = self.office.pipeline.paused
        return ("critical", paused) if paused else ("ok", "The database is ours.")


def _worst(found: list[tuple[Level, str]]) -> tuple[Level, str] | None:
    """Return the worst finding, and how many there are beside it."""
    if not found:
        return None
    level, text = max(found, key=lambda one: LEVELS.index(one[0]))
    more = len(found) - 1
    return level, f"{text} The same holds for {more} more." if more else text


def _named(task: Task) -> str:
    """Name a task for everybody."""
    return f"{_called(task.kind)} {task.id}"


def _called(kind: str) -> str:
    return "DAQ" if kind == DAQ else "Upload"


def _full(task: Task) -> str:
    """Name a task for those who may see it."""
    return f"{_named(task)} of experiment {task.experiment['name']} on {task.data_directory!r}"


def _problem(task_id: str) -> str:
    return f"halted {task_id}"


def _minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
