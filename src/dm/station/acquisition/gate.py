"""How many batches plugins work on at the same time, so that one that hangs leaves threads for everybody else.

The pipeline's threads are shared. A plugin gets at most half of them (or what its ``concurrency`` says), all plugins
together leave two for moving files, and those of one DAQ or upload leave it one of its own. A batch whose plugin has
no place is put aside for a moment and holds no thread. A plugin whose service did not answer is not asked again for a
while, by no batch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dm.station.acquisition.plugins.base import Plugin

_FREE = 2  # threads that plugins leave alone


class Gate:
    """See the module. Thread-safe.

    :param workers: threads of the pipeline. :param of_a_task: those that one DAQ or upload may have.
    """

    def __init__(self, workers: int, of_a_task: int) -> None:
        self._of_a_task = max(1, of_a_task - 1)
        self._most = max(1, workers - _FREE)
        self._each = max(1, workers // 2)
        self._lock = threading.Lock()
        self._inside: dict[int, tuple[str, float, str]] = {}
        self._number = 0
        self._away: dict[str, tuple[int, float, str]] = {}

    @contextmanager
    def entered(self, plugin: Plugin, task: str) -> Iterator[bool]:
        """Enter for the time of a call.

        :param task: id of the DAQ or upload.
        :yields: whether there is a place; without one, the call must not be made now.
        """
        place = self._take(plugin, task)
        try:
            yield place is not None
        finally:
            if place is not None:
                with self._lock:
                    del self._inside[place]

    def away(self, plugin: Plugin) -> str:
        """Return why a plugin is not asked for the moment, or empty text: its service did not answer just now."""
        with self._lock:
            _times, until, why = self._away.get(plugin.name, (0, 0.0, ""))
        return why if time.monotonic() < until else ""

    def answered(self, plugin: Plugin, why: str, pause_for: Callable[[int], float]) -> None:
        """Note how a call ended.

        :param why: nothing could be tried; empty if it could. :param pause_for: seconds to wait after so many times.
        """
        with self._lock:
            times = self._away.pop(plugin.name, (0, 0.0, ""))[0] + 1
            if why:
                self._away[plugin.name] = (times, time.monotonic() + pause_for(times), why)

    def longest(self) -> tuple[str, float]:
        """Return the plugin whose present call lasts longest, and its seconds; ``("", 0.0)`` when none is at work."""
        with self._lock:
            name, since, _task = min(self._inside.values(), key=lambda entry: entry[1], default=("", 0.0, ""))
        return name, time.monotonic() - since if name else 0.0

    def _take(self, plugin: Plugin, task: str) -> int | None:
        with self._lock:
            entries = self._inside.values()
            mine = sum(name == plugin.name for name, _since, _task in entries)
            same = sum(other == task for _name, _since, other in entries)
            full = len(entries) >= self._most or mine >= (plugin.placing.concurrency or self._each)
            if full or same >= self._of_a_task:
                return None
            self._number += 1
            self._inside[self._number] = (plugin.name, time.monotonic(), task)
            return self._number
