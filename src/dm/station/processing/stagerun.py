"""Running one stage of a job: condition, one process per input file, repeats."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from dm.common import statuses
from dm.common.errors import DmException
from dm.station.processing import accounts, documents, expressions
from dm.station.processing.childrun import ChildRun
from dm.station.processing.documents import Child

if TYPE_CHECKING:
    from dm.station.processing.jobrun import JobRun

Result = tuple[str, str | None]


class StageRun:
    """One stage of a job.

    :param job: the job. :param index: which of its stages.
    """

    def __init__(self, job: JobRun, index: int) -> None:
        self.job = job
        self.index = index
        self.name, self.stage = job.stages[index]
        self.where = f"Stage {self.name!r}"
        self.files: list[int] = []
        self.queued = 0
        self.running = 0
        self.account = accounts.Account("", "")

    def variables(self, file: int) -> dict[str, Any]:
        """Return what ``$name`` means for one input file; later ones of equal name win: arguments, captured, ours."""
        job = self.job
        values = {
            **job.arguments,
            "filePath": job.files[file],
            **job.captured,
            "id": job.id,
            "stage": self.name,
            "owner": job.owner,
        }
        return {name: _plain(value) for name, value in values.items() if value is not None}

    async def run(self) -> Result:
        """Run the stage and return its status, with a message where no failing process tells the reason."""
        state = self.job.states.get(self.index)
        if state and state["status"] != statuses.RUNNING:
            return state["status"], None
        try:
            files = self._files() if state is None else state.get("files")
            if files is None:
                files = list(range(len(self.job.files)))
            if not files:
                return self._end(statuses.SKIPPED)
            self.account = accounts.resolve(
                self.job.workflow["userAccount"],
                self.job.workflow["owner"],
                self.job.context.settings.stage_account,
                self.job.context.settings.user_accounts,
            )
            return self._end(*await self._repeats(files))
        except DmException as error:
            return self._end(statuses.FAILED, f"{self.where} failed: {error.message}")

    def _files(self) -> list[int]:
        """Return the input files for which the stage's condition holds."""
        everything = list(range(len(self.job.files)))
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
        repeating = stage.get("repeatUntil") is not None
        repeat = job.position["repeat"]
        self.files = files
        while True:
            if (wake := job.position["wake"]) is not None:
                await job.flush()
                pause = min(max(0.0, wake - time.time()), float(stage["repeatPeriod"]))  # clocks may have jumped
                if not await job.unless_aborted(asyncio.sleep(pause)):
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
            job.children.clear()
            job.set_position(self.index, repeat, time.time() + float(stage["repeatPeriod"]))

    async def _round(self, repeat: int) -> Result:
        """Run one process for each file, as many at once as the stage allows."""
        job = self.job
        existing = {child.file: child for child in job.children.values() if child.repeat == repeat}
        waiting = deque(sorted(self.files, key=lambda file: file not in existing))
        at_once = job.context.settings.parallel_files if self.stage.get("parallelExec") else 1
        at_once = max(at_once, sum(not child.ended for child in existing.values()))
        running: set[asyncio.Task[Child | None]] = set()
        ended: list[Child] = []
        failure: Result = (statuses.DONE, None)
        try:
            while True:
                while waiting and len(running) < at_once and failure[0] == statuses.DONE:
                    file = waiting.popleft()
                    self.queued = len(waiting)
                    run = ChildRun(self, file, repeat, existing.get(file))
                    running.add(asyncio.ensure_future(run.run()))
                if not running:
                    break
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    child, status, message = _result(task, self.where)
                    if child is not None:
                        ended.append(child)
                    if status != statuses.DONE and failure[0] == statuses.DONE:
                        failure = (status, message)
                if running:
                    await job.flush()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        for child in sorted(ended, key=lambda child: child.file):
            job.capture(child.captured)
            if child.number < documents.EMBEDDED:  # written together with the job's: nothing can be lost between
                child.captured = {}
                job.set_child(child)
        return failure

    def count(self) -> None:
        """Note the counters of the stage's record."""
        job = self.job
        counters = {"nRunningChildProcesses": self.running, "nQueuedChildProcesses": self.queued}
        for status, name in (
            (statuses.DONE, "nCompletedChildProcesses"),
            (statuses.FAILED, "nFailedChildProcesses"),
            (statuses.ABORTED, "nAbortedChildProcesses"),
        ):
            if job.counts[status]:
                counters[name] = job.counts[status]
        subset = self.files if len(self.files) != len(job.files) else None
        job.set_stage(self.index, status=statuses.RUNNING, files=subset, **counters)

    def _end(self, status: str, message: str | None = None) -> Result:
        if status != statuses.ABORTED or self.index in self.job.states:
            self.job.enter(self.index)
            self.job.set_stage(self.index, status=status)
        return status, message


def _result(task: asyncio.Task[Child | None], where: str) -> tuple[Child | None, str, str | None]:
    try:
        child = task.result()
    except DmException as error:
        return None, statuses.FAILED, f"{where} failed: {error.message}"
    if child is None:
        return None, statuses.ABORTED, None
    return child, child.status, child.reason


def _plain(value: Any) -> Any:
    """Return a value as variables have it: lists and dictionaries as JSON text."""
    return json.dumps(value) if isinstance(value, dict | list) else value
