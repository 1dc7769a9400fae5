"""When is a file whole? It stayed the same for a settle time, measured on our own monotonic clock.

A file whose writer closed it (or that was renamed into place) needs a short settle time, and next to none when the
kernel confirms that nobody has it open for writing (:mod:`dm.station.acquisition.writers`); a file known only from a
scan, a longer one; a name that says "temporary" (``x.tmp``), a much longer one, so that the rename to its real name
normally comes first. A file that is closed again after it was taken has a writer that comes back: for it, and after
three of its kind for all names with the same ending, the confirmation shortens nothing.

Modification times are compared with each other only, never with a clock: they may lie in the future.
"""

from __future__ import annotations

import enum
import heapq
import os
import stat
from dataclasses import dataclass

from dm.station.acquisition.transports.base import FileStamp
from dm.station.acquisition.writers import unwritten

_TEMPORARY = (b".tmp", b".temp", b".part", b".partial", b".crdownload", b".swp", b"~")
_LESSON = 3  # files closed again after they were taken teach that their kind has writers that come back
_KINDS = 1000  # kinds of names learned at most


class Rule(enum.StrEnum):
    """Which evidence made a file count as whole (kept in the ledger)."""

    CLOSED = "closed"  # its writer closed it, and it stayed the same for the short settle time
    SETTLED = "settled"  # found by a scan, and stayed the same for the long settle time


class Verdict(enum.Enum):
    """Outcome of looking at a candidate."""

    READY = "ready"
    GONE = "gone"
    OTHER = "other"  # no longer a regular file


@dataclass(frozen=True)
class SettleTimes:
    """Seconds a file must stay the same.

    :param proven: after its writer closed it, when nobody has it open for writing; covers what writers do right after
        closing: renaming, setting times.
    """

    closed: float = 0.3
    scanned: float = 3.0
    temporary: float = 60.0
    proven: float = 0.05


@dataclass(slots=True)
class _Candidate:
    stamp: FileStamp | None
    rule: Rule
    due: float
    later: float = 0.0  # when it is looked at again if at ``due`` somebody has it open, or nobody can tell


def look(path: bytes) -> tuple[FileStamp | None, int]:
    """Return a file's stamp and its mode, without following a link; ``(None, 0)`` when there is nothing."""
    try:
        status = os.lstat(path)
    except OSError:
        return None, 0
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino), status.st_mode


