"""Files that may be whole soon: who waits, for what, and whose turn it is.

Which evidence counts is up to a rule (:mod:`dm.station.acquisition.rules`). What no rule decides is checked here: just
before a rule is asked, the file is looked at again, and one that has changed starts anew. "Unchanged for N s" is
measured on our own monotonic clock; modification times are compared with each other only, never with a clock: they may
lie in the future.
"""

from __future__ import annotations

import enum
import heapq
import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from dm.station.acquisition.rules.base import CompletionRule, Rule, Seen, SettleTimes
from dm.station.acquisition.transports.base import FileStamp

__all__ = ["Decision", "Rule", "SettleTimes", "Tracker", "Verdict", "Waiting", "look", "same"]

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PARKED = 50_000  # files that wait for something else than time, at most; a walk finds again what finds no place


class Verdict(enum.Enum):
    """Outcome of looking at a candidate."""

    READY = "ready"
    GONE = "gone"
    OTHER = "other"  # no longer a regular file


@dataclass(frozen=True, slots=True)
class Decision:
    """A candidate that is decided.

    :param stamp: its shape, when it is ready. :param rule: the evidence.
    :param unannounced: no event told of it, only a walk over the whole directory.
    """

    path: bytes
    verdict: Verdict
    stamp: FileStamp | None
    rule: Rule
    unannounced: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that is not whole yet, for people.

    :param path: relative to the data directory. :param size: bytes when last looked at, if it was.
    :param since: epoch seconds when it was first seen. :param rule: name of the rule that is waited for.
    :param why: in a few words. :param state: ``settling`` when only time has to pass, else ``seen``.
    """

    path: bytes
    size: int | None
    since: float
    rule: str
    why: str
    state: str


def look(path: bytes) -> tuple[FileStamp | None, int]:
    """Return a file's stamp and its mode, without following a link; ``(None, 0)`` when there is nothing."""
    try:
        status = os.lstat(path)
    except OSError:
        return None, 0
    return FileStamp.of(status), status.st_mode


def look_afresh(path: bytes) -> tuple[FileStamp | None, int]:
    """Return the same, asking the server of a network file system: opening a file makes what the client remembers of
    its size and times up to date."""
    try:
        descriptor = os.open(path, _OPEN)
    except OSError:
        return look(path)
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None, 0
    finally:
        os.close(descriptor)
    return FileStamp.of(status), status.st_mode


def same(first: FileStamp | None, second: FileStamp | None) -> bool:
    """Whether two looks saw the same contents, as far as size and modification time tell."""
    return (
        first is not None
        and second is not None
        and first.size == second.size
        and first.mtime_ns == second.mtime_ns
        and first.inode == second.inode
    )


