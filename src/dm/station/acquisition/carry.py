"""Carrying one batch: open it at storage, move, hand over, wait for the verdict, run plugins, write the outcome.

Every step may be repeated: a batch has one id for good, storage answers for it whatever happened in between, and
plugins have idempotent keys.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from dm.common.errors import (
    AuthorizationError,
    DmException,
    InternalError,
    InvalidObjectState,
    InvalidRequest,
    ObjectNotFound,
    ServiceUnavailable,
    TransferError,
)
from dm.common.paths import decode, display, encode
from dm.station.acquisition import batch as phases
from dm.station.acquisition.after import After
from dm.station.acquisition.batch import Batch, Load
from dm.station.acquisition.info import source_url
from dm.station.acquisition.inplace import in_place, verdict_in_place
from dm.station.acquisition.pipeline import Pipeline
from dm.station.acquisition.places import Places, destination_of
from dm.station.acquisition.rows import Item, State, path_key
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.store import Document, Store
from dm.station.acquisition.task import Task
from dm.station.acquisition.transports.base import FileOutcome, FileStamp, TransferBatch, TransferFile

_log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0  # one long poll; short, so that the service stops quickly
_NO_PLACE = 0.05  # seconds until a batch without a place among the movers is looked at again
_BATCH_ATTEMPTS = 3  # before a batch storage cannot digest is taken apart


@dataclass
class Leaving:
    """Files that leave a batch.

    :param final: with their outcome. :param changed: the source is not what it was: watched until whole again.
    :param again: failed, with the error and whether it looks like a passing one. :param anew: simply once more.
    """

    final: list[tuple[Item, State, Document]] = field(default_factory=list)
    changed: list[Item] = field(default_factory=list)
    again: list[tuple[Item, str, bool]] = field(default_factory=list)
    anew: list[Item] = field(default_factory=list)


class Carry:
    """See the module."""

    def __init__(
        self, store: Store, site: StorageSite, pipeline: Pipeline, settings: AcquisitionSettings, after: After
    ) -> None:
        self.store = store
        self.site = site
        self.pipeline = pipeline
        self.settings = settings
        self.after = after
        self._places = Places(settings.moves, settings.moves_per_destination)

    # --- the way ----------------------------------------------------------------------------------------------------
    def advance(self, batch: Batch) -> float | None:
        """Carry a batch as far as it goes; see :class:`dm.station.acquisition.pipeline.Carrier`."""
        task = batch.task
        answer: Document | None = None
        try:
            if batch.phase == phases.MOVE:
                with self._places.entered(task.id, destination_of(task.experiment)) as free:
                    batch.crowded = not free
                    if not free:
                        return _NO_PLACE
                    moved = self._move(batch)
                self.pipeline.hurry()
                answer = self._hand_over(batch) if moved else None
                if self.pipeline.stop_event.is_set():
                    return 0.0
                self._enter(batch, phases.PLUGINS if task.spec.skip_transfer else phases.RESULT)
            if batch.phase == phases.RESULT and batch.loads:
                if not self._verdict(batch, answer):
                    return 0.0
                self._enter(batch, phases.PLUGINS)
            if batch.loads:
                soon = self.after.run(batch)
                if batch.loads:
                    if not batch.attempt:  # storage forgets its verdict before long; we must not
                        self.store.add_batch(batch.document())
                    batch.attempt += 1 if soon is None or not batch.attempt else 0
                    return self.pipeline.pause_for(batch.attempt) if soon is None else soon
            self.store.drop_batch(batch.id)
        except DmException as error:
            return self._obstacle(batch, error)
        if not task.unfed:  # else it is what stored files wait for
            task.trouble, task.parkings = "", 0
        return None

    @staticmethod
    def _enter(batch: Batch, phase: str) -> None:
        batch.phase, batch.attempt, batch.first_failure = phase, 0, 0.0

    def _move(self, batch: Batch) -> bool:
        """Open the batch and bring its files to staging; what did not arrive leaves the batch.

        :returns: whether it is to be handed over to storage, which may have it already.
        """
        task = batch.task
        if batch.recorded:
            state = self._state_at_storage(batch)
            if state not in ("", "open"):
                return False
        else:
            self.store.add_batch(batch.document())
            batch.recorded = True
        if task.spec.skip_transfer:
            self._sort_out(batch, [in_place(task, load, self.settings.verification_digest) for load in batch.loads])
            for load in batch.loads:
                load.result = verdict_in_place(load)
                load.pending = [plugin.name for plugin in task.plugins]
            return False
        try:
            opened = self.site.open_batch(
                batch.id,
                experiment_id=int(task.experiment["id"]),
                root=task.spec.root,
                source=task.origin,
                on_conflict=task.spec.on_conflict,
                grant=task.grant,
            )
        except InvalidObjectState as error:  # frozen, say: another batch would fare no better
            raise ServiceUnavailable(error.message) from error
        outcomes = task.transport.move(
            TransferBatch(
                batch.id,
                task.source,
                [
                    TransferFile(load.item.path, load.item.size, load.item.mtime_ns, load.staged_name)
                    for load in batch.loads
                ],
                encode(opened["stagingDirectory"]),
                opened.get("stagingHost") or None,
                self.pipeline.stop_event,
                lambda: task.aborting or bool(task.halted),
                checksum=not task.spec.skip_checksum,
                digest=self.settings.verification_digest,
                moved=task.motion.told_of(batch.id),
            )
        )
        batch.times["moved"] = time.time()
        if task.spec.skip_checksum:  # a transport may have one all the same
            for outcome in outcomes:
                outcome.md5 = ""
        self._sort_out(batch, outcomes)
        return True

    def _hand_over(self, batch: Batch) -> Document | None:
        """Tell storage what was staged.

        :returns: what it said, which may be its verdict already; ``None`` when nothing was staged.
        """
        task = batch.task
        answer = None
        if not batch.loads:
            self.site.abandon(batch.id, task.grant)
        else:
            files = [self._file(task, load) for load in batch.loads]
            try:
                answer = self.site.submit(batch.id, files, task.grant, _POLL_SECONDS)
            except ObjectNotFound as error:  # a crash of its database took back that the batch was opened
                raise ServiceUnavailable(f"Storage lost a batch, which is sent again: {error.message}") from error
        forget(task, batch.id)
        return answer

    def _state_at_storage(self, batch: Batch) -> str:
        """Ask storage how far a batch of an earlier try came; empty when it never heard of it."""
        if batch.task.spec.skip_transfer:
            return ""
        try:
            return str(self.site.result(batch.id, 0, batch.task.grant)["state"])
        except ObjectNotFound:
            return ""

    def _sort_out(self, batch: Batch, outcomes: list[FileOutcome]) -> None:
        """Take the files out of the batch that did not arrive whole."""
        by_name = {outcome.staged_name: outcome for outcome in outcomes}
        stay: list[Load] = []
        out = Leaving()
        for load in batch.loads:
            item = load.item
            outcome = by_name.get(load.staged_name) or FileOutcome(
                load.staged_name, error=f"Transport {batch.task.transport.name!r} said nothing of the file."
            )
            if outcome.vanished:
                out.final.append((item, State.VANISHED, {"lastError": ""}))
            elif outcome.error:
                out.again.append((item, outcome.error, outcome.transient))
            elif outcome.steady and _is(outcome.before, item):
                load.outcome = outcome
                stay.append(load)
            else:
                out.changed.append(item)
        self._settle(batch, stay, out)

    def _verdict(self, batch: Batch, answer: Document | None) -> bool:
        """Wait for storage's verdict; return whether there is one.

        :param answer: what storage said when the batch was handed over just now.
        """
        deadline = time.monotonic() + 10 * _POLL_SECONDS
        while True:
            asked = 0.0
            if answer is None:
                asked = time.monotonic()
                answer = self.site.result(batch.id, _POLL_SECONDS, batch.task.grant)
            if answer["state"] == "committed":
                if moved := batch.times.get("moved"):
                    batch.task.meters.storage.observe(max(0.0, time.time() - moved))
                self._apply(batch, answer["files"])
                return True
            if answer["state"] == "abandoned":
                raise InvalidObjectState(f"Batch {batch.id} was given up by storage.")
            if answer["state"] == "open":
                # It lost what we handed over: from the start.
                self._enter(batch, phases.MOVE)
                raise ServiceUnavailable(f"Storage is not ready for batch {batch.id}.")
            if self.pipeline.stop_event.is_set() or time.monotonic() > deadline:
                return False
            if time.monotonic() - asked < _POLL_SECONDS / 10:  # storage had no place for one more to wait
                self.pipeline.stop_event.wait(_POLL_SECONDS / 10)
            answer = None

    def _apply(self, batch: Batch, files: list[Document]) -> None:
        """Take over storage's verdict on each file."""
        task = batch.task
        verdicts = {encode(str(row["path"])): dict(row) for row in files}
        stay: list[Load] = []
        out = Leaving()
        for load in batch.loads:
            row = verdicts.get(task.target(load.item.path))
            if row is None:
                # It left the batch before that was handed over. Its row is final already, or ready: then once more.
                if task.ledger.state(load.item.path) in (State.READY, State.STORED):
                    out.anew.append(load.item)
            elif row["status"] in ("stored", "unchanged"):
                load.result = row
                load.pending = [plugin.name for plugin in task.plugins]
                stay.append(load)
            else:
                transient = bool(row.get("transient")) and row.get("errorCode") != TransferError.code
                out.again.append((load.item, str(row.get("errorMessage") or "Storage refused the file."), transient))
        if len(stay) != len(batch.loads):
            self._settle(batch, stay, out)
        batch.times["stored"] = time.time()
        task.meters.stored(task.kind, [load.item for load in batch.loads])

    @staticmethod
    def _file(task: Task, load: Load) -> Document:
        outcome = load.outcome
        assert outcome is not None
        return {
            "path": decode(task.target(load.item.path)),
            "stagedName": load.staged_name,
            "size": outcome.size,
            "mtimeNs": load.item.mtime_ns,
            "mode": outcome.mode,
            "digests": outcome.digests,
            "md5Sum": "" if task.spec.skip_checksum else outcome.md5 or None,
            "sourceUrl": source_url(task.source, load.item.path),
        }

    # --- leaving a batch --------------------------------------------------------------------------------------------
    def _settle(self, batch: Batch, stay: list[Load], out: Leaving) -> None:
        """Let files leave a batch; ``stay`` remain."""
        task = batch.task
        now = time.monotonic()
        noted: list[tuple[Item, str, float]] = []
        requeue: list[Item] = list(out.anew)
        final = list(out.final)
        for item, error, transient in out.again:
            item.attempts += 1
            item.first_failure = item.first_failure or now
            patient = transient and now - item.first_failure < self.settings.retry_hours * 3600
            if patient or item.attempts < self.settings.attempts:
                pause = self.pipeline.pause_for(item.attempts)
                item.due = now + pause
                noted.append((item, error, pause))
                requeue.append(item)
                task.trouble = f"{display(item.path)}: {error}"
            else:
                final.append((item, State.FAILED, {"lastError": error, "attempts": item.attempts}))
        task.meters.retries.labels("file").inc(len(noted))
        if noted:
            task.ledger.note_failures(noted)
        if final:
            task.ledger.finish(final)
        batch.loads = stay
        with self.pipeline.condition:
            for item in requeue:
                task.push(item)
            for item in out.changed:
                task.ledger.forget(item.path)
                task.busy.discard(path_key(item.path))
                task.deferred.discard(item.path)
                task.inbox.append(item.path)
            for item, _state, _fields in final:
                task.leave(item)
            self.pipeline.condition.notify_all()

    def _obstacle(self, batch: Batch, error: DmException) -> float | None:  # noqa: PLR0911
        """Decide what to do when a whole step failed."""
        task = batch.task
        now = time.monotonic()
        batch.attempt += 1
        batch.first_failure = batch.first_failure or now
        sentence = error.message or type(error).__name__
        if task.trouble != sentence:
            _log.warning("Batch %s of %s %s waits: %s", batch.id, task.kind, task.id, sentence)
        task.trouble = sentence
        task.meters.retries.labels("batch").inc()
        if batch.phase == phases.PLUGINS:
            return self.pipeline.pause_for(batch.attempt)
        if isinstance(error, AuthorizationError):
            task.halt(sentence)
            return self.settings.retry_most_seconds
        if isinstance(error, ObjectNotFound) and batch.phase == phases.MOVE:
            task.halt(sentence)
            return self.settings.retry_most_seconds
        if isinstance(error, ObjectNotFound | InvalidObjectState):
            # Storage does not know the batch any more, or closed it: its files travel again in a new one.
            return self._dissolve(batch, alone=False)
        if isinstance(error, InternalError | InvalidRequest) and batch.attempt >= _BATCH_ATTEMPTS:
            if len(batch.loads) > 1:
                return self._dissolve(batch, alone=True)
            self._settle(batch, [], Leaving(again=[(load.item, sentence, False) for load in batch.loads]))
            return self._dissolve(batch, alone=True)
        return self.pipeline.pause_for(batch.attempt)

    def _dissolve(self, batch: Batch, alone: bool) -> float | None:
        """Give the files of a batch back to the queue; ``alone`` lets each travel by itself, to find the bad one."""
        try:
            self.site.abandon(batch.id, batch.task.grant)
            forget(batch.task, batch.id)
            self.store.drop_batch(batch.id)
        except DmException as error:
            _log.info("Batch %s could not be given up yet: %s", batch.id, error)
            if isinstance(error, InvalidObjectState):
                # It is being published after all: its verdict counts.
                self._enter(batch, phases.RESULT)
            return self.pipeline.pause_for(batch.attempt)
        items = [load.item for load in batch.loads]
        for item in items:
            item.alone = item.alone or alone
        self._settle(batch, [], Leaving(anew=items))
        return None


def forget(task: Task, batch: str) -> None:
    """Let the transport drop a batch that storage has taken over, or that is given up."""
    try:
        task.transport.forget(batch)
    except DmException as error:
        _log.info("What moves batch %s elsewhere is left to its own limits: %s", batch, error)


def _is(stamp: FileStamp | None, item: Item) -> bool:
    """Whether a source file is in the shape it had when it was found whole."""
    return stamp is not None and (stamp.size, stamp.mtime_ns) == (item.size, item.mtime_ns)
