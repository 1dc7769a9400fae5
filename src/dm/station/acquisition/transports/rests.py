"""Where a transport is left out for a while, because what it needs did not answer there."""

from __future__ import annotations

import threading
import time

FIRST_SECONDS = 30.0
LONGEST_SECONDS = 300.0


class Rests:
    """Places a transport could not reach, each with a pause that doubles as long as it stays so.

    :param first: seconds of the first pause. :param longest: of the longest.
    """

    def __init__(self, first: float = FIRST_SECONDS, longest: float = LONGEST_SECONDS) -> None:
        self._first = first
        self._longest = longest
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, float]] = {}  # place -> until (monotonic), pause

    def begin(self, place: str) -> float:
        """Begin a pause, longer than the last one; return its seconds.

        Batches that fail during a pause, because they were begun before, do not make it longer.
        """
        now = time.monotonic()
        with self._lock:
            until, pause = self._known.get(place, (0.0, 0.0))
            if now >= until:
                pause = min(2 * pause, self._longest) or self._first
                self._known[place] = (now + pause, pause)
            return pause

    def end(self, place: str) -> None:
        """Forget the pauses of a place: it answered."""
        with self._lock:
            self._known.pop(place, None)

    def has(self, place: str) -> bool:
        """Whether the transport is to be left out there now."""
        with self._lock:
            return time.monotonic() < self._known.get(place, (0.0, 0.0))[0]
