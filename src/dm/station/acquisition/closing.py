"""The end of a DAQ or upload: last plugins, last counts, status, grant, and the upload that may follow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dm.common import statuses, timestamps
from dm.common.errors import DmException, InvalidRequest, ServiceUnavailable
from dm.common.paths import display
from dm.station.acquisition.after import plugin_file
from dm.station.acquisition.carry import forget
from dm.station.acquisition.pipeline import Pipeline
from dm.station.acquisition.plugins.base import Plugin, PluginBatch, PluginFile
from dm.station.acquisition.resume import load_of
from dm.station.acquisition.rows import Item, State, item_of
from dm.station.acquisition.site import Grant, StorageSite
from dm.station.acquisition.store import Document, Store
from dm.station.acquisition.task import UPLOAD, Task

_log = logging.getLogger(__name__)
_CHUNK = 2000
_SLICE = 0.25  # seconds after which a pause looks whether the task is to be stopped


class Closing:
    """See the module.

    :param follow: starts the upload that is to follow a DAQ (``uploadDataDirectoryOnExit``); called before the DAQ
        ends, perhaps more than once. Returns whether the grant is needed on.
    """

    def __init__(
        self, store: Store, site: StorageSite, pipeline: Pipeline, follow: Callable[[Task], bool] | None = None
    ) -> None:
        self.store = store
        self.site = site
        self.pipeline = pipeline
        self.follow = follow

    def close(self, task: Task) -> None:
        """End a task whose files are all decided, or that cannot go on. May be repeated after a failure.

        :raises DmException: the database or a service is down; to be called again.
        """
        if task.halted:
            self._give_up(task, State.FAILED, task.halted)
        elif task.aborting:
            self._give_up(task, State.SKIPPED, f"The {task.kind} was stopped before this file's turn.")
        else:
            self._once_per_directory(task)
        keep_grant = False
        if task.spec.upload_data_directory_on_exit and not task.halted and not task.aborting and self.follow:
            keep_grant = self.follow(task)
        status, message = self._verdict(task)
        task.set(
            status=status,
            open=False,
            endTime=timestamps.now(),
            counts=task.counts(),
            errorMessage=message,
        )
        if not task.ledger.count(State.READY):
            self.store.forget_intakes(task.id)
        self.store.release(str(task.document["claim"]), task.id)
        if not keep_grant:
            self.revoke(task.kind, task.id, task.grant)
        _log.info(
            "%s %s of %s: %s. %s",
            task.kind,
            task.id,
            task.data_directory.encode("ascii", "replace").decode(),
            status,
            message,
        )

    def _verdict(self, task: Task) -> tuple[str, str]:
        counts = task.counts()
        failed, total = counts["nProcessingErrors"], counts["countFiles"]
        if task.halted:
            return statuses.FAILED, task.halted
        if task.aborting:
            limit = f"when its time was over (maxRunTimeInHours {task.spec.max_run_time_in_hours:g})"
            why = limit if task.document.get("outOfTime") else "by its user"
            return statuses.ABORTED, f"The {task.kind} was stopped {why}."
        if failed:
            first = counts["processingErrors"][0] if counts["processingErrors"] else ""
            return statuses.FAILED, f"{failed} of {total} files failed. {first}".strip()
        if task.directory_error:
            return statuses.FAILED, task.directory_error
        if task.kind == UPLOAD and total == counts["nSkippedFiles"]:
            return statuses.DONE, f"There are no new files to upload in {display(task.source.root)!r}."
        return statuses.DONE, ""

    def _give_up(self, task: Task, state: State, why: str) -> None:
        """Decide the files that will not be tried any more."""
        for document in self.store.batches_of(task.id):
            if document["phase"] == "move":
                try:
                    self.site.abandon(str(document["_id"]), task.grant)
                except DmException as error:
                    _log.info("Batch %s is left to storage's sweep: %s", document["_id"], error)
                forget(task, str(document["_id"]))
            self.store.drop_batch(str(document["_id"]))
        while items := task.ledger.refill(_CHUNK):
            task.ledger.finish([(item, state, {"lastError": why}) for item in items])
        while rows := self.store.rows_in(task.id, "stored", limit=_CHUNK):
            task.ledger.finish([_left(row, state, why) for row in rows])

    def _once_per_directory(self, task: Task) -> None:
        """Call the plugins that see a directory as a whole."""
        if task.spec.processing_mode != "directory":
            return
        done = set(task.document.get("directoryPlugins") or [])
        for plugin in task.plugins:
            if not plugin.once_per_directory or plugin.name in done:
                continue
            files = [plugin_file(task, load_of(row)) for row in self.store.rows_in(task.id, "done")]
            if files:
                self._call(task, plugin, files)
            if task.aborting:
                return
            done.add(plugin.name)
            task.set(directoryPlugins=sorted(done))

    def _call(self, task: Task, plugin: Plugin, files: list[PluginFile]) -> None:
        info = task.info()
        info["workflowArgs"] = task.spec.workflow_args
        batch = PluginBatch(info, task.experiment, task.spec.root, files, directory_mode=True, last=True)
        attempt = 0
        while not self.pipeline.stop_event.is_set():
            if task.aborting:
                return
            for file in files:
                file.error, file.transient = "", False
            try:
                with task.meters.plugin_call(plugin.name):
                    plugin.process(batch)
                errors = [file for file in files if file.error]
                if not errors:
                    return
                reason, transient = errors[0].error, all(file.transient for file in errors)
            except DmException as error:
                reason, transient = error.message, not isinstance(error, InvalidRequest)
            if not transient:
                task.directory_error = f"Plugin {plugin.name}: {reason}"
                return
            attempt += 1
            task.trouble = f"Plugin {plugin.name}: {reason}"
            until = time.monotonic() + self.pipeline.pause_for(attempt)
            while (left := until - time.monotonic()) > 0 and not task.aborting:
                if self.pipeline.stop_event.wait(min(left, _SLICE)):
                    break
        raise ServiceUnavailable("The service stops; what is left is done after its next start.")

    def revoke(self, kind: str, task_id: str, grant: Grant) -> None:
        """Give a grant back; if storage cannot be reached, its own limits end it."""
        if not grant.id:
            return
        try:
            self.site.revoke(grant)
        except DmException as error:
            _log.warning("The grant of %s %s was not given back: %s", kind, task_id, error)


def _left(row: Document, state: State, why: str) -> tuple[Item, State, Document]:
    """Return the outcome of a stored file whose plugins will not be tried any more."""
    if row.get("run") and state is State.SKIPPED:  # it was done before somebody had it processed again
        times = {key: value for key, value in (row.get("times") or {}).items() if key in ("moved", "stored")}
        return item_of(row), State.DONE, {"lastError": "", "pendingPlugins": [], "times": times}
    return item_of(row), state, {"lastError": why}
