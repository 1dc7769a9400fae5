"""Taking turns: callers who speak of the same thing go one after the other, all others at the same time."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from dm.common.errors import ServiceUnavailable


class Turns:
    """Who speaks of what at present. Thread-safe.

    :param patience: seconds anybody waits.
    """

    def __init__(self, patience: float = 15.0) -> None:
        self._patience = patience
        self._taken: set[str] = set()
        self._changed = threading.Condition()

    @contextmanager
    def of(self, names: Collection[str]) -> Iterator[None]:
        """Wait until nobody else speaks of any of these names; afterwards the next may.

        :raises ServiceUnavailable: others take too long.
        """
        if not names:
            yield
            return
        with self._changed:
            if not self._changed.wait_for(lambda: self._taken.isdisjoint(names), self._patience):
                raise ServiceUnavailable("The same is being asked for by others, and not answered yet; try again.")
            self._taken.update(names)  # all together: two callers never wait for each other
        try:
            yield
        finally:
            with self._changed:
                self._taken.difference_update(names)
                self._changed.notify_all()
