"""How many requests may wait at the same time.

A request that waits holds a worker of the web server. Those beyond the limit are answered at once, with what is known
at that moment; clients see from the answer's earliness that they have to pause themselves.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """See the module.

    :param places: how many may wait.
    """

    def __init__(self, places: int) -> None:
        self._places = threading.BoundedSemaphore(max(1, places))

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Hold a place for the time of the block; yields whether there was one."""
        held = self._places.acquire(blocking=False)
        try:
            yield held
        finally:
            if held:
                self._places.release()
