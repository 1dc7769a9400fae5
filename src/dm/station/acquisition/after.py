"""After storage: the plugins, in their order, and the final outcome of each file."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict

from dm.common.errors import (
    AuthenticationError,
    CommunicationError,
    DmException,
    InvalidRequest,
    InvalidSession,
    ServiceUnavailable,
    TaskTimeout,
    TransferError,
)
from dm.common.paths import encode
from dm.common.spent import part
from dm.station.acquisition.batch import Batch, Load
from dm.station.acquisition.gate import Gate
from dm.station.acquisition.info import source_url
from dm.station.acquisition.inplace import remove_sources
from dm.station.acquisition.pipeline import Pipeline
from dm.station.acquisition.plugins.base import Plugin, PluginBatch, PluginFile
from dm.station.acquisition.rows import Item, State, row_id
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.store import Document, Store
from dm.station.acquisition.task import Task

_log = logging.getLogger(__name__)
_AWAY = (  # what says of a service that nobody need ask it now; other errors may be about these files only
    AuthenticationError,
    CommunicationError,
    InvalidSession,
    ServiceUnavailable,
    TaskTimeout,
    TransferError,
)
_CARRIED = 3  # times that a batch in memory is tried before its files wait in the database
_NO_PLACE = 0.02  # seconds until a batch is looked at again that found a plugin occupied; each time half as much more
_TURNED_AWAY = 10  # times, about 3 s, that it is kept in memory for that


class After:
    """See the module."""

    def __init__(self, store: Store, pipeline: Pipeline, settings: AcquisitionSettings, site: StorageSite) -> None:
        self.store = store
        self.site = site
        self.pipeline = pipeline
        self.settings = settings
        self.gate = Gate(settings.workers, settings.batches_per_task)

    def run(self, batch: Batch) -> float | None:
        """Run the plugins that a batch's files still need and write what is final.

        Files that have to be tried again stay in ``batch.loads``, with their row in state ``stored``.

        :returns: seconds until then, when nothing failed but a plugin had no place; else ``None``.
        """
        task = batch.task
        waiting: dict[int, str] = {}
        failed: dict[int, str] = {}
        undone: defaultdict[int, list[Plugin]] = defaultdict(list)
        busy = False
        for plugin in self.per_batch(task):
            todo = [
                load
                for load in batch.loads
                if plugin.name in load.pending and not any(plugin.waits_for(other) for other in undone[id(load)])
            ]
            if not todo or self.pipeline.stop_event.is_set():
                continue
            if why := self.gate.away(plugin):
                for load in todo:
                    undone[id(load)].append(plugin)
                    waiting[id(load)] = f"Plugin {plugin.name}: {why}"
                continue
            with self.gate.entered(plugin, task.id) as free:
                pairs = self._call(batch, plugin, todo) if free else []
            busy = busy or not free
            for load in todo if not free else ():
                undone[id(load)].append(plugin)
            for load, file in pairs:
                load.metadata = file.metadata
                load.notes += file.notes
                young = load.waits() < self.settings.retry_hours * 3600
                if file.error and ((file.transient and young) or plugin.required):
                    undone[id(load)].append(plugin)
                    said = waiting if file.transient and young else failed
                    said[id(load)] = f"Plugin {plugin.name}: {file.error}"
                else:
                    load.pending.remove(plugin.name)
                    if file.error:
                        load.notes.append(f"Plugin {plugin.name}: {file.error}")
        if waiting:
            task.trouble = next(iter(waiting.values()))
        self._write(batch, waiting, failed)
        batch.turned_away += busy and not waiting
        stuck = waiting and (batch.attempt >= _CARRIED or any(self.gate.away(plugin) for plugin in task.plugins))
        if stuck or batch.turned_away > _TURNED_AWAY:
            self._park(batch)
        return _NO_PLACE * 1.5**batch.turned_away if busy and not waiting else None

    def _park(self, batch: Batch) -> None:
        """Let go of files that wait for a plugin: their rows say for which, and :func:`.amends.feed` brings them back.

        So a service that is away for days costs no memory, storing goes on, and a file that changes is taken again.
        """
        task = batch.task
        with self.pipeline.condition:
            task.parkings += 1
            task.feed_at = time.monotonic() + self.pipeline.pause_for(task.parkings)
            task.unfed = True
            for load in batch.loads:
                task.leave(load.item)
            batch.loads = []

    @staticmethod
    def per_batch(task: Task) -> list[Plugin]:
        """Return the plugins that see a task's files batch by batch."""
        once = task.spec.processing_mode == "directory"
        return [plugin for plugin in task.plugins if not (once and plugin.once_per_directory)]

    def _call(self, batch: Batch, plugin: Plugin, loads: list[Load]) -> list[tuple[Load, PluginFile]]:
        task = batch.task
        pairs = [(load, plugin_file(task, load)) for load in loads]
        info = task.info()
        info["workflowArgs"] = task.spec.workflow_args
        call = PluginBatch(
            info,
            task.experiment,
            task.spec.root,
            [file for _load, file in pairs],
            directory_mode=task.spec.processing_mode == "directory",
            id=batch.id,
        )
        try:
            with part(f"plugin {plugin.name}"), task.meters.plugin_call(plugin.name):
                plugin.process(call)
            self.gate.answered(plugin, "", self.pipeline.pause_for)
        except DmException as error:
            self.gate.answered(plugin, error.message if isinstance(error, _AWAY) else "", self.pipeline.pause_for)
            _log.warning("Plugin %s of %s %s: %s", plugin.name, task.kind, task.id, error)
            for _load, file in pairs:
                file.fail(error.message, transient=not isinstance(error, InvalidRequest))
        except Exception as error:
            _log.exception("Plugin %s of %s %s failed unexpectedly.", plugin.name, task.kind, task.id)
            for load, file in pairs:
                load.item.attempts += 1
                file.fail(f"{type(error).__name__}: {error}", transient=load.item.attempts < self.settings.attempts)
        return pairs

    def _write(self, batch: Batch, waiting: dict[int, str], failed: dict[int, str]) -> None:
        task = batch.task
        outcomes: list[tuple[Item, State, Document]] = []
        stay: list[Load] = []
        leaving: list[Item] = []
        once = {plugin.name for plugin in task.plugins} - {plugin.name for plugin in self.per_batch(task)}
        kept: dict[bytes, str] = {}
        if task.spec.remove_source_files:
            done = [load for load in batch.loads if id(load) not in failed and not set(load.pending) - once]
            kept = remove_sources(task, done, self.site)
        for load in batch.loads:
            fields = outcome_fields(load, batch.times)
            left = [name for name in load.pending if name not in once]
            if problem := failed.get(id(load)) or waiting.get(id(load)):
                load.item.happened("failed" if id(load) in failed else "waiting", problem)
            if id(load) in failed:
                fields.update(lastError=failed[id(load)], pendingPlugins=left, waitingSince=None)
                outcomes.append((load.item, State.FAILED, fields))
                leaving.append(load.item)
            elif left:
                stay.append(load)
                since = load.waiting_since or (time.time() if id(load) in waiting else None)
                load.waiting_since = since or 0.0
                fields.update(lastError=waiting.get(id(load), ""), pendingPlugins=left, waitingSince=since)
                if task.ledger.state(load.item.path) is not State.STORED or id(load) in waiting:
                    outcomes.append((load.item, State.STORED, fields))
            else:
                if note := kept.get(load.item.path):
                    fields["notes"] = [*fields.get("notes", []), note]
                fields.update(lastError="", pendingPlugins=[])
                if load.waiting_since:
                    fields["waitingSince"] = None
                outcomes.append((load.item, State.DONE, fields))
                leaving.append(load.item)
        task.ledger.finish(outcomes)
        batch.loads = stay
        with self.pipeline.condition:
            for item in leaving:
                task.leave(item)


