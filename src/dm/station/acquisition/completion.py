"""When is a file whole? It stayed the same for a settle time, measured on our own monotonic clock.

A file whose writer closed it (or that was renamed into place) needs a short settle time; a file known only from a scan,
a longer one; a name that says "temporary" (``x.tmp``), a much longer one, so that the rename to its real name normally
comes first. Modification times are compared with each other only, never with a clock: they may lie in the future.
"""

from __future__ import annotations

import enum
import heapq
import os
import stat
from dataclasses import dataclass

from dm.station.acquisition.transports.base import FileStamp

_TEMPORARY = (b".tmp", b".temp", b".part", b".partial", b".crdownload", b".swp", b"~")


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
    """Seconds a file must stay the same."""

    closed: float = 0.3
    scanned: float = 3.0
    temporary: float = 60.0


@dataclass(slots=True)
class _Candidate:
    stamp: FileStamp | None
    rule: Rule
    due: float


def look(path: bytes) -> tuple[FileStamp | None, int]:
    """Return a file's stamp and its mode, without following a link; ``(None, 0)`` when there is nothing."""
    try:
        status = os.lstat(path)
    except OSError:
        return None, 0
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino), status.st_mode


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

    def __len__(self) -> int:
        return len(self._candidates)

    def __contains__(self, path: bytes) -> bool:
        return path in self._candidates

    def _settle(self, path: bytes, rule: Rule) -> float:
        if self.patient and path.lower().endswith(_TEMPORARY):
            return self.times.temporary
        return self.times.closed if rule is Rule.CLOSED else self.times.scanned

    def offer(self, path: bytes, stamp: FileStamp | None, rule: Rule, now: float) -> bool:
        """Say that a file may be whole.

        :param stamp: how it looked, or ``None`` to look now (local sources).
        :returns: whether it is known to be whole already (remote sources only).
        """
        if stamp is None and self.root is not None:
            stamp, _mode = look(os.path.join(self.root, path))
            if stamp is None:
                return False
        due = now + self._settle(path, rule)
        known = self._candidates.get(path)
        if known is None:
            self._candidates[path] = _Candidate(stamp, rule, due)
        elif rule is Rule.CLOSED:  # a close starts the wait again, as what it closed may be new
            known.stamp, known.rule, known.due = stamp, rule, due
        elif not same(known.stamp, stamp):
            known.stamp, known.due = stamp, due
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
            elif same(stamp, candidate.stamp):
                verdict = Verdict.READY
            else:
                # Changed since: whoever closed it is not the only writer, so the longer wait applies.
                candidate.stamp, candidate.rule = stamp, Rule.SETTLED
                candidate.due = now + self._settle(path, Rule.SETTLED)
                heapq.heappush(self._heap, (candidate.due, path))
                continue
            del self._candidates[path]
            decided.append((path, verdict, stamp, candidate.rule))
        return decided

    def drop(self, path: bytes) -> bool:
        """Forget a candidate; return whether it was ever seen (not only said to have changed)."""
        candidate = self._candidates.pop(path, None)
        return candidate is not None and candidate.stamp is not None

    def waiting(self, limit: int = 1) -> list[bytes]:
        """Return some of the paths that are not decided."""
        return list(self._candidates)[:limit]
