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
        self._lock = threading.Lock()
        self._free = max(1, places)

    @property
    def free(self) -> int:
        """How many more may wait at this moment."""
        return self._free

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Hold a place for the time of the block; yields whether there was one."""
        with self._lock:
            held = self._free > 0
            self._free -= held
        try:
            yield held
        finally:
            with self._lock:
                self._free += held
