"""Doing something no faster than so much per second."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any

from dm.site.storage.verification import StoppedError

_BURST_SECONDS = 0.5


class Pace:
    """A limit of so many units per second.

    :param stop: set when whoever waits is to give up. :param alive: called now and then while waiting.
    """

    def __init__(self, rate: float, stop: threading.Event, alive: Callable[[], None]) -> None:
        self._rate = rate
        self._stop = stop
        self._alive = alive
        self._free_at = time.monotonic()

    def take(self, amount: float) -> None:
        """Return when ``amount`` may be done. :raises StoppedError: not any more."""
        if self._stop.is_set():
            raise StoppedError
        now = time.monotonic()
        self._free_at = max(self._free_at, now - _BURST_SECONDS) + amount / self._rate
        if (wait := self._free_at - now) > 0 and self._stop.wait(wait):
            raise StoppedError
        self._alive()


class PacedFile(io.FileIO):
    """An open file read no faster than a pace. It does not close the descriptor."""

    def __init__(self, descriptor: int, pace: Pace) -> None:
        super().__init__(descriptor, "rb", closefd=False)
        self._pace = pace
        self.count = 0

    def readinto(self, buffer: Any) -> int | None:
        """Read. :raises StoppedError: the pace was told to stop."""
        count = super().readinto(buffer)
        self.count += count or 0
        self._pace.take(count or 0)
        return count
