"""Places for processes: the most urgent jobs first, owners in turn, each owner's oldest job first."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, OrderedDict

_Entry = tuple[int, str, int, "asyncio.Future[None]"]


class FairSlots:
    """A limited number of places. For use in one event loop.

    :param limit: places in all. :param per_owner: places of one owner; 0 for any number.
    """

    def __init__(self, limit: int, per_owner: int = 0) -> None:
        self.limit = limit
        self.per_owner = per_owner
        self.used = 0
        self._of_owner: Counter[str] = Counter()
        self._waiting: OrderedDict[str, list[_Entry]] = OrderedDict()
        self._count = 0
        self.waiting = 0  # how many wait for a place; read by other threads

    def busy(self, owner: str) -> bool:
        """Whether this owner will have to wait when asking now."""
        return self.used >= self.limit or self._full(owner)

    def _full(self, owner: str) -> bool:
        return 0 < self.per_owner <= self._of_owner[owner]

    def take(self, owner: str) -> None:
        """Occupy a place at once, for a process that is running already."""
        self.used += 1
        self._of_owner[owner] += 1

    async def acquire(self, owner: str, order: str, priority: int = 0) -> None:
        """Wait for a place.

        :param owner: whose turn counts. :param order: the smallest of an owner's goes first.
        :param priority: higher ones go before all lower ones, whoever's they are.
        """
        if not self.busy(owner):
            self.take(owner)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._waiting.setdefault(owner, []), (-priority, order, self._count, future))
        self.waiting += 1
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(owner)  # the place came at the moment of the cancellation
            else:
                future.cancel()
            raise
        finally:
            self.waiting -= 1

    def release(self, owner: str) -> None:
        """Give a place back."""
        self.used -= 1
        self._of_owner[owner] -= 1
        if not self._of_owner[owner]:
            del self._of_owner[owner]
        while self.used < self.limit and (entry := self._next()) is not None:
            following, future = entry
            self.take(following)
            future.set_result(None)

    def _next(self) -> tuple[str, asyncio.Future[None]] | None:
        best: tuple[int, str] | None = None
        for owner, heap in list(self._waiting.items()):
            while heap and heap[0][3].done():  # given up meanwhile
                heapq.heappop(heap)
            if not heap:
                del self._waiting[owner]
            elif not self._full(owner) and (best is None or heap[0][0] < best[0]):
                best = (heap[0][0], owner)
        if best is None:
            return None
        owner = best[1]
        future = heapq.heappop(self._waiting[owner])[3]
        if self._waiting[owner]:
            self._waiting.move_to_end(owner)
        else:
            del self._waiting[owner]
        return owner, future