def _kind(path: bytes) -> bytes:
    return os.path.splitext(path)[1].lower()


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
    """Files that may be whole soon. Not thread safe: one per task, used by its thread.

    :param root: the local data directory, or ``None`` for a source only its transport can list; then a file is whole
        when :meth:`offer` is called again after the settle time with the same stamp.
    """

    def __init__(self, root: bytes | None, times: SettleTimes) -> None:
        self.root = root
        self.times = times
        self._candidates: dict[bytes, _Candidate] = {}
        self._heap: list[tuple[float, bytes]] = []
        self.patient = True  # whether temporary names get their long settle time
        self._reopened: dict[bytes, set[bytes]] = {}  # kind of name -> some that were closed again once taken

    def __len__(self) -> int:
        return len(self._candidates)

    def __contains__(self, path: bytes) -> bool:
        return path in self._candidates

    def _settle(self, path: bytes, rule: Rule) -> float:
        if self.patient and path.lower().endswith(_TEMPORARY):
            return self.times.temporary
        return self.times.closed if rule is Rule.CLOSED else self.times.scanned

    def _moments(self, path: bytes, rule: Rule, now: float, again: bool) -> tuple[float, float]:
        """Return when a file is looked at, and when once more if nobody can say then that it has no writer."""
        usual = now + self._settle(path, rule)
        if again:
            kind = _kind(path)
            if kind in self._reopened or len(self._reopened) < _KINDS:
                known = self._reopened.setdefault(kind, set())
                if len(known) < _LESSON:
                    known.add(path)
            return usual, 0.0
        soon = now + self.times.proven
        if rule is not Rule.CLOSED or soon >= usual or (self.patient and path.lower().endswith(_TEMPORARY)):
            return usual, 0.0
        if len(self._reopened.get(_kind(path), ())) >= _LESSON:
            return usual, 0.0
        return soon, usual

    def offer(self, path: bytes, stamp: FileStamp | None, rule: Rule, now: float, again: bool = False) -> bool:
        """Say that a file may be whole.

        :param stamp: how it looked, or ``None`` to look now (local sources).
        :param again: it was taken before, so its writer is one that comes back.
        :returns: whether it is known to be whole already (remote sources only).
        """
        if stamp is None and self.root is not None:
            stamp, _mode = look(os.path.join(self.root, path))
            if stamp is None:
                return False
        due, later = self._moments(path, rule, now, again)
        known = self._candidates.get(path)
        if known is None:
            self._candidates[path] = _Candidate(stamp, rule, due, later)
        elif rule is Rule.CLOSED:  # a close starts the wait again, as what it closed may be new
            known.stamp, known.rule, known.due, known.later = stamp, rule, due, later
        elif not same(known.stamp, stamp):
            known.stamp, known.due, known.later = stamp, due, later
        elif self.root is None and now >= known.due:
            del self._candidates[path]
            return True
        else:
            return False
        heapq.heappush(self._heap, (due, path))
        return False

    def hurry(self, now: float) -> None:
        """Stop waiting long for temporary names: the task is ending, this is what there is."""
        self.patient = False
        for path, candidate in self._candidates.items():
            due = min(candidate.due, now + self._settle(path, candidate.rule))
            if due < candidate.due:
                candidate.due = due
                heapq.heappush(self._heap, (due, path))

    def next_due(self) -> float | None:
        """Return when :meth:`take` has something to do next (monotonic seconds)."""
        while self._heap:
            due, path = self._heap[0]
            candidate = self._candidates.get(path)
            if candidate is not None and candidate.due == due:
                return due
            heapq.heappop(self._heap)
        return None

    def take(self, now: float, limit: int = 2000) -> list[tuple[bytes, Verdict, FileStamp | None, Rule]]:
        """Look at the candidates that are due.

        :returns: those that are decided, with the stamp they had; files that changed wait again.
        """
        decided: list[tuple[bytes, Verdict, FileStamp | None, Rule]] = []
        if self.root is None:
            return decided
        while len(decided) < limit and (due := self.next_due()) is not None and due <= now:
            _due, path = heapq.heappop(self._heap)
            candidate = self._candidates[path]
            stamp, mode = look(os.path.join(self.root, path))
            if stamp is None:
                verdict = Verdict.GONE
            elif not stat.S_ISREG(mode):
                verdict = Verdict.OTHER
            elif same(stamp, candidate.stamp) and self._closed_for_good(path, stamp, candidate):
                verdict = Verdict.READY
            else:
                if candidate.later and same(stamp, candidate.stamp):
                    candidate.due, candidate.later = candidate.later, 0.0
                else:  # whoever closed it is not the only writer, so the longer wait applies
                    candidate.stamp, candidate.rule, candidate.later = stamp, Rule.SETTLED, 0.0
                    candidate.due = now + self._settle(path, Rule.SETTLED)
                heapq.heappush(self._heap, (candidate.due, path))
                continue
            del self._candidates[path]
            decided.append((path, verdict, stamp, candidate.rule))
        return decided

    def _closed_for_good(self, path: bytes, stamp: FileStamp, candidate: _Candidate) -> bool:
        """Whether a file that stayed the same until it was due need not wait any longer."""
        assert self.root is not None
        if candidate.rule is not Rule.CLOSED:
            return True
        found = unwritten(os.path.join(self.root, path), stamp)
        return found is True or (found is None and not candidate.later)

    def drop(self, path: bytes) -> bool:
        """Forget a candidate; return whether it was ever seen (not only said to have changed)."""
        candidate = self._candidates.pop(path, None)
        return candidate is not None and candidate.stamp is not None

    def waiting(self, limit: int = 1) -> list[bytes]:
        """Return some of the paths that are not decided."""
        return list(self._candidates)[:limit]
