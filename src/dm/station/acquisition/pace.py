"""How fast a DAQ or upload gets on: rates of late, remaining time, and since when nothing moved."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass

WINDOW = 10.0
LONGEST = 60.0
_CHANGES = 4  # fewer changes within the window say little: it is made longer then
_APART = 0.5
_TREND_APART = 10.0
_TREND = 3600.0


@dataclass(frozen=True)
class Progress:
    """How far a task is at one moment.

    :param files: finished. :param bytes: brought so far. :param waiting: files known and not finished.
    :param failed: files that failed.
    """

    files: int = 0
    bytes: int = 0
    waiting: int = 0
    failed: int = 0


class Pace:
    """See the module. Moments are monotonic seconds; a note costs the same however many files there are.

    :param now: the beginning.
    """

    def __init__(self, now: float) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, Progress]] = deque()
        self._first_files = 0
        self._trend: deque[tuple[float, int, int]] = deque()
        self._last = Progress()
        self._moved = now  # since when it may be called standing still
        self._finished = now

    def note(self, now: float, progress: Progress) -> None:
        """Remember how far a task is; to be called about once a second while it runs."""
        with self._lock:
            last = self._last
            if progress.files == last.files == self._first_files and not last.waiting:
                self._recent.clear()  # it begins to count when there is something to do
            if not self._recent:
                self._first_files = progress.files
            # A task that had nothing to do begins to wait when it gets something, not at its last file hours ago.
            moved = bool(self._recent) and (progress.files, progress.bytes) != (last.files, last.bytes)
            if moved:
                self._finished = now
            if moved or not self._recent or not last.waiting:
                self._moved = now
            self._last = progress
            if not self._recent or now - self._recent[-1][0] >= _APART:
                self._recent.append((now, progress))
            while len(self._recent) > 2 and now - self._recent[1][0] >= LONGEST:
                self._recent.popleft()
            if not self._trend or now - self._trend[-1][0] >= _TREND_APART:
                self._trend.append((now, progress.waiting, progress.failed))
            while now - self._trend[0][0] > _TREND:
                self._trend.popleft()

    def rates(self, now: float, progress: Progress) -> tuple[float, float]:
        """Return files and bytes finished per second of late; zeros while nothing was noted yet."""
        with self._lock:
            if not self._recent:
                return 0.0, 0.0
            since, first = self._recent[0]
            changes, later = 0, progress
            for moment, then in reversed(self._recent):
                changes += (then.files, then.bytes) != (later.files, later.bytes)
                later = then
                if now - moment >= WINDOW and changes >= _CHANGES:
                    since, first = moment, then
                    break
        passed = max(now - since, _APART)
        return (
            max(0.0, (progress.files - first.files) / passed),
            max(0.0, (progress.bytes - first.bytes) / passed),
        )

    def still_for(self, now: float) -> float:
        """Return for how many seconds nothing was finished although something waits; 0 when nothing waits."""
        with self._lock:
            return max(0.0, now - self._moved) if self._last.waiting else 0.0

    def finished(self) -> float:
        """Return when something was finished last; the beginning when nothing was."""
        with self._lock:
            return self._finished

    def waiting_before(self, now: float, seconds: float) -> list[int]:
        """Return how many files waited at moments of the last so many seconds, oldest first; empty when the task is
        not that old."""
        with self._lock:
            if not self._trend or now - self._trend[0][0] < seconds:
                return []
            return [waiting for moment, waiting, _failed in self._trend if now - moment <= seconds]

    def failed_within(self, now: float, seconds: float) -> int:
        """Return by how much the number of failed files grew in the last so many seconds."""
        with self._lock:
            before = next((failed for moment, _waiting, failed in self._trend if now - moment <= seconds), None)
            return max(0, self._last.failed - (before if before is not None else self._last.failed))


class Motion:
    """The bytes that batches on their way have moved so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved: dict[str, int] = {}

    def told_of(self, batch: str) -> Callable[[int], None]:
        """Begin a try to move a batch anew; return what is to be called with each number of bytes."""
        with self._lock:
            self._moved[batch] = 0

        def moved(count: int) -> None:
            with self._lock:
                self._moved[batch] = self._moved.get(batch, 0) + count

        return moved

    def bytes(self, open_batches: Container[str]) -> int:
        """Return the bytes of the batches that are not over; the others are forgotten."""
        with self._lock:
            self._moved = {batch: count for batch, count in self._moved.items() if batch in open_batches}
            return sum(self._moved.values())


def remaining(waiting: int, bytes_left: int, file_rate: float, byte_rate: float) -> float | None:
    """Return the seconds until everything known is finished, the longer of what files and bytes say.

    :returns: ``None`` when nobody can tell; 0 when nothing waits.
    """
    if not waiting:
        return 0.0
    found = [count / rate for count, rate in ((waiting, file_rate), (bytes_left, byte_rate)) if count > 0 and rate > 0]
    return max(found) if found else None
