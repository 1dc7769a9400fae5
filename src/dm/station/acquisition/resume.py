"""Taking up a task: from nothing, or from what an earlier run of the service left in the database."""

from __future__ import annotations

from dm.station.acquisition import batch as phases
from dm.station.acquisition.batch import Batch, Load
from dm.station.acquisition.pipeline import Pipeline
from dm.station.acquisition.plugins.base import still_needed
from dm.station.acquisition.rows import State, item_of, path_key
from dm.station.acquisition.store import Document, Store
from dm.station.acquisition.task import Task
from dm.station.acquisition.transports.base import FileStamp


def resume(task: Task, pipeline: Pipeline) -> None:
    """Load a task's ledger, adopt its open batches and queue its ready files.

    :raises ServiceUnavailable: the database is down; calling it again is fine.
    """
    store = task.store
    ledger = task.ledger
    ledger.clear()
    if not task.spec.reprocess_files:
        for earlier in store.tasks_at(str(task.document["place"])):
            if earlier["_id"] != task.id:
                ledger.load_prior(str(earlier["_id"]))
    items = ledger.load()
    ledger.load_baseline()
    documents = sorted(store.batches_of(task.id), key=lambda document: float(document.get("created") or 0))
    batches = [Batch.adopt(task, document) for document in documents]
    names = [plugin.name for plugin in task.plugins]
    with pipeline.condition:
        task.queue.clear()
        task.delayed.clear()
        task.batches.clear()
        task.busy.clear()
    taken: set[int] = set()
    for batch in reversed(batches):  # a file that left one batch for another travels in the newer one only
        keep(batch, names)
        batch.loads = [load for load in batch.loads if path_key(load.item.path) not in taken]
        taken.update(path_key(load.item.path) for load in batch.loads)
        if not batch.loads:
            store.drop_batch(batch.id)
    for batch in batches:  # from here on nothing fails, so that none is adopted twice
        if batch.loads:
            pipeline.adopt(batch)
    task.unfed = ledger.count(State.STORED) > 0
    ready = [item for item in items if path_key(item.path) not in task.busy]
    pipeline.add(task, ready)


def keep(batch: Batch, names: list[str]) -> None:
    """Leave in a batch only the files that are not decided yet, as they were then; plugins see stored ones again."""
    ledger, stored = batch.task.ledger, batch.phase == phases.PLUGINS
    batch.loads = [
        load
        for load in batch.loads
        if ledger.knows(load.item.path, FileStamp(load.item.size, load.item.mtime_ns)) in (State.READY, State.STORED)
        and (load.result is not None or not stored)
    ]
    for load in batch.loads:
        wanted = names if batch.names is None else [name for name in batch.names if name in names]
        load.pending = still_needed(batch.task.plugins, wanted) if stored else []


def load_of(row: Document) -> Load:
    """Rebuild a stored file from its ledger row."""
    result = {
        "status": row.get("storageStatus", "stored"),
        "size": int(row["size"]),
        "digests": dict(row.get("digests") or {}),
        "md5Sum": row.get("md5Sum"),
        "version": int(row.get("version") or 1),
    }
    return Load(item_of(row), "", result=result, waiting_since=float(row.get("waitingSince") or 0))


def drop_unborn(store: Store) -> None:
    """Remove what a crash in the middle of a start left: claims without a task, tasks without a claim."""
    claims = store.claims()
    tasks = {str(document["_id"]): document for document in store.open_tasks()}
    for claim in claims:
        if claim["task"] not in tasks:
            store.release(str(claim["_id"]), str(claim["task"]))
    held = {str(claim["task"]) for claim in claims}
    for task in tasks:
        if task not in held:
            store.forget_task(task)
