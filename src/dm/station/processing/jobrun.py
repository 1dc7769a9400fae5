"""Running one job: its stages in the order of their graph, from wherever an earlier service left them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Coroutine
from typing import Any

from dm.common import statuses
from dm.common.errors import DmException, ProcessingError
from dm.station.processing import documents, graph
from dm.station.processing.context import Context, give_up
from dm.station.processing.documents import Child
from dm.station.processing.stagerun import StageRun
from dm.station.processing.writer import ServiceEnds

MAX_CAPTURED = 4 << 20
_KILLED_SECONDS = 30.0
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
        self.priority: int = document.get("priority", 0)
        self.restarts: int = document.get("restarts", 0)
        self.status: str = document["status"]
        self.workflow: dict[str, Any] = json.loads(document["workflow"])
        self.stages: dict[str, dict[str, Any]] = self.workflow["stages"]
        self.names = list(self.stages)
        self.index = {name: index for index, name in enumerate(self.names)}
        self.arguments: dict[str, Any] = json.loads(document["arguments"])
        self.files: list[str] = json.loads(document["files"])
        self.input_error: str | None = document["inputError"]
        self.data_directory: str | None = document["dataDirectory"]
        self.states: dict[int, dict[str, Any]] = {int(key[1:]): value for key, value in document["stages"].items()}
        # values captured under the version before, which did not note of which stage they are
        self._before: dict[str, Any] = json.loads(document["captured"]) if "position" in document else {}
        self.outcome: dict[str, Any] | None = document.get("outcome")  # of all but the cleanup stages
        self.start_time: float | None = document.get("startTime")
        self.stage: str | None = document.get("stage")  # the one entered last
        self.abort = asyncio.Event()
        self.abort_cleanup = asyncio.Event()
        if document.get("abort"):
            (self.abort if self.outcome is None else self.abort_cleanup).set()
        known = [Child.from_document(child) for child in [*document["children"].values(), *(further or [])]]
        self.next_child = max([document["nextChild"], *(child.number + 1 for child in known)])
        self.children: dict[int, list[Child]] = {}  # of stages that have not ended, by stage
        for child in sorted(known, key=lambda child: child.number):
            if self.states.get(child.stage, {}).get("status") in (None, statuses.RUNNING):
                self.children.setdefault(child.stage, []).append(child)
        self.running: dict[int, Child] = {}  # by number; read by other threads
        self._values: dict[str, Any] = {}
        self._outside: dict[int, dict[str, Any]] = {}
        self._forget: list[Child] = []
        self._events: list[dict[str, Any]] = []
        self._writing = asyncio.Lock()

    # --- what is written -------------------------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Note fields of the job document to be written by the next flush."""
        self._values.update(values)

    def set_stage(self, index: int, **values: Any) -> None:
        """Note what became of a stage: what has changed, as some of it may be long."""
        state = self.states.setdefault(index, {})
        for name, value in values.items():
            if name not in state or state[name] != value:
                state[name] = value
                self._values[f"stages.s{index}.{name}"] = value

    def set_child(self, child: Child) -> None:
        """Note a process."""
        if child.number < documents.EMBEDDED:
            self._values[f"children.c{child.number}"] = child.to_document()
        else:
            self._outside[child.number] = child.to_document()

    def forget(self, child: Child) -> None:
        """Note a process whose traces can go once its result has been written."""
        self._forget.append(child)

    def tell(self, event: str, **values: Any) -> None:
        """Note something to be told when what has been noted is on disk."""
        self._events.append({"event": event, "id": self.id, "owner": self.owner, "time": time.time(), **values})

    def tell_status(self) -> None:
        """Note that the job has another status or stage."""
        names = {"workflowName": self.workflow["name"], "workflowOwner": self.workflow["owner"]}
        self.tell("job", status=self.status, stage=self.stage, **names)

    def stop(self) -> None:
        """Stop what runs; the cleanup stages, when it has come to them."""
        self.status = statuses.ABORTING
        (self.abort if self.outcome is None else self.abort_cleanup).set()

    async def flush(self) -> None:
        """Write what has been noted; returns when it is durable."""
        async with self._writing:
            values, self._values = self._values, {}
            outside, self._outside = self._outside, {}
            forget, self._forget = self._forget, []
            events, self._events = self._events, []
            if values or outside:
                try:
                    await asyncio.wrap_future(self.context.writer.update(self.id, values, outside.values()))
                except ProcessingError:
                    self._forget[:0] = forget  # when the end of the job is stored
                    raise
            for child in forget:
                executor = await self.context.executors.get(child.executor)
                try:
                    await executor.forget(child.key)
                except OSError as error:  # the next start of the service tries again
                    log.warning("traces of process %d of job %s stay: %s", child.number, self.id, error)
            for event in events:
                try:
                    self.context.events(event)
                except Exception:
                    log.exception("an event of job %s could not be told", self.id)

    def enter(self, index: int) -> None:
        """Note that a stage begins; the first one makes the job run."""
        if self.start_time is None:
            self.start_time = time.time()
            self.set(startTime=self.start_time)
        if self.status == statuses.PENDING:
            self.status = statuses.RUNNING
            self.set(status=self.status)
        elif self.stage == self.names[index]:
            return
        self.stage = self.names[index]
        self.set(stage=self.stage)
        self.tell_status()

    def captured(self, indices: list[int] | None = None) -> dict[str, Any]:
        """Return captured values: those of later stages override those of earlier ones.

        :param indices: of which stages; ``None`` for all.
        """
        merged = dict(self._before)
        for index in sorted(self.states if indices is None else indices):
            if text := self.states.get(index, {}).get("captured"):
                merged.update(json.loads(text))
        return merged

    def capture(self, index: int, values: dict[str, Any]) -> None:
        """Take over captured values of a stage: they override arguments and show in the record."""
        if values:
            own = json.loads(self.states.get(index, {}).get("captured") or "{}") | values
            self.set_stage(index, captured=json.dumps(own))
            merged = self.captured()
            text = json.dumps(merged)
            if len(text) > MAX_CAPTURED:
                raise ProcessingError(f"The job has captured more than {MAX_CAPTURED} characters in all.")
            self.set(captured=text, values=documents.searchable(self.arguments | merged))

    # --- running ---------------------------------------------------------------------------------------------

    async def unless(self, event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
        """Wait for something, but not beyond an event; say whether it was completed."""
        task, over = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            await give_up((task, over))

    async def rest(self, seconds: float, *ends: asyncio.Event) -> bool:
        """Wait so many seconds, but not beyond any of some events; say whether none of them came."""
        watch = [asyncio.ensure_future(event.wait()) for event in ends]
        try:
            done, _ = await asyncio.wait(watch, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return not done
        finally:
            await give_up(watch)

    async def run(self) -> str:
        """Run to the end and return the final status."""
        try:
            status, message = await self._all()
        except ServiceEnds:
            raise
        except DmException as error:
            status, message = statuses.FAILED, error.message
        except Exception:
            log.exception("job %s failed by a defect of the service", self.id)
            status, message = statuses.FAILED, "An internal error of the processing service ended the job; see its log."
        await self._end_rest()
        end = time.time()
        self.status = status
        self.set(status=status, active=0, restarts=self.restarts, startTime=self.start_time or end, endTime=end)
        if message:
            self.set(errorMessage=message)
        self.tell_status()
        with contextlib.suppress(ProcessingError):  # e.g. too large a document: at least the end must be recorded
            await self.flush()
            return status
        self.status = statuses.FAILED
        ending = {"active": 0, "restarts": self.restarts, "startTime": self.start_time or end, "endTime": end}
        self.set(status=statuses.FAILED, **ending)
        self.set(errorMessage="The result of the job could not be stored; see the log of the processing service.")
        self.tell_status()
        log.error("the result of job %s could not be stored", self.id)
        await self.flush()
        return statuses.FAILED

    async def _end_rest(self) -> None:
        """Kill what still runs, because nothing can be stored or a defect ended its supervision."""
        for child in list(self.running.values()):
            try:
                executor = await self.context.executors.get(child.executor)
                await executor.stop(child.key, signal.SIGKILL)
                await asyncio.wait_for(executor.wait(child.key), _KILLED_SECONDS)
            except Exception:  # the end of the job must be recorded, whatever an executor says
                log.exception("process %d of job %s could not be ended", child.number, self.id)
            child.status, child.exitStatus, child.endTime = statuses.ABORTED, -1, time.time()
            self.set_child(child)
            self.forget(child)
        self.running.clear()

    async def _all(self) -> tuple[str, str | None]:
        if self.input_error:
            return statuses.FAILED, self.input_error
        cleanup = graph.dependencies(self.stages, cleanup=True)
        if self.outcome is None:
            status, message, failed = await _Walk(self, graph.dependencies(self.stages), self.abort).run()
            await self._end_rest()
            if not cleanup:
                return status, message
            self.outcome = {"status": status, "message": message, "stage": failed}
            self.status = statuses.FINALIZING
            self.set(outcome=self.outcome, status=self.status, abort=False)  # another stop is one of the cleanup
        status, message = self.outcome["status"], self.outcome["message"]
        if self.input_error is None and self.files:
            after, why, _ = await _Walk(self, cleanup, self.abort_cleanup).run()
            if status == statuses.DONE and after != statuses.DONE:
                return after, why
        return status, message


class _Walk:
    """The stages of a graph, each begun when those it waits for have ended.

    :param graph: stage name -> names it waits for. :param abort: ends it.
    """

    def __init__(self, job: JobRun, graph: dict[str, list[str]], abort: asyncio.Event) -> None:
        self.job = job
        self.graph = graph
        self.abort = abort
        self.halt = asyncio.Event()  # a stage has failed: the others begin nothing new
        self.settled: set[str] = set()
        self.failure: tuple[str, str | None, str | None] | None = None

    async def run(self) -> tuple[str, str | None, str | None]:
        """Return status, message and the name of the stage that failed."""
        left = []
        for name in self.graph:  # a failure that an earlier service saw is known before anything begins
            state = self._state(name)
            if state.get("status") in (None, statuses.RUNNING):
                left.append(name)
            else:
                self._ended(name, state["status"], state.get("message"))
        running: dict[asyncio.Task[tuple[str, str | None]], str] = {}
        try:
            while True:
                begin = [name for name in left if self._may_begin(name)]
                left = [name for name in left if name not in begin]
                if len(begin) == 1 and not running and not self.abort.is_set():
                    self._ended(begin[0], *await self._stage(begin[0]).run())
                    continue
                running |= {asyncio.ensure_future(self._stage(name).run()): name for name in begin}
                if not running:
                    break
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._ended(running.pop(task), *task.result())
                if running:
                    await self.job.flush()
        finally:
            await give_up(running)
        return self.failure or (statuses.DONE, None, None)

    def _state(self, name: str) -> dict[str, Any]:
        return self.job.states.get(self.job.index[name], {})

    def _may_begin(self, name: str) -> bool:
        """Whether a stage can begin, or go on where an earlier service left it."""
        if self.failure is not None and self._state(name).get("status") is None:
            return False
        return self.settled.issuperset(self.graph[name])

    def _stage(self, name: str) -> StageRun:
        return StageRun(self.job, self.job.index[name], self._before(name), self.abort, self.halt)

    def _before(self, name: str) -> list[int] | None:
        """Return the stages whose values a stage sees: all it waits for, directly or not."""
        if self.job.stages[name].get("cleanup"):
            return None
        found, todo = set(), [name]
        while todo:
            for other in self.graph[todo.pop()]:
                if other not in found:
                    found.add(other)
                    todo.append(other)
        return [self.job.index[other] for other in [*found, name]]

    def _ended(self, name: str, status: str, message: str | None) -> None:
        job = self.job
        job.children.pop(job.index[name], None)
        if documents.settled(job.stages[name], status):
            self.settled.add(name)
        elif self.failure is None or self.failure[0] == statuses.ABORTED != status:
            self.failure = (status, message, name)
            self.halt.set()
