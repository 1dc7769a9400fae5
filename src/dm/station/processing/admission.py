"""Which jobs are under way: of thousands that wait, so many at a time, the most urgent first, owners in turn."""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any


@dataclass(order=True)
class Waiting:
    """A job that has not begun, or has to be taken up again.

    :param rank: what goes first among jobs of one owner: ``(-priority, order)``.
    :param workflow: the workflow it runs, and :param most: how many jobs of that may be under way (0 for any number).
    :param turn: tells it from what had its id before. :param document: as stored, where it is at hand.
    """

    rank: tuple[int, str]
    id: str = field(compare=False)
    owner: str = field(compare=False)
    workflow: str = field(compare=False)
    most: int = field(compare=False)
    turn: tuple[str, int] = field(compare=False, default=("", 0))
    document: dict[str, Any] | None = field(compare=False, default=None)


class Admission:
    """The queue in front of the engine. For use in one event loop.

    :param limit: jobs under way at the same time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._ids: dict[str, Waiting] = {}
        self._waiting: OrderedDict[str, list[Waiting]] = OrderedDict()  # by owner
        self._parked: dict[str, list[Waiting]] = {}  # by workflow, while that has no room
        self._under_way: dict[str, Waiting] = {}
        self._of_workflow: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, job: Waiting) -> None:
        """Put a job into the queue; one that is there or under way already stays as it is."""
        if job.id not in self._ids and job.id not in self._under_way:
            self._ids[job.id] = job
            self._push(job)

    def _push(self, job: Waiting) -> None:
        heapq.heappush(self._waiting.setdefault(job.owner, []), job)

    def remove(self, job_id: str) -> Waiting | None:
        """Take a job out of the queue, whoever's turn it is; it is then under way."""
        job = self._ids.pop(job_id, None)  # what the heaps still have of it is passed over
        if job is not None:
            self._begin(job)
        return job

    def ending(self, job_id: str, turn: tuple[str, int]) -> bool:
        """Whether another turn of a job is still under way: it has ended, only that is not known here yet."""
        job = self._under_way.get(job_id)
        return job is not None and job.turn != turn

    def next(self) -> Waiting | None:
        """Take the next job out of the queue, if one may begin now.

        Of the owners whose first job is the most urgent, the one comes first whose turn was longest ago.
        """
        if len(self._under_way) >= self.limit:
            return None
        best: Waiting | None = None
        for owner in list(self._waiting):
            job = self._first(owner)
            if job is not None and (best is None or job.rank[0] < best.rank[0]):
                best = job
        if best is None:
            return None
        heapq.heappop(self._waiting[best.owner])
        self._waiting.move_to_end(best.owner)
        del self._ids[best.id]
        self._begin(best)
        return best

    def _first(self, owner: str) -> Waiting | None:
        """Return the first job of an owner whose workflow has room; park those before it."""
        heap = self._waiting[owner]
        while heap:
            job = heap[0]
            if self._ids.get(job.id) is job:
                if not job.most or self._of_workflow[job.workflow] < job.most:
                    return job
                heapq.heappush(self._parked.setdefault(job.workflow, []), job)
            heapq.heappop(heap)
        del self._waiting[owner]
        return None

    def _begin(self, job: Waiting) -> None:
        self._under_way[job.id] = job
        self._of_workflow[job.workflow] += 1

    def ended(self, job_id: str) -> None:
        """Give the place of a job back."""
        job = self._under_way.pop(job_id, None)
        if job is None:
            return
        self._of_workflow[job.workflow] -= 1
        if not self._of_workflow[job.workflow]:
            del self._of_workflow[job.workflow]
        parked = self._parked.get(job.workflow, [])
        while parked:
            following = heapq.heappop(parked)
            if self._ids.get(following.id) is following:
                self._push(following)
                break
        if not parked:
            self._parked.pop(job.workflow, None)
