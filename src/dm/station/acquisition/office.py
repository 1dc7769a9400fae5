"""Where DAQs and uploads are started, stopped, shown and taken up again after a restart."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from dm.common import statuses
from dm.common.errors import (
    DmException,
    InvalidArgument,
    InvalidObjectState,
    ObjectNotFound,
    ServiceUnavailable,
    TaskTimeout,
)
from dm.common.web.routes import Principal
from dm.station.acquisition import requests, sources
from dm.station.acquisition.after import After
from dm.station.acquisition.carry import Carry
from dm.station.acquisition.closing import Closing
from dm.station.acquisition.info import info
from dm.station.acquisition.keeping import Keeping
from dm.station.acquisition.lease import Lease
from dm.station.acquisition.life import Means
from dm.station.acquisition.metrics import Meters
from dm.station.acquisition.parts import Parts
from dm.station.acquisition.pipeline import Pipeline
from dm.station.acquisition.reopening import Decision, Reopened, reopened
from dm.station.acquisition.requests import Wish
from dm.station.acquisition.resume import drop_unborn
from dm.station.acquisition.runner import Runner
from dm.station.acquisition.store import Document
from dm.station.acquisition.task import DAQ, Task
from dm.station.acquisition.waits import Waits

_log = logging.getLogger(__name__)
_STRIPES = 64
_ENDING_SECONDS = 20.0  # a decision waits so long for a task that is just ending
_DECISION_SECONDS = 50.0  # below what clients wait for an answer
_EXIT_UPLOAD = uuid.UUID("6f0b6d0e-6f5c-4b51-9a5e-2f4b8d0a3c11")


class Office:
    """See the module. :meth:`open` takes the database and resumes what was running; :meth:`close` stops everything."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.store = parts.store
        self.pipeline = Pipeline(parts.settings)
        self.meters = Meters()
        parts.store.observe = self.meters.asked
        self.after = After(parts.store, self.pipeline, parts.settings, parts.site)
        self.carry = Carry(parts.store, parts.site, self.pipeline, parts.settings, self.after)
        self.closing = Closing(parts.store, parts.site, self.pipeline, self._follow)
        self.lease = Lease(parts.store, parts.settings.lease_seconds, self._lost)
        self.stopping = self.pipeline.stop_event  # ends waiting requests; the web server's own where there is one
        self.keeping = Keeping(self, parts.settings.keep_finished_days)
        self.live: dict[str, Task] = {}
        self.waits = Waits(parts.settings.threads)
        self.begun = threading.Condition()  # told of every task that starts or ends
        self.changes = 0  # how many have
        self.unresumed: dict[str, str] = {}  # id -> kind of what cannot run with today's settings
        self.on_ended: Callable[[Task], None] = lambda _task: None  # for health
        self._threads: dict[str, threading.Thread] = {}
        self._unborn: set[str] = set()
        self._lock = threading.Lock()
        self._starting = [threading.Lock() for _ in range(_STRIPES)]

    # --- life -------------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Take the database and resume all DAQs and uploads that were running.

        :raises ConfigurationError: another service has the database.
        """
        self.store.prepare()
        self.lease.acquire()
        drop_unborn(self.store)
        self.pipeline.start(self.carry)
        for document in self.store.open_tasks():
            self._resume(document)
        self.keeping.start()

    def _resume(self, document: Document) -> None:
        try:
            task = self._task(document)
            self._run(task)
        except DmException as error:
            # It cannot run with today's settings (a transport was taken out, say): kept open, and told.
            _log.error("%s %s cannot be resumed: %s", document["kind"], document["_id"], error)
            self.store.set_task(str(document["_id"]), {"errorMessage": f"It cannot be resumed: {error}"})
            self.unresumed[str(document["_id"])] = str(document["kind"])
            return
        _log.info("%s %s resumed.", task.kind, task.id)

    def close(self) -> None:
        """Stop all threads; what runs is taken up at the next start."""
        self.pipeline.stop_event.set()
        for task in list(self.live.values()):
            task.wake.set()
        deadline = time.monotonic() + 8
        self.pipeline.stop(8)
        for thread in list(self._threads.values()):
            thread.join(max(0.1, deadline - time.monotonic()))
        self.keeping.join(max(0.1, deadline - time.monotonic()))
        for plugin in self.parts.plugins:
            plugin.close()
        for transport in self.parts.transports:
            transport.close()
        self.lease.release()
        self.store.close()

    def _lost(self) -> None:
        self.pipeline.paused = "Another acquisition service took the database."

    # --- start ------------------------------------------------------------------------------------------------------
    def start(
        self, kind: str, principal: Principal, experiment_name: str, data_directory: str, task_info: dict[str, Any]
    ) -> dict[str, Any]:
        """Start a DAQ or upload, or return the same one if it runs.

        :returns: its info record.
        :raises ObjectNotFound: no such experiment. :raises InvalidArgument: anything else that cannot be.
        """
        experiment = dict(self.parts.identity.experiment(principal, experiment_name))
        wish = requests.wish(kind, self.parts, experiment, data_directory, task_info)
        with self._starting[int(wish.claim, 16) % _STRIPES]:  # the same wish waits for its twin
            running = self._running(wish.claim)
            if running is not None:
                return self.info(kind, running)
            requests.check(wish, self.parts)
            grant = self.parts.site.grant(self.parts.user_client(principal), experiment_name, self.parts.station, kind)
            task_id = str(uuid.uuid4())
            document = requests.document(wish, task_id, self.parts.station, principal.username, grant)
            try:
                return self._begin(document, wish)
            except DmException:
                with contextlib.suppress(ServiceUnavailable):  # else the next start of the service does it
                    if task_id not in self.live:
                        self.store.forget_task(task_id)
                self.closing.revoke(kind, task_id, grant)
                raise

    def _running(self, claim: str) -> str | None:
        with self._lock:
            for task in self.live.values():
                if task.document["claim"] == claim and task.document.get("open"):
                    return task.id
        return None

    def _begin(self, document: Document, wish: Wish) -> dict[str, Any]:
        task = self._task(document)
        if wish.kind == DAQ and not wish.spec.process_existing_files:
            task.ledger.save_baseline(requests.existing(wish, task))
            task.ledger.clear()
        self.store.add_task(document)
        holder = self.store.claim(wish.claim, task.id)
        if holder != task.id:
            # Only a crash between the two leaves a claim whose task is over; it is not ours to wait for.
            self.store.release(wish.claim, holder)
            self.store.claim(wish.claim, task.id)
        self._run(task)
        _log.info(
            "%s %s of experiment %s started by %s.", task.kind, task.id, task.experiment["name"], document["owner"]
        )
        return task.info()

    def _task(self, document: Document) -> Task:
        request = json.loads(document["request"])
        experiment = json.loads(document["experiment"])
        place = sources.parse(
            request["dataDirectory"], self.parts.settings, experiment, str(document.get("root", "data"))
        )
        transport = sources.choose(place.source, self.parts.transports)
        names = set(document["plugins"])
        plugins = [plugin for plugin in self.parts.plugins if plugin.name in names]
        missing = names - {plugin.name for plugin in plugins}
        if missing:
            raise InvalidArgument(f"Processing plugin {sorted(missing)[0]!r} is no longer in the settings.")
        task = Task(document, self.store, place.source, transport, plugins)
        task.meters = self.meters
        transport.measured = self.meters.moved
        return task

    def _run(self, task: Task, decision: Decision | None = None) -> Runner:
        means = Means(self.pipeline, self.parts.settings, self.closing, self._ended)
        runner = Reopened(task, means, decision) if task.document.get("reopened") else Runner(task, means)
        with self._lock:
            self.live[task.id] = task
            self._threads[task.id] = runner.thread
        runner.start()
        self._tell()
        return runner

    def _ended(self, task: Task) -> None:
        with self._lock:
            if self.live.get(task.id) is task:  # it may have been reopened meanwhile
                if not task.document.get("open"):
                    self.live.pop(task.id, None)
                self._threads.pop(task.id, None)
        self._tell()
        self.on_ended(task)

    def without_thread(self) -> list[Task]:
        """Return what should run and does not, as its thread ended unexpectedly."""
        with self._lock:
            return [task for task in self.live.values() if task.id not in self._threads and task.document.get("open")]

    def _tell(self) -> None:
        with self.begun:
            self.changes += 1
            self.begun.notify_all()

    def _follow(self, task: Task) -> bool:
        """Start the upload that follows a DAQ; see :class:`Closing`."""
        if task.document.get("reopened"):
            return False
        directory = task.spec.upload_data_directory_on_exit
        task_id = str(uuid.uuid5(_EXIT_UPLOAD, task.id))
        if task_id in self.live or (task_id not in self._unborn and self.store.task(task_id) is not None):
            return True
        keys: dict[str, Any] = dict(task.spec.metadata)
        if task.spec.exit_destination:
            keys["destDirectory"] = task.spec.exit_destination
        if task.spec.use_analysis_directory_as_root:
            keys["useAnalysisDirectoryAsRoot"] = True
        try:
            wish = requests.wish("upload", self.parts, task.experiment, directory, keys)
            requests.check(wish, self.parts)
        except ServiceUnavailable:
            raise
        except DmException as error:
            task.directory_error = f"The upload of {directory!r} at the end was refused: {error.message}"
            return False
        if self._running(wish.claim):
            return False
        owner = str(task.document["owner"])
        document = requests.document(wish, task_id, self.parts.station, owner, task.grant)
        self._unborn.add(task_id)  # should the database fail half-way, it is begun again
        self._begin(document, wish)
        self._unborn.discard(task_id)
        return True

    # --- show -------------------------------------------------------------------------------------------------------
    def document(self, kind: str, task_id: str) -> Document:
        """Return a task document, with the counts of this moment.

        :raises ObjectNotFound: no such DAQ or upload.
        """
        live = self.live.get(task_id)
        if live is not None and live.kind == kind and live.document.get("open"):
            return live.snapshot()
        found = self.store.task(task_id)
        if found is None or found["kind"] != kind or found.get("cleared") or found.get("pruned"):
            raise ObjectNotFound(f"{kind.capitalize() if kind != DAQ else 'DAQ'} {task_id[:80]!r} does not exist.")
        return found

    def info(self, kind: str, task_id: str, wait: float = 0.0, revision: str = "") -> dict[str, Any]:
        """Return an info record, after waiting up to ``wait`` seconds for a change of its status.

        :param revision: the record's key of that name as the caller has it: waits for any change of the record.
        """
        live = self.live.get(task_id)
        if wait > 0 and live is not None and live.kind == kind:
            with self.waits.place() as held:
                if held:
                    live.wait(wait, self.stopping, revision)
        return info(self.document(kind, task_id))

    def records(self, kind: str, *, cleared: bool = False, experiment: str = "") -> Iterator[dict[str, Any]]:
        """Iterate over info records, newest first.

        :param cleared: also those taken off the list. :param experiment: only of the experiment of this name.
        """
        for document in self.store.list_tasks(kind):
            if experiment and json.loads(document["experiment"])["name"] != experiment:
                continue
            if not document.get("pruned") and (cleared or not document.get("cleared")):
                live = self.live.get(str(document["_id"]))
                yield info(live.snapshot() if live is not None else document)

    def list(self, kind: str, *, cleared: bool = False, experiment: str = "") -> list[dict[str, Any]]:
        """Return info records, newest last; arguments as in :meth:`records`."""
        return list(self.records(kind, cleared=cleared, experiment=experiment))[::-1]

    # --- change -----------------------------------------------------------------------------------------------------
    def stop(self, kind: str, task_id: str, *, abort: bool) -> dict[str, Any]:
        """End a DAQ or upload: a DAQ finishes what was written before, an upload leaves what has not begun.

        :raises ObjectNotFound: none. :returns: its info record; ending may take a while.
        """
        document = self.document(kind, task_id)
        live = self.live.get(task_id)
        if live is None or document["status"] in statuses.INACTIVE:
            return info(document)
        if abort:
            live.set(abortRequested=True, status=statuses.ABORTING)
            live.aborting = True
        else:
            live.set(stopRequested=True)
            live.stopping = True
        live.wake.set()
        return live.info()

    def clear(self, kind: str, task_id: str) -> dict[str, Any]:
        """Take a finished DAQ or upload off the list; its upload record and ledger stay.

        :raises InvalidObjectState: it is still running.
        """
        document = self.document(kind, task_id)
        requests.finished(document)
        self.store.set_task(task_id, {"cleared": True})
        return info(document)

    def decide(self, kind: str, task_id: str, principal: Principal, decision: Decision) -> int:
        """Have a person's decision about files carried out (see :mod:`dm.station.acquisition.amends`), by the running
        task, or by one that has ended and goes on for it.

        :param principal: who decides; a task that goes on publishes with their leave.
        :returns: what the decision returns: how many files.
        :raises ObjectNotFound: no such DAQ or upload. :raises InvalidObjectState: it cannot go on.
        :raises TaskTimeout: it takes long; the decision is being carried out all the same.
        """
        deadline = time.monotonic() + _ENDING_SECONDS
        while True:
            document = self.document(kind, task_id)
            with self._starting[hash(task_id) % _STRIPES]:
                live = self.live.get(task_id)
                if live is None:
                    runner = self._reopen(self.document(kind, task_id), principal, decision)
                    break
                with self.pipeline.condition:
                    free = self.pipeline.serves(live) and not (live.ending or live.halted or live.aborting)
                    live.orders += free
            if free:
                try:
                    return decision(live)
                finally:
                    with self.pipeline.condition:
                        live.orders -= 1
                    live.wake.set()
            if time.monotonic() > deadline or self.stopping.is_set():
                raise ServiceUnavailable(f"{document['kind']} {task_id} is just starting or ending; try again.")
            with self.begun:
                self.begun.wait(0.1)
        try:
            return runner.outcome.result(_DECISION_SECONDS)
        except TimeoutError:
            raise TaskTimeout(
                f"This takes long; {document['kind']} {task_id} goes on with it, see its counts."
            ) from None

    def _reopen(self, document: Document, principal: Principal, decision: Decision) -> Reopened:
        task_id, kind = str(document["_id"]), str(document["kind"])
        if document.get("open"):
            raise InvalidObjectState(
                f"{kind} {task_id} does not run: {document.get('errorMessage') or 'no reason known'}"
            )
        experiment = json.loads(document["experiment"])
        seen = self.parts.identity.experiment(principal, experiment["name"])
        if int(seen["id"]) != int(experiment["id"]):
            raise ObjectNotFound(f"The experiment {experiment['name']!r} of {kind} {task_id} does not exist any more.")
        self._task(document)  # refuses what cannot run with today's settings, before anything changes
        client = self.parts.user_client(principal)
        grant = self.parts.site.grant(client, experiment["name"], self.parts.station, kind)
        fields = reopened(document, grant, principal.username)
        try:
            self.store.claim(str(fields["claim"]), task_id)
            self.store.set_task(task_id, fields)
        except DmException:
            self.closing.revoke(kind, task_id, grant)
            raise
        _log.info("%s %s goes on for a decision of %s.", kind, task_id, principal.username)
        runner = self._run(self._task({**document, **fields}), decision)
        assert isinstance(runner, Reopened)
        return runner

    def retire(self, task_id: str) -> bool:
        """Let nobody see or reopen a task that has ended; return whether that could be."""
        with self._starting[hash(task_id) % _STRIPES]:
            document = self.store.task(task_id)
            if document is None or document.get("open") or task_id in self.live:
                return False
            self.store.set_task(task_id, {"pruned": True})
        return True
