"""How many batches plugins work on at the same time, so that one that hangs leaves threads for everybody else.

The pipeline's threads are shared. A plugin gets at most half of them (or what its ``concurrency`` says), all plugins
together leave two for moving files. A batch whose plugin has no place is put aside for a moment and holds no thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dm.station.acquisition.plugins.base import Plugin

_FREE = 2  # threads that plugins leave alone


class Gate:
    """See the module. Thread-safe.

    :param workers: threads of the pipeline.
    """

    def __init__(self, workers: int) -> None:
        self._most = max(1, workers - _FREE)
        self._each = max(1, workers // 2)
        self._lock = threading.Lock()
        self._inside: dict[int, tuple[str, float]] = {}
        self._number = 0

    @contextmanager
    def entered(self, plugin: Plugin) -> Iterator[bool]:
        """Enter for the time of a call.

        :yields: whether there is a place; without one, the call must not be made now.
        """
        place = self._take(plugin)
        try:
            yield place is not None
        finally:
            if place is not None:
                with self._lock:
                    del self._inside[place]

    def longest(self) -> tuple[str, float]:
        """Return the plugin whose present call lasts longest, and its seconds; ``("", 0.0)`` when none is at work."""
        with self._lock:
            name, since = min(self._inside.values(), key=lambda entry: entry[1], default=("", 0.0))
        return name, time.monotonic() - since if name else 0.0

    def _take(self, plugin: Plugin) -> int | None:
        with self._lock:
            mine = sum(name == plugin.name for name, _since in self._inside.values())
            if len(self._inside) >= self._most or mine >= (plugin.placing.concurrency or self._each):
                return None
            self._number += 1
            self._inside[self._number] = (plugin.name, time.monotonic())
            return self._number
