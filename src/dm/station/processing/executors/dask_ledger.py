"""The ledger of stages at the scheduler: who may run a stage, who does, and how it ended.

dask.distributed runs a task again when its worker dies. A stage must not run again unless its workflow says so. So a
worker asks here before it starts one: each offer can be claimed once, by the worker it was made to. What a worker
claimed and did not end when it goes is lost, which is told, not repeated. Results stay here until the service has
recorded them. The scheduler runs this as a plugin, sent by value: it needs ``distributed`` alone, and what it takes and
gives are plain values.

One ledger serves several services: ``owner`` is a service's spool. A service that was killed may still have a client
that has not noticed; ``attach`` counts the owner's epoch up, and only the newest one is obeyed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Collection
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

TASK_PREFIX = "dm-stage-"
OFFERED, UNPLACED, CLAIMED, ENDED, LOST = "offered", "unplaced", "claimed", "ended", "lost"
_ACTIVE = (OFFERED, CLAIMED)


class _Owner:
    def __init__(self) -> None:
        self.epoch = 0
        self.version = 0
        self.wanted = 0
        self.seen = time.monotonic()
        self.entries: dict[str, dict[str, Any]] = {}
        self.news = asyncio.Event()

    def change(self, entry: dict[str, Any] | None = None, **values: Any) -> None:
        """Note a change and wake who watches."""
        self.version += 1
        if entry is not None:
            entry.update(values, version=self.version)
        self.news.set()


class Ledger(SchedulerPlugin):
    """See the module. Its acts are the methods below; a client calls ``dm_ledger_1(act=name, values={...})``."""

    name = "dm-ledger-1"
    idempotent = True

    def __init__(self) -> None:
        self.owners: dict[str, _Owner] = {}
        self.scheduler: Any = None
        self.begun = 0.0
        self.closing: set[str] = set()  # addresses of workers that are given nothing any more

    async def start(self, scheduler: Any) -> None:
        """See the base class."""
        self.scheduler = scheduler
        self.begun = time.monotonic()
        self.acts = {
            name: getattr(self, name)
            for name in ("attach", "workers", "place", "withdraw", "claim", "end", "watch", "forget", "drop", "want")
        }
        scheduler.handlers["dm_ledger_1"] = self.handle

    async def handle(self, act: str, values: dict[str, Any]) -> Any:
        """Carry out an act."""
        reply = self.acts[act](**values)
        return await reply if asyncio.iscoroutine(reply) else reply

    # what a service's client does

    def attach(self, owner: str) -> dict[str, Any]:
        """Begin: return the scheduler's id, the new epoch, and the state of each stage kept."""
        mine = self.owners.setdefault(owner, _Owner())
        mine.epoch += 1
        mine.seen = time.monotonic()
        mine.change()
        return {"scheduler": self.scheduler.id, "epoch": mine.epoch, "entries": mine.entries}

    def workers(self, owner: str, epoch: int) -> dict[str, list[Any]]:
        """Return by address: name, threads, threads free, whether it takes tasks."""
        self._mine(owner, epoch)
        free = self._free()
        return {
            address: [str(state.name), state.nthreads, free[address], state.status.name == "running"]
            for address, state in self.scheduler.workers.items()
        }

    def place(self, owner: str, epoch: int, keys: list[str], allowed: list[str]) -> dict[str, list[str]]:
        """Offer stages to the workers with most threads free; return address, name and token of those that fitted."""
        mine = self._mine(owner, epoch)
        free = {
            address: count
            for address, count in self._free().items()
            if count > 0 and address in allowed and self.scheduler.workers[address].status.name == "running"
        }
        placed = {}
        for key in keys:
            if not free or key in mine.entries:
                continue
            address = max(free, key=free.__getitem__)
            free[address] -= 1
            if not free[address]:
                del free[address]
            token = f"{TASK_PREFIX}{uuid.uuid4().hex}"
            name = str(self.scheduler.workers[address].name)
            entry = {"state": OFFERED, "worker": address, "name": name, "token": token, "result": None}
            mine.entries[key] = entry
            mine.change(entry)
            placed[key] = [address, name, token]
        return placed

    def withdraw(self, owner: str, epoch: int, key: str) -> bool:
        """Take an offer back; after true the stage was not started and will not be."""
        mine = self._mine(owner, epoch)
        entry = mine.entries.get(key)
        if entry is not None and entry["state"] not in (OFFERED, UNPLACED):
            return False
        mine.entries.pop(key, None)
        return True

    async def watch(self, owner: str, epoch: int, seen: int, patience: float) -> dict[str, Any]:
        """Return what changed since version ``seen``, waiting for it up to ``patience`` seconds."""
        mine = self._mine(owner, epoch)
        if mine.version == seen:
            mine.news.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(mine.news.wait(), patience)
            self._mine(owner, epoch)
        changed = {key: entry for key, entry in mine.entries.items() if entry["version"] > seen}
        return {"version": mine.version, "changed": changed}

    def forget(self, owner: str, epoch: int, keys: list[str]) -> dict[str, Any]:
        """Remove ended stages: their results are recorded. Those that have not ended stay and are returned."""
        mine = self._mine(owner, epoch)
        kept = {}
        for key in keys:
            if key in mine.entries and mine.entries[key]["state"] in _ACTIVE:
                kept[key] = mine.entries[key]
            else:
                mine.entries.pop(key, None)
        return kept

    def drop(self, owner: str, epoch: int, key: str) -> None:
        """Remove a stage that was stopped, or is as good as."""
        self._mine(owner, epoch).entries.pop(key, None)

    def want(self, owner: str, epoch: int, threads: int) -> None:
        """Say how many threads could be busy now, for a cluster that grows and shrinks."""
        self._mine(owner, epoch).wanted = threads

    # what a worker does

    def claim(self, owner: str, key: str, token: str, worker: str) -> bool:
        """Whether this worker may start the stage; true once."""
        mine = self.owners.get(owner)
        entry = mine.entries.get(key) if mine else None
        if not mine or not entry or (entry["state"], entry["token"], entry["worker"]) != (OFFERED, token, worker):
            return False
        mine.change(entry, state=CLAIMED)
        return True

    def end(self, owner: str, key: str, token: str, result: dict[str, Any]) -> None:
        """Note how a stage ended."""
        mine = self.owners.get(owner)
        entry = mine.entries.get(key) if mine else None
        if mine and entry and entry["token"] == token and entry["state"] != ENDED:
            mine.change(entry, state=ENDED, result=result)

    # what the scheduler tells

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """See the base class."""
        self.closing.discard(worker)
        for mine in self.owners.values():
            for entry in mine.entries.values():
                if entry["worker"] == worker and entry["state"] in _ACTIVE:
                    mine.change(entry, state=LOST if entry["state"] == CLAIMED else UNPLACED)
            mine.change()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """See the base class. A task that erred could not even be loaded by its worker, or was killed with it."""
        if finish != "erred" or not str(key).startswith(TASK_PREFIX):
            return
        for mine in self.owners.values():
            for entry in mine.entries.values():
                if entry["token"] == key and entry["state"] in _ACTIVE:
                    why = str(kwargs.get("exception_text") or "it was killed")[:1000]
                    told = {"lost" if entry["state"] == CLAIMED else "reason": f"The worker could not run it: {why}."}
                    mine.change(entry, state=ENDED, result=told)

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """See the base class."""
        for mine in self.owners.values():
            mine.change()

    # what a cluster that grows and shrinks asks

    def wanted(self) -> int:
        """Threads that could be busy now."""
        return sum(mine.wanted for mine in self.owners.values())

    def busy(self) -> set[str]:
        """Addresses of workers that have something to do, or hold what was not fetched yet."""
        kept = {
            entry["worker"]
            for mine in self.owners.values()
            for entry in mine.entries.values()
            if entry["state"] in _ACTIVE or (entry["result"] or {}).get("directory")
        }
        return kept | {address for address, state in self.scheduler.workers.items() if state.processing}

    def idle_seconds(self) -> float:
        """Seconds since a service was last heard; 0 while there are stages, also ended ones nobody asked for yet."""
        if any(mine.entries for mine in self.owners.values()):
            return 0.0
        return time.monotonic() - max(self.begun, *(mine.seen for mine in self.owners.values()), 0.0)

    def _mine(self, owner: str, epoch: int) -> _Owner:
        mine = self.owners.get(owner)
        if mine is None or mine.epoch != epoch:
            raise PermissionError("Another client has taken over.")
        mine.seen = time.monotonic()
        return mine

    def _free(self) -> dict[str, int]:
        used = dict.fromkeys(self.scheduler.workers, 0)
        for mine in self.owners.values():
            for entry in mine.entries.values():
                if entry["state"] in _ACTIVE and entry["worker"] in used:
                    used[entry["worker"]] += 1
        return {
            address: state.nthreads - used[address] - self._others(state.processing)
            if address not in self.closing
            else 0
            for address, state in self.scheduler.workers.items()
        }

    @staticmethod
    def _others(tasks: Collection[Any]) -> int:
        return sum(1 for task in tasks if not str(task.key).startswith(TASK_PREFIX))
