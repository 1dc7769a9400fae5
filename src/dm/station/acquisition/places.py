"""How many batches are moved at the same time: in all, for one DAQ or upload, and to one destination.

A destination that hangs keeps the batches it has, and their threads; it must not get all there are. A batch without a
place is put aside for a moment and holds no thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Places:
    """See the module. Thread-safe.

    :param moves: batches moved at the same time. :param per_destination: of those, to one destination.
    """

    def __init__(self, moves: int, per_destination: int) -> None:
        self._moves = moves
        self._per_destination = min(per_destination, moves)
        # Half of them at most, so that big files of one task do not stop all others.
        self._per_task = max(1, moves // 2)
        self._lock = threading.Lock()
        self._tasks: Counter[str] = Counter()
        self._destinations: Counter[str] = Counter()

    @contextmanager
    def entered(self, task: str, destination: str) -> Iterator[bool]:
        """Take a place for the time of a move.

        :param task: id of the DAQ or upload. :param destination: see :func:`destination_of`.
        :yields: whether there was one; without it nothing must be moved now.
        """
        with self._lock:
            free = (
                self._tasks.total() < self._moves
                and self._tasks[task] < self._per_task
                and self._destinations[destination] < self._per_destination
            )
            if free:
                self._tasks[task] += 1
                self._destinations[destination] += 1
        try:
            yield free
        finally:
            if free:
                with self._lock:
                    for counter, key in ((self._tasks, task), (self._destinations, destination)):
                        counter[key] -= 1
                        if not counter[key]:
                            del counter[key]


def destination_of(experiment: Mapping[str, Any]) -> str:
    """Return the storage an experiment's files go to: its name and host."""
    storage = experiment.get("primaryStorage")
    name = storage.get("name", "") if isinstance(storage, Mapping) else ""
    return f"{name}@{experiment.get('storageHost') or ''}"
