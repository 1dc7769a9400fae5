"""What leaves the group of its stage or outlives it: found by looks at all processes, signalled, at last killed.

The supervisor is a child subreaper: whatever loses its parent becomes its child, so that nothing can hide.
"""

from __future__ import annotations

import os
import signal
import time

from dm.station.processing.executors.supervisor import survey
from dm.station.processing.executors.supervisor.stage import Stage

_FIRST_LOOK = 1.0  # seconds from an end to the look for what it left outside its group
_SHARE = 50  # looks take at most one part in so many of the time
_SOON, _LATE = 0.05, 5.0
_REMEMBERED = 2_000


class Rest:
    """Everything a supervisor's stages left running.

    :param marker: name of the environment variable that says the key. :param grace: seconds that may go on what an
        ended stage left. :param running: the supervisor's processes by pid. :param stages: those that it has not
        reported yet, by key.
    """

    def __init__(self, marker: bytes, grace: float, running: dict[int, Stage], stages: dict[str, Stage]) -> None:
        self.due = 0.0  # when to look, on the monotonic clock; 0: there is no need
        self._marker, self._grace = marker, grace
        self._running, self._stages = running, stages
        self._left: dict[str, Stage] = {}  # ended; something of them may still be there
        self._past: dict[str, None] = {}  # ended a while ago, and nothing was seen of them
        self._strays: dict[tuple[int, int], tuple[set[str], float]] = {}  # nobody's: who may have started it, its end
        self._cost = 0.0

    def nothing(self) -> bool:
        """Whether nothing is left: the supervisor has no child at all."""
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        if not self.due:
            self.due = time.monotonic() + _FIRST_LOOK
        return False

    def ended(self, stage: Stage, now: float) -> None:
        """Take note of an end: when what it left has to go, and when to look for it."""
        stage.deadline = now if stage.killed else now + self._grace
        self._left[stage.key] = stage
        self._plan(min(stage.deadline, now + max(_FIRST_LOOK, _SHARE * self._cost)))

    def _plan(self, moment: float) -> None:
        self.due = min(self.due, moment) if self.due else moment

    def expire(self, now: float) -> None:
        """Look, where it is time."""
        if self.due and now >= self.due:
            self.due = 0.0
            self._look(now)
            self._cost = time.monotonic() - now

    def signal(self, wishes: list[tuple[str, int]]) -> None:
        """Signal stages, and what left their groups.

        :param wishes: keys and signals.
        """
        wanted: dict[str, int] = {}
        for key, number in wishes:
            stage = self._stages.get(key) or self._left.get(key)
            if stage is None:
                continue
            stage.signal_group(number)
            wanted[key] = number
            if number == signal.SIGKILL:
                stage.deadline = min(stage.deadline, time.monotonic())
        for key, members in self._members().items():
            stage = self._stages.get(key) or self._left.get(key)
            if key in wanted and stage is not None:
                for process in members:
                    if stage.ended is not None or process.group != stage.pid:
                        survey.send(process, wanted[key])

    def _members(self) -> dict[str, list[survey.Process]]:
        """Return what belongs to each stage besides its first process; what cannot be told is a stray."""
        processes = survey.everything()
        own = os.getpid()
        orphans = {process.pid for process in processes.values() if process.parent == own} - set(self._running)
        above = survey.tree(processes, orphans | set(self._running))
        found: dict[str, list[survey.Process]] = {}
        keys = {pid: stage.key for pid, stage in self._running.items()}
        strays = {}
        for pid in orphans:
            key = self._key(processes[pid])
            if key is not None:
                keys[pid] = key
                found.setdefault(key, []).append(processes[pid])
            else:
                name = (pid, processes[pid].start)
                strays[name] = self._strays.get(name) or ({*self._stages, *self._left}, 0.0)
        self._strays = strays
        for pid, root in above.items():
            if root in keys:
                found.setdefault(keys[root], []).append(processes[pid])
        return found

    def _key(self, orphan: survey.Process) -> str | None:
        """Return the key an orphan belongs to: by its mark, else by its session or group."""
        mark = survey.environment(orphan.pid, self._marker)
        if mark is not None and (key := mark.decode("utf-8", "replace")) in (self._stages | self._left | self._past):
            return key
        for stage in (*self._stages.values(), *self._left.values()):
            if stage.pid in (orphan.session, orphan.group) and orphan.start >= stage.ticks:
                return stage.key
        return None

    def _look(self, now: float) -> None:
        """Kill what ended stages left and whose time is over; look again while there is something."""
        members = self._members()
        running = {stage.key for stage in self._running.values()}
        for key in members.keys() - running:
            stage = self._left.get(key)
            if stage is not None and now < stage.deadline:
                self._plan(stage.deadline)
                continue
            for process in members[key]:
                survey.send(process, signal.SIGKILL)
            self._plan_next(now, stage.deadline if stage else now)
        for key, stage in list(self._left.items()):
            if key in self._stages:  # something holds its output open, perhaps nothing that is seen here
                if now < stage.deadline:
                    self._plan(stage.deadline)
            elif key not in members:
                del self._left[key]
                self._past[key] = None
        while len(self._past) > _REMEMBERED:
            del self._past[next(iter(self._past))]
        self._kill_strays(now, running)

    def _kill_strays(self, now: float, running: set[str]) -> None:
        for (pid, start), (keys, deadline) in list(self._strays.items()):
            if not keys.isdisjoint(running):  # one of those that may have started it goes on
                continue
            due = deadline or now + self._grace
            self._strays[(pid, start)] = (keys, due)
            if now < due:
                self._plan(due)
                continue
            stray = survey.look(pid)
            if stray is not None and stray.start == start:
                survey.send(stray, signal.SIGKILL)
            self._plan_next(now, due)

    def _plan_next(self, now: float, due: float) -> None:
        """Look whether the killed are gone; less and less often, as it may be impossible (another account's)."""
        self._plan(now + max(_SOON, _SHARE * self._cost, min(_LATE, (now - due) / 2)))
