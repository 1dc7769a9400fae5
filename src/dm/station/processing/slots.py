"""Places for processes, shared fairly between owners: each owner in turn gets the next one for their oldest job."""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict


class FairSlots:
    """A limited number of places. For use in one event loop.

    :param limit: places in all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: OrderedDict[str, list[tuple[str, int, asyncio.Future[None]]]] = OrderedDict()
        self._count = 0

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(not future.done() for heap in self._waiting.values() for _, _, future in heap)

    def busy(self) -> bool:
        """Whether the next to ask will have to wait."""
        return self.used >= self.limit

    def take(self) -> None:
        """Occupy a place at once, for a process that is running already."""
        self.used += 1

    async def acquire(self, owner: str, order: str) -> None:
        """Wait for a place.

        :param owner: whose turn counts. :param order: the smallest of an owner's goes first.
        """
        if not self.busy():
            self.used += 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._waiting.setdefault(owner, []), (order, self._count, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release()  # the place came at the moment of the cancellation
            else:
                future.cancel()
            raise

    def release(self) -> None:
        """Give a place back."""
        self.used -= 1
        while self.used < self.limit and self._waiting:
            owner, heap = next(iter(self._waiting.items()))
            future = heapq.heappop(heap)[2]
            if heap:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            if not future.done():
                future.set_result(None)
                self.used += 1
