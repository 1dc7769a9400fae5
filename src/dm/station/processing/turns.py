"""Taking turns: callers who speak of the same thing go one after the other, all others at the same time."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Turns:
    """Who speaks of what at present. Thread-safe."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._changed = threading.Condition()

    @contextmanager
    def of(self, names: Collection[str]) -> Iterator[None]:
        """Wait until nobody else speaks of any of these names; afterwards the next may."""
        if not names:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._taken.isdisjoint(names))
            self._taken.update(names)  # all together: two callers never wait for each other
        try:
            yield
        finally:
            with self._changed:
                self._taken.difference_update(names)
                self._changed.notify_all()