def plugin_file(task: Task, load: Load) -> PluginFile:
    """Return what a plugin is told of a stored file."""
    item, result = load.item, load.result or {}
    digests = dict(result.get("digests") or {})
    path = task.target(item.path)
    source = task.source.root.rstrip(b"/") + b"/" + item.path
    in_storage = os.path.join(encode(task.root_directory), path)
    proof = next(iter(sorted(digests.items())), ("", f"{item.size}-{item.mtime_ns}"))[1]
    return PluginFile(
        path=path,
        source_path=source,
        source_url=source_url(task.source, item.path),
        storage_path=source if task.spec.skip_transfer else in_storage,
        size=int(result.get("size", item.size)),
        mtime_ns=item.mtime_ns,
        digests=digests,
        md5=str(result.get("md5Sum") or (load.outcome.md5 if load.outcome else "") or ""),
        version=int(result.get("version") or 1),
        key=f"{row_id(task.id, item.path)}:{proof}" + (f":{load.run}" if load.run else ""),
        source_host=task.source.host,
        run=load.run,
        metadata=load.metadata or dict(task.spec.metadata),
        in_place=task.spec.skip_transfer,
    )


def outcome_fields(load: Load, times: dict[str, float]) -> Document:
    """Return the ledger fields of a stored file.

    :param times: epoch seconds when it was ``moved`` and ``stored``.
    """
    result = load.result or {}
    fields: Document = {
        "digests": dict(result.get("digests") or {}),
        "md5Sum": result.get("md5Sum") or (load.outcome.md5 if load.outcome else "") or None,
        "version": int(result.get("version") or 1),
        "storageStatus": result.get("status", "stored"),
        "attempts": load.item.attempts,
        "times": dict(times),
    }
    if load.outcome and load.outcome.transport:
        fields["transport"] = load.outcome.transport
    if load.notes:
        fields["notes"] = load.notes
    return fields
