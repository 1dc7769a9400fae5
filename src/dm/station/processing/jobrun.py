"""Running one job: its stages in order, from wherever an earlier service left it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Coroutine
from typing import Any

from dm.common import statuses
from dm.common.errors import DmException, ProcessingError
from dm.station.processing import documents
from dm.station.processing.context import Context
from dm.station.processing.documents import Child
from dm.station.processing.stagerun import StageRun

MAX_CAPTURED = 4 << 20
log = logging.getLogger(__name__)


class JobRun:
    """One job on its way.

    What changes is collected and written in one update by :meth:`flush`: before a process is started, before anything
    is waited for, and at the end. An executor forgets a process only after its result has been written.

    :param document: as stored. :param further: its processes that are stored outside the document.
    """

    def __init__(self, context: Context, document: dict[str, Any], further: list[dict[str, Any]] | None = None) -> None:
        self.context = context
        self.id: str = document["_id"]
        self.owner: str = document["owner"]
        self.order: str = document["order"]
        self.status: str = document["status"]
        self.workflow: dict[str, Any] = json.loads(document["workflow"])
        self.stages: list[tuple[str, dict[str, Any]]] = list(self.workflow["stages"].items())
        self.arguments: dict[str, Any] = json.loads(document["arguments"])
        self.captured: dict[str, str] = json.loads(document["captured"])
        self.files: list[str] = json.loads(document["files"])
        self.input_error: str | None = document["inputError"]
        self.data_directory: str | None = document["dataDirectory"]
        self.position: dict[str, Any] = dict(document["position"])
        self.states: dict[int, dict[str, Any]] = {int(key[1:]): value for key, value in document["stages"].items()}
        self.start_time: float | None = document.get("startTime")
        self.abort = asyncio.Event()
        if document.get("abort"):
            self.abort.set()
        known = [Child.from_document(child) for child in [*document["children"].values(), *(further or [])]]
        self.next_child = max([document["nextChild"], *(child.number + 1 for child in known)])
        here = (self.position["stage"], self.position["repeat"])
        self.children = {c.number: c for c in known if not c.ended or (c.stage, c.repeat) == here}
        self.counts = {
            wanted: sum(child.stage == here[0] and child.status == wanted for child in known)
            for wanted in (statuses.DONE, statuses.FAILED, statuses.ABORTED)
        }
        self._values: dict[str, Any] = {}
        self._outside: dict[int, dict[str, Any]] = {}
        self._forget: list[str] = []
        self._writing = asyncio.Lock()

    # --- what is written -------------------------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Note fields of the job document to be written by the next flush."""
        self._values.update(values)

    def set_stage(self, index: int, **values: Any) -> None:
        """Note what became of a stage."""
        state = self.states.setdefault(index, {})
        state.update(values)
        self._values[f"stages.s{index}"] = dict(state)

    def set_child(self, child: Child) -> None:
        """Note a process."""
        if child.number < documents.EMBEDDED:
            self._values[f"children.c{child.number}"] = child.to_document()
        else:
            self._outside[child.number] = child.to_document()

    def set_position(self, stage: int, repeat: int, wake: float | None = None) -> None:
        """Note how far the job has come; ``wake`` is when the next repeat is due."""
        self.position = {"stage": stage, "repeat": repeat, "wake": wake}
        self.set(position=self.position)

    def forget(self, key: str) -> None:
        """Note a process whose traces can go once its result has been written."""
        self._forget.append(key)

    async def flush(self) -> None:
        """Write what has been noted; returns when it is durable."""
        async with self._writing:
            values, self._values = self._values, {}
            outside, self._outside = self._outside, {}
            forget, self._forget = self._forget, []
            if values or outside:
                await self.context.durably(self.context.store.update_job, self.id, values, list(outside.values()))
            for key in forget:
                await self.context.blocking(self.context.executor.forget, key)

    def enter(self, index: int) -> None:
        """Note that a stage begins; the first one makes the job run."""
        if self.start_time is None:
            self.start_time = time.time()
            self.set(startTime=self.start_time)
        if self.status == statuses.PENDING:
            self.status = statuses.RUNNING
            self.set(status=self.status)
        self.set(stage=self.stages[index][0])

    def capture(self, values: dict[str, str]) -> None:
        """Take over captured values: they override arguments and show in the record."""
        if values:
            self.captured.update(values)
            if sum(len(value) for value in self.captured.values()) > MAX_CAPTURED:
                raise ProcessingError(f"The job has captured more than {MAX_CAPTURED} characters in all.")
            self.set(captured=json.dumps(self.captured), values=documents.searchable(self.arguments | self.captured))

    # --- running ---------------------------------------------------------------------------------------------

    async def unless_aborted(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Wait for something, but not when the job is to stop; say whether it was completed."""
        task, abort = asyncio.ensure_future(work), asyncio.ensure_future(self.abort.wait())
        try:
            await asyncio.wait({task, abort}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            task.cancel()
            abort.cancel()
            await asyncio.gather(task, abort, return_exceptions=True)

    async def run(self) -> str:
        """Run to the end and return the final status."""
        try:
            status, message = await self._stages()
        except DmException as error:
            status, message = statuses.FAILED, error.message
        except Exception:
            log.exception("job %s failed by a defect of the service", self.id)
            status, message = statuses.FAILED, "An internal error of the processing service ended the job; see its log."
        end = time.time()
        self.set(status=status, active=0, startTime=self.start_time or end, endTime=end)
        if message:
            self.set(errorMessage=message)
        with contextlib.suppress(DmException):  # e.g. too large a document: at least the end must be recorded
            await self.flush()
            return status
        self.set(status=statuses.FAILED, active=0, startTime=self.start_time or end, endTime=end)
        self.set(errorMessage="The result of the job could not be stored; see the log of the processing service.")
        log.error("the result of job %s could not be stored", self.id)
        await self.flush()
        return statuses.FAILED

    async def _stages(self) -> tuple[str, str | None]:
        if self.input_error:
            return statuses.FAILED, self.input_error
        for index in range(self.position["stage"], len(self.stages)):
            if self.abort.is_set() and all(child.ended for child in self.children.values()):
                if index in self.states:
                    self.set_stage(index, status=statuses.ABORTED)
                return statuses.ABORTED, None
            status, message = await StageRun(self, index).run()
            if status not in (statuses.DONE, statuses.SKIPPED):
                return status, message
            self.children.clear()
            self.counts = dict.fromkeys(self.counts, 0)
            self.set_position(index + 1, 0)
        return statuses.DONE, None
