"""Which dask workers the client gives stages to: those of the right account and Python."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

from dm.station.processing.executors import dask_worker

if TYPE_CHECKING:
    from dm.station.processing.executors.dask_client import Bridge

log = logging.getLogger("dm.dask")
_ANSWER = 60.0
_PAUSE = 1.0


class Workers:
    """The workers a client has met. :param bridge: the client."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.suitable: set[str] = set()
        self.unsuitable: dict[str, str] = {}  # why, by address
        self.meeting: set[str] = set()

    def forget(self) -> None:
        """Begin anew: the connection broke."""
        self.suitable, self.unsuitable = set(), {}

    async def seen(self) -> dict[str, Any]:
        """Return what the ledger says of the workers; make the acquaintance of new ones meanwhile."""
        workers: dict[str, Any] = await self.bridge.call("workers")
        for address in workers.keys() - self.suitable - self.unsuitable.keys() - self.meeting:
            self.meeting.add(address)
            self.bridge.spawn(self._meet(address))
        self.suitable &= workers.keys()
        self.unsuitable = {address: why for address, why in self.unsuitable.items() if address in workers}
        return workers

    async def _meet(self, address: str) -> None:
        """Learn who a new worker is; it is given nothing unless it runs under the right account."""
        try:
            await self._ask_who(address)
        finally:
            self.meeting.discard(address)
            self.bridge.wake.set()

    async def _ask_who(self, address: str) -> None:
        try:
            reply = await asyncio.wait_for(
                self.bridge.client.scheduler.broadcast(msg={"op": "versions"}, workers=[address]), _ANSWER
            )
            python = dict(reply[address]["host"])["python"]
            if python.split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
                self.unsuitable[address] = f"runs Python {python}, the service {sys.version.split()[0]}"
                return
            who = await self.bridge.run_on(dask_worker.identify, worker=address)
        except (OSError, KeyError, TimeoutError, AttributeError):  # it has gone again: the next round sees
            who = None
        if who is None:
            await asyncio.sleep(_PAUSE)
            return
        if who["uid"] == 0:
            self.unsuitable[address] = "runs as root, which stages never do"
        elif who["account"] != self.bridge.account:
            self.unsuitable[address] = f"runs under account {who['account']!r}, not {self.bridge.account!r}"
        else:
            self.suitable.add(address)
            return
        log.warning("worker %s %s", address, self.unsuitable[address])
