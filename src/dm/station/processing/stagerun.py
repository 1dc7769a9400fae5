"""Running one stage of a job: condition, one process per input file, further attempts, repeats."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from dm.common import statuses
from dm.common.errors import DmException
from dm.station.processing import accounts, documents, expressions, inputs
from dm.station.processing.context import give_up
from dm.station.processing.documents import Child
from dm.station.processing.filerun import FileRun
from dm.station.processing.writer import ServiceEnds

if TYPE_CHECKING:
    from dm.station.processing.jobrun import JobRun

Result = tuple[str, str | None]


class StageRun:
    """One stage of a job.

    Its state (``job.states``) may name ``since``: processes of lower numbers are of an earlier run of the stage and
    count no more; and ``resumed``: of those only the successful ones count.

    :param job: the job. :param index: which of its stages. :param before: the stages whose captured values it sees;
        ``None``: all. :param abort: set when it is to stop at once. :param halt: set when it is to begin nothing new.
    """

    def __init__(
        self, job: JobRun, index: int, before: list[int] | None, abort: asyncio.Event, halt: asyncio.Event
    ) -> None:
        self.job = job
        self.index = index
        self.name, self.stage = job.names[index], job.stages[job.names[index]]
        self.where = f"Stage {self.name!r}"
        self.before = before
        self.abort = abort
        self.halt = halt
        self.inputs = job.files
        self.files: list[int] = []
        self.queued = 0
        self.running = 0
        self.account = accounts.Account("", "")
        self._shared: dict[str, Any] | None = None
        state = job.states.get(index, {})
        since, resumed = state.get("since", 0), state.get("resumed", 0)
        self.children = [
            child
            for child in job.children.get(index, [])
            if child.number >= since and (child.number >= resumed or child.status == statuses.DONE)
        ]
        self.counts = {
            wanted: sum(child.ended and child.status == wanted for child in self.children)
            for wanted in (statuses.DONE, statuses.FAILED, statuses.ABORTED)
        }

    def variables(self, file: int) -> dict[str, Any]:
        """Return what ``$name`` means for one input file; later ones of equal name win: arguments, captured, ours."""
        job = self.job
        if self._shared is None:
            captured = job.captured(self.before)
            if self.stage.get("cleanup") and job.outcome is not None:
                captured |= {"jobStatus": job.outcome["status"], "errorMessage": job.outcome["message"] or ""}
                captured |= {"failedStage": job.outcome["stage"] or ""}
            ours = {"id": job.id, "stage": self.name, "owner": job.owner}
            self._shared = {"captured": captured, "ours": ours}
        values = {**job.arguments, "filePath": self.inputs[file], **self._shared["captured"], **self._shared["ours"]}
        return {name: _plain(value) for name, value in values.items() if value is not None}

    async def run(self) -> Result:
        """Run the stage and return its status, with a message where no failing process tells the reason."""
        state = self.job.states.get(self.index, {})
        if state.get("status") not in (None, statuses.RUNNING):
            return state["status"], state.get("message")
        if self.abort.is_set() and all(child.ended for child in self.children):
            return self._end(statuses.ABORTED)
        try:
            found = await self._inputs(state)
            if found is None:
                return self._end(statuses.ABORTED)
            self.inputs = found
            files = self._files() if state.get("status") is None else state.get("files")
            if files is None:
                files = list(range(len(self.inputs)))
            if not files:
                return self._end(statuses.SKIPPED)
            self.account = accounts.resolve(
                self.job.workflow["userAccount"],
                self.job.workflow["owner"],
                self.job.context.settings.stage_account,
                self.job.context.settings.user_accounts,
            )
            status, message = await self._repeats(files)
            if status == statuses.DONE and self.stage.get("artefacts") and not await self._publish():
                status = statuses.ABORTED
            return self._end(status, message)
        except ServiceEnds:
            raise
        except DmException as error:
            return self._end(statuses.FAILED, f"{self.where} failed: {error.message}")

    async def _inputs(self, state: dict[str, Any]) -> list[str] | None:
        """Return the files the stage runs on: the job's, or those of its own data directories.

        :returns: ``None`` when the job was to stop meanwhile: a directory that is away may not answer for hours.
        """
        if not self.stage.get("dataDir"):
            return self.job.files
        if "inputs" in state:
            return list(json.loads(state["inputs"]))
        job, found = self.job, list[str]()
        wanted = (self.stage, self.variables(0), job.context.settings.files_per_job, job.data_directory)

        async def listing() -> None:
            found.extend(await job.context.blocking(inputs.stage_files, *wanted))

        await job.flush()
        if not await job.unless(self.abort, listing()):
            return None
        job.set_stage(self.index, inputs=json.dumps(found))
        return found

    def _files(self) -> list[int]:
        """Return the input files for which the stage's condition holds."""
        everything = list(range(len(self.inputs)))
        condition = self.stage.get("runIf")
        if condition is None:
            return everything
        self.job.enter(self.index)
        if "filePath" not in expressions.names(condition):
            return everything if self._holds(condition, 0, "runIf") else []
        return [file for file in everything if self._holds(condition, file, "runIf")]

    def _holds(self, condition: str, file: int, key: str) -> bool:
        return expressions.evaluate(condition, self.variables(file), f"{self.where}: {key}")

    async def _repeats(self, files: list[int]) -> Result:
        job, stage = self.job, self.stage
        state = job.states.get(self.index, {})
        repeating = stage.get("repeatUntil") is not None
        repeat, wake = state.get("repeat", 0), state.get("wake")
        self.files = files
        while True:
            if wake is not None and all(child.repeat != repeat for child in self.children):
                await job.flush()
                pause = min(max(0.0, wake - time.time()), float(stage["repeatPeriod"]))  # clocks may have jumped
                if not await job.rest(pause, self.abort, self.halt):
                    return statuses.ABORTED, None
            status, message = await self._round(repeat)
            if status != statuses.DONE or not repeating:
                return status, message
            if self._holds(stage["repeatUntil"], files[-1], "repeatUntil"):
                return statuses.DONE, None
            repeat += 1
            if repeat >= int(stage["maxRepeats"]):
                return (
                    statuses.FAILED,
                    f"{self.where} failed: its condition did not come true in {repeat} executions "
                    f"(maxRepeats): {stage['repeatUntil'][:200]}",
                )
            if self.halt.is_set():
                return statuses.ABORTED, None
            self.children.clear()
            wake = time.time() + float(stage["repeatPeriod"])
            job.set_stage(self.index, status=statuses.RUNNING, repeat=repeat, wake=wake)

    async def _round(self, repeat: int) -> Result:
        """Run one process for each file, as many at once as the stage allows."""
        attempts: dict[int, list[Child]] = {}
        for tried in self.children:
            if tried.repeat == repeat:
                attempts.setdefault(tried.file, []).append(tried)
        if len(self.files) == 1:
            [file] = self.files
            ended, status, message = await self._file(file, repeat, attempts)
            self._capture([ended] if ended is not None else [])
            return status, message
        return await self._side_by_side(repeat, attempts)

    async def _side_by_side(self, repeat: int, attempts: dict[int, list[Child]]) -> Result:
        """Run a round of several files."""
        waiting = deque(sorted(self.files, key=lambda file: file not in attempts))
        at_once = self.job.context.settings.parallel_files if self.stage.get("parallelExec") else 1
        at_once = max(at_once, sum(not tried[-1].ended for tried in attempts.values()))
        running: set[asyncio.Task[tuple[Child | None, str, str | None]]] = set()
        ended: list[Child] = []
        failure: Result = (statuses.DONE, None)
        try:
            while True:
                while waiting and len(running) < at_once and failure[0] == statuses.DONE:
                    file = waiting.popleft()
                    self.queued = len(waiting)
                    running.add(asyncio.ensure_future(self._file(file, repeat, attempts)))
                if not running:
                    break
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    child, status, message = task.result()
                    if child is not None and child.captured:
                        ended.append(child)  # of thousands, not all outputs are kept in memory
                        if child.number >= documents.EMBEDDED:
                            child.stdOut = child.stdErr = ""
                    if status != statuses.DONE and failure[0] == statuses.DONE:
                        failure = (status, message)
                if running:
                    await self.job.flush()
        finally:
            await give_up(running)
        self._capture(ended)
        return failure

    async def _file(
        self, file: int, repeat: int, attempts: dict[int, list[Child]]
    ) -> tuple[Child | None, str, str | None]:
        """Run the stage for one file; return its last process, if there is one, and what became of it."""
        if self.halt.is_set() and file not in attempts:
            return None, statuses.ABORTED, None
        try:
            child = await FileRun(self, file, repeat, attempts.get(file, [])).run()
        except ServiceEnds:
            raise
        except DmException as error:
            return None, statuses.FAILED, f"{self.where} failed: {error.message}"
        if child is None or (self.abort.is_set() and child.status == statuses.FAILED):  # no further attempt
            return child, statuses.ABORTED, None
        return child, child.status, child.reason

    def _capture(self, ended: list[Child]) -> None:
        """Take over what the processes of a round captured, in the order of their files."""
        found: dict[str, Any] = {}
        for child in sorted(ended, key=lambda child: child.file):
            found |= child.captured
        self.job.capture(self.index, found)
        for child in ended:
            if child.number < documents.EMBEDDED:  # written together with the job's: nothing can be lost between
                child.captured = {}
                self.job.set_child(child)
        self._shared = None

    async def _publish(self) -> bool:
        """Upload what the stage has made, as often as it takes: it is done again after a restart in between.

        :returns: ``False`` when the job was to stop meanwhile.
        """
        job, publish = self.job, self.job.context.publish
        if publish is None:
            return True
        await job.flush()
        found: list[dict[str, Any]] = []

        async def work() -> None:
            found.extend(await publish(self))

        if not await job.unless(self.abort, work()):
            return False
        job.set_stage(self.index, artefacts=json.dumps(found))
        return True

    def count(self) -> None:
        """Note the counters of the stage's record."""
        counters = {"nRunningChildProcesses": self.running, "nQueuedChildProcesses": self.queued}
        for status, name in (
            (statuses.DONE, "nCompletedChildProcesses"),
            (statuses.FAILED, "nFailedChildProcesses"),
            (statuses.ABORTED, "nAbortedChildProcesses"),
        ):
            if self.counts[status]:
                counters[name] = self.counts[status]
        subset = self.files if len(self.files) != len(self.inputs) else None
        self.job.set_stage(self.index, status=statuses.RUNNING, files=subset, **counters)

    def _end(self, status: str, message: str | None = None) -> Result:
        if status != statuses.ABORTED or self.index in self.job.states:
            self.job.enter(self.index)
            told = {"message": message} if message else {}
            self.job.set_stage(self.index, status=status, **told)
        return status, message


def _plain(value: Any) -> Any:
    """Return a value as variables have it: lists and dictionaries as JSON text."""
    return json.dumps(value) if isinstance(value, dict | list) else value