class Tracker:
    """See the module. Not thread safe: one per task, used by its thread; only :meth:`poke`, :meth:`waiting` and
    :meth:`waiting_for` may be called by others.

    :param root: the local data directory, or ``None`` for a source only its transport can list; then a file is judged
        when :meth:`offer` is called again with the same stamp.
    :param rule: says when a file is whole; its context's ``poke`` is set to ours.
    :param remote: the directory lies on a network file system, whose client remembers sizes and times for a while.
    """

    def __init__(self, root: bytes | None, rule: CompletionRule, remote: bool = False) -> None:
        self.root = root
        self.rule = rule
        rule.context.poke = self.poke
        self._look = look_afresh if remote else look
        self._candidates: dict[bytes, Seen] = {}
        self._heap: list[tuple[float, bytes]] = []
        self._parked: dict[bytes, None] = {}  # those that wait for something else than time
        self._poked: deque[bytes] = deque()
        self.woken = lambda: None  # called by :meth:`poke`, to end the sleep of the thread

    def __len__(self) -> int:
        return len(self._candidates)

    def __contains__(self, path: bytes) -> bool:
        return path in self._candidates

    @property
    def busy(self) -> int:
        """How many files wait for nothing but time."""
        return len(self._candidates) - len(self._parked)

    # --- what comes in ----------------------------------------------------------------------------------------------
    def offer(
        self,
        path: bytes,
        stamp: FileStamp | None,
        now: float,
        *,
        closed: bool = False,
        again: bool = False,
        told: bool = False,
        unannounced: bool = False,
    ) -> Decision | None:
        """Say that a file may be whole.

        :param stamp: how it looked, or ``None`` to look now (local sources).
        :param closed: its writer just closed it, or moved it in. :param again: it was taken before, so its writer is
            one that comes back. :param told: its writer says that it is whole.
        :param unannounced: a walk over the whole directory found it, and nothing else so far.
        :returns: a decision that is known already (remote sources only).
        """
        if stamp is None and self.root is not None:
            stamp, _mode = look(os.path.join(self.root, path))
            if stamp is None:
                return None
        if again:
            self.rule.came_back(path)
        seen = self._candidates.get(path)
        if seen is None:
            seen = Seen(path, stamp, now, closed, again, told, unannounced, time.time())
            self._candidates[path] = seen
            return self._judge(seen, now)
        seen.unannounced = seen.unannounced and unannounced
        seen.told = told or (seen.told and same(seen.stamp, stamp))
        if closed:  # a close starts the wait again, as what it closed may be new
            seen.stamp, seen.since, seen.closed, seen.again = stamp, now, True, seen.again or again
        elif not same(seen.stamp, stamp):
            seen.stamp, seen.since, seen.closed = stamp, now, False
        elif not told and seen.due != inf and self.root is not None:
            return None  # seen again as it was: its time has not come
        return self._judge(seen, now)

    def poke(self, path: bytes) -> None:
        """Have a file judged soon; any thread."""
        self._poked.append(path)
        self.woken()

    def hurry(self, now: float) -> None:
        """Wait no longer than needed: the task is ending, this is what there is."""
        self.rule.context.ending = True
        self.recheck(now)

    def recheck(self, now: float) -> None:
        """Have everything judged now."""
        for seen in self._candidates.values():
            self._schedule(seen, now)

    # --- judging ----------------------------------------------------------------------------------------------------
    def _fired(self, seen: Seen, now: float) -> tuple[str, float]:
        if seen.told and self.rule.trusts_writer:
            return Rule.MESSAGE, 0.0
        return self.rule.judge(seen, now)

    def _judge(self, seen: Seen, now: float) -> Decision | None:
        """Set when a file is looked at next, after something was learned of it."""
        if seen.stamp is None:  # on another host, and its next walk has to say how it looks
            self._schedule(seen, inf)
            return None
        fired, seconds = self._fired(seen, now)
        if fired and self.root is None:
            self._forget(seen.path)
            return Decision(seen.path, Verdict.READY, seen.stamp, Rule(fired), seen.unannounced)
        self._schedule(seen, now if fired else now + seconds)
        return None

    def _schedule(self, seen: Seen, due: float) -> None:
        seen.due = due
        if due == inf:
            self._parked[seen.path] = None
            if len(self._parked) > _PARKED and not self.rule.context.ending:
                self._forget(next(iter(self._parked)))
        else:
            self._parked.pop(seen.path, None)
            heapq.heappush(self._heap, (due, seen.path))

    def _forget(self, path: bytes) -> Seen | None:
        self._parked.pop(path, None)
        return self._candidates.pop(path, None)

    def _drain_pokes(self, now: float) -> None:
        while self._poked:
            seen = self._candidates.get(self._poked.popleft())
            if seen is not None:
                self._schedule(seen, now)

    def next_due(self) -> float | None:
        """Return when :meth:`take` has something to do next (monotonic seconds)."""
        return 0.0 if self._poked else self._next_timed()

    def _next_timed(self) -> float | None:
        while self._heap:
            due, path = self._heap[0]
            seen = self._candidates.get(path)
            if seen is not None and seen.due == due:
                return due
            heapq.heappop(self._heap)
        return None

    def take(self, now: float, limit: int = 2000) -> list[Decision]:
        """Return what is decided by now; local sources only."""
        if self.root is None:
            return []
        self._drain_pokes(now)
        decided: list[Decision] = []
        soon = now + 1e-6  # rounding is no reason to come again
        # What is poked meanwhile waits for the next turn: only what is timed is on the heap.
        while len(decided) < limit and (due := self._next_timed()) is not None and due <= soon:
            _due, path = heapq.heappop(self._heap)
            seen = self._candidates[path]
            stamp, mode = self._look(os.path.join(self.root, path))
            fired = ""
            if stamp is None:
                verdict = Verdict.GONE
            elif not stat.S_ISREG(mode):
                verdict = Verdict.OTHER
            else:
                verdict = Verdict.READY
                if not same(stamp, seen.stamp):
                    # Whoever closed it is not the only writer, or wrote on after saying that it is whole.
                    seen.since, seen.closed, seen.told = now, False, False
                seen.stamp = stamp
                fired, seconds = self._fired(seen, now)
                if not fired:
                    self._schedule(seen, now + max(seconds, 1e-3))
                    continue
            self._forget(path)
            decided.append(Decision(path, verdict, stamp, Rule(fired), seen.unannounced))
        return decided

    # --- who waits --------------------------------------------------------------------------------------------------
    def drop(self, path: bytes) -> Seen | None:
        """Forget a candidate, and return what was seen of it."""
        return self._forget(path)

    def waiting(self, skip: int = 0, limit: int | None = None) -> list[Waiting]:
        """Return files that are not decided, in the order they were found."""
        paths = list(self._candidates)[skip:]
        found = map(self.waiting_for, paths if limit is None else paths[:limit])
        return [one for one in found if one is not None]

    def waiting_for(self, path: bytes) -> Waiting | None:
        """Return what a file waits for, if it does."""
        seen = self._candidates.get(path)
        if seen is None:
            return None
        why = self.rule.explain(seen, time.monotonic())
        state = "seen" if seen.due == inf else "settling"
        return Waiting(path, seen.stamp.size if seen.stamp else None, seen.first, self.rule.name, why, state)

    def paths(self) -> Iterator[bytes]:
        """Iterate over the paths that are not decided."""
        return iter(list(self._candidates))
