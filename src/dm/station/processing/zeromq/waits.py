"""Requests that wait for the end of a job, without a thread that waits."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

ENDED = 10_000
"""Ended jobs remembered, for requests that looked just before the end."""

T = TypeVar("T", bound=Hashable)


class Waits(Generic[T]):
    """Who waits for which job until when. For one thread."""

    def __init__(self) -> None:
        self._by_job: dict[str, list[T]] = {}
        self._deadlines: dict[T, tuple[float, str]] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()

    def park(self, request: T, job: str, looked: float, deadline: float) -> bool:
        """Let a request wait. :param looked: when it saw the job running, by the monotonic clock.

        :returns: ``False`` when the job has ended since: look again.
        """
        if self._ended.get(job, float("-inf")) >= looked:
            return False
        self._by_job.setdefault(job, []).append(request)
        self._deadlines[request] = (deadline, job)
        return True

    def next_deadline(self) -> float:
        """Return when the next one has waited long enough, by the monotonic clock."""
        return min((deadline for deadline, _ in self._deadlines.values()), default=float("inf"))

    def due(self, now: float) -> list[T]:
        """Take out and return those that have waited long enough."""
        return self._taken([request for request, (deadline, _) in self._deadlines.items() if deadline <= now])

    def ended(self, job: str) -> list[T]:
        """Note the end of a job; take out and return those that waited for it."""
        self._ended[job] = time.monotonic()
        self._ended.move_to_end(job)
        while len(self._ended) > ENDED:
            self._ended.popitem(last=False)
        return self._taken(list(self._by_job.get(job, ())))

    def everybody(self) -> list[T]:
        """Take out and return all."""
        return self._taken(list(self._deadlines))

    def _taken(self, requests: list[T]) -> list[T]:
        for request in requests:
            _, job = self._deadlines.pop(request)
            waiting = self._by_job[job]
            waiting.remove(request)
            if not waiting:
                del self._by_job[job]
        return requests
