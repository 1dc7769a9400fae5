"""A batch: ready files that travel together, durable as one document."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dm.common.paths import decode, encode
from dm.station.acquisition.rows import Item
from dm.station.acquisition.store import Document

if TYPE_CHECKING:
    from dm.station.acquisition.task import Task
    from dm.station.acquisition.transports.base import FileOutcome

MOVE = "move"  # to be opened, moved and handed over (also: we do not know how far it came)
RESULT = "result"  # handed over, waiting for storage's verdict
PLUGINS = "plugins"  # stored; plugins have work to do


@dataclass
class Load:
    """One file in a batch.

    :param result: storage's verdict, once known (``size``, ``digests``, ``md5Sum``, ``version``, ``status``).
    :param pending: names of the plugins that still have to see it. :param metadata: kept between plugins.
    :param run: counts the decisions to have it processed again.
    :param waiting_since: epoch seconds when a plugin could not do it for the first time; 0 if none.
    """

    item: Item
    staged_name: str
    outcome: FileOutcome | None = None
    result: dict[str, Any] | None = None
    pending: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    run: int = 0
    waiting_since: float = 0.0

    def waits(self) -> float:
        """Return for how many seconds it has waited for a plugin, restarts included."""
        return time.time() - self.waiting_since if self.waiting_since else 0.0


@dataclass
class Batch:
    """See the module.

    :param attempt: how often in a row its present phase failed. :param due: monotonic seconds of the next try.
    :param times: epoch seconds when it was ``moved`` and ``stored``. :param turned_away: how often it found a plugin
        that it needs occupied.
    :param crowded: it waits for a place among the movers.
    :param names: plugins that stored files are to see once more; ``None``: all of the task. :param run: see
        :class:`Load`.
    """

    id: str
    task: Task
    loads: list[Load]
    phase: str = MOVE
    attempt: int = 0
    due: float = 0.0
    recorded: bool = False
    first_failure: float = 0.0
    turned_away: int = 0
    times: dict[str, float] = field(default_factory=dict)
    names: list[str] | None = None
    crowded: bool = False
    run: int = 0

    @classmethod
    def of(cls, task: Task, items: list[Item]) -> Batch:
        """Make a batch of items."""
        loads = [Load(item, f"f{number:06d}") for number, item in enumerate(items)]
        return cls(str(uuid.uuid4()), task, loads)

    def document(self) -> Document:
        """Return what is kept in the database. The files are one text: thousands of fields cost the database more."""
        files = [
            [
                decode(load.item.path),
                load.item.size,
                load.item.mtime_ns,
                load.item.rule,
                load.item.attempts,
                load.item.ready,
                load.staged_name,
                load.result,
            ]
            for load in self.loads
        ]
        return {
            "_id": self.id,
            "task": self.task.id,
            "phase": self.phase,
            "created": time.time(),
            "times": self.times,
            "plugins": self.names,
            "run": self.run,
            "files": json.dumps(files, separators=(",", ":")),
        }

    @classmethod
    def adopt(cls, task: Task, document: Document) -> Batch:
        """Rebuild a batch after a restart. Plugins see its files once more: they are idempotent."""
        loads = [
            Load(Item(encode(path), size, mtime_ns, rule, attempts, ready=ready), name, result=result)
            for path, size, mtime_ns, rule, attempts, ready, name, result in json.loads(document["files"])
        ]
        batch = cls(str(document["_id"]), task, loads, str(document["phase"]), recorded=True)
        batch.times = dict(document.get("times") or {})
        batch.names, batch.run = document.get("plugins"), int(document.get("run") or 0)
        for load in loads:
            load.run = batch.run
        return batch
