"""Running one process of a stage: place, script, start, supervision, result."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from typing import TYPE_CHECKING

from dm.common import statuses
from dm.common.errors import ProcessingError
from dm.station.processing import documents, regexes, substitution
from dm.station.processing.documents import Child
from dm.station.processing.executors.base import MARKER, Outcome, Task
from dm.station.processing.expressions import as_text

if TYPE_CHECKING:
    from dm.station.processing.stagerun import StageRun

NO_STATUS = -1  # exitStatus of a process that never gave one
MAX_CAPTURED = 2 << 20
_RERUNS = 3
_KILLED_SECONDS = 30.0


class ChildRun:
    """One process.

    :param stage: its stage. :param file: index of its input file. :param repeat: which repeat.
    :param child: its record, when an earlier service has begun it.
    """

    def __init__(self, stage: StageRun, file: int, repeat: int, child: Child | None) -> None:
        self.stage = stage
        self.job = stage.job
        self.context = stage.job.context
        self.file = file
        self.repeat = repeat
        self.child = child
        self.stopped: str | None = None

    async def run(self) -> Child | None:
        """Run to the end and return the record; ``None`` when the job was stopped before the process was started.

        :raises DmException: it cannot be run with these values.
        """
        submitted = time.time()
        for _ in range(_RERUNS):
            child = self.child
            if child is not None and child.ended:
                return child
            found = child is not None and await self.context.blocking(self.context.executor.find, child.key)
            if found:
                self.context.slots.take()
            elif not await self._place():
                return await self._never_started()
            self.stage.running += 1
            try:
                outcome = None if found else await self._start(submitted)
                outcome = outcome or await self._supervise()
            finally:
                self.stage.running -= 1
                self.context.slots.release()
            if (
                outcome.exit_status is None
                and found
                and not self.stopped
                and self.context.settings.lost_stage == "rerun"
            ):
                self._renew()
                continue
            return await self._ended(outcome)
        return await self._ended(Outcome(None, end_time=time.time(), reason="The process disappeared several times."))

    async def _place(self) -> bool:
        if self.job.abort.is_set():
            return False
        slots = self.context.slots
        if slots.busy():
            await self.job.flush()
        return await self.job.unless_aborted(slots.acquire(self.job.owner, self.job.order))

    async def _never_started(self) -> Child | None:
        if self.child is None:
            return None
        self.stopped = statuses.ABORTED
        return await self._ended(Outcome(None, end_time=time.time(), reason="The job was stopped."))

    def _renew(self) -> None:
        """Give a process that left no trace another key under the same number."""
        child = self.child
        if child is not None:
            self.job.forget(child.key)
            child.key = self._key(child.number)
            self.job.set_child(child)

    def _key(self, number: int) -> str:
        return f"{self.job.id}.{number}.{secrets.token_hex(4)}"

    async def _start(self, submitted: float) -> Outcome | None:
        """Record the process, then start it; the record comes first so that no process is ever unknown.

        :returns: an outcome when it could not be started.
        """
        stage, job = self.stage, self.job
        values = stage.variables(self.file)
        variables = {name: as_text(value) for name, value in values.items()}
        for name in ("filePath", *job.arguments):
            if name in variables and (reason := substitution.bad_value(name, variables[name])):
                raise ProcessingError(reason)
        account = stage.account
        directory = stage.stage.get("workingDir")
        if directory is not None:
            directory = substitution.shown(directory, variables)
            directory = account.home + directory[1:] if directory.startswith("~/") else directory
        defaults = [account.home] if account.home else []
        if job.data_directory and not variables["filePath"].startswith("/"):
            defaults.insert(0, job.data_directory)
        number = self.child.number if self.child else job.next_child
        if self.child is not None:
            job.forget(self.child.key)
        key = self._key(number)
        environment = {
            **self.context.environment,
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
            MARKER: key,
        }
        head = substitution.prologue(environment, defaults, directory, bool(account.prefix))
        script = substitution.script(stage.stage["command"], variables, head)
        shown = documents.displayable(substitution.shown(stage.stage["command"], variables, documents.SHOWN_COMMAND))
        switched = account.name == job.workflow["userAccount"] and account.prefix
        job.next_child = max(job.next_child, number + 1)
        self.child = Child(
            number=number,
            stage=stage.index,
            repeat=self.repeat,
            file=self.file,
            key=key,
            command=f"sudo -u {account.name} -- {shown}" if switched else shown,
            workingDir=documents.displayable(directory) if directory is not None else None,
            userAccount=job.workflow["userAccount"],
            submitTime=submitted,
            startTime=time.time(),
        )
        job.children[number] = self.child
        job.enter(stage.index)
        job.set(nextChild=job.next_child)
        job.set_child(self.child)
        stage.count()
        await job.flush()
        try:
            await self.context.blocking(self.context.executor.start, Task(key, script, account))
        except ProcessingError as error:
            return Outcome(None, end_time=time.time(), reason=error.message)
        return None

    async def _supervise(self) -> Outcome:
        """Wait for the end of the process; stop it when its time is over or the job is to stop."""
        child, context = self._known(), self.context
        waiter = asyncio.ensure_future(context.executor.wait(child.key))
        abort = asyncio.ensure_future(self.job.abort.wait())
        try:
            await asyncio.wait({waiter, abort}, timeout=self._time_left(), return_when=asyncio.FIRST_COMPLETED)
            if not waiter.done():
                aborted = self.job.abort.is_set()
                self.stopped = statuses.ABORTED if aborted else statuses.FAILED
                await context.blocking(context.executor.stop, child.key, signal.SIGTERM)
                await asyncio.wait({waiter}, timeout=context.settings.stop_grace)
                if not waiter.done():
                    await context.blocking(context.executor.stop, child.key, signal.SIGKILL)
                    await asyncio.wait({waiter}, timeout=_KILLED_SECONDS + context.settings.output_grace)
            if waiter.done():
                return waiter.result()
            return Outcome(None, end_time=time.time(), reason="The process could not be killed.")
        finally:
            waiter.cancel()
            abort.cancel()
            await asyncio.gather(waiter, abort, return_exceptions=True)

    def _check_captured(self, child: Child) -> None:
        """Refuse more captured text than a job can keep for each of its processes."""
        limit = MAX_CAPTURED if len(self.job.files) == 1 else MAX_CAPTURED // documents.EMBEDDED
        size = sum(len(value) for value in child.captured.values())
        if size > limit:
            child.captured = {}
            child.status = statuses.FAILED
            child.reason = f"{self.stage.where} failed: its output regexes captured {size} characters, over {limit}."

    def _known(self) -> Child:
        if self.child is None:
            raise ProcessingError("A process without a record cannot be supervised.")
        return self.child

    def _limit(self) -> float:
        limits = [self.context.settings.stage_timeout, float(self.stage.stage.get("timeout") or 0)]
        return min((limit for limit in limits if limit > 0), default=0)

    def _time_left(self) -> float | None:
        """Return the seconds until the process has had its time; ``None`` for any."""
        limit = self._limit()
        if not limit:
            return None
        gone = time.time() - (self._known().startTime or time.time())  # across restarts only the wall clock tells
        return min(limit, max(0.0, limit - gone))

    async def _ended(self, outcome: Outcome) -> Child:
        child, job, settings = self._known(), self.job, self.context.settings
        child.endTime = max(outcome.end_time, child.startTime or child.submitTime)
        child.exitStatus = NO_STATUS if outcome.exit_status is None else outcome.exit_status
        child.status = statuses.DONE if child.exitStatus == 0 else statuses.FAILED
        if self.stopped:
            child.status = self.stopped
        if self.stopped == statuses.FAILED:
            child.reason = f"{self.stage.where} was stopped after {self._limit():g} s, its time limit."
        elif outcome.reason and not self.stopped:
            child.reason = f"{self.stage.where} failed: {outcome.reason}"
        child.outputTruncated = outcome.truncated
        child.stdOut = documents.displayed(outcome.stdout, settings.record_output_limit)
        child.stdErr = documents.displayed(outcome.stderr, settings.record_output_limit) or outcome.reason
        patterns = self.stage.stage.get("outputVariableRegexList") or []
        if patterns and outcome.stdout:
            child.captured = await self.context.blocking(regexes.capture, patterns, outcome.stdout)
            self._check_captured(child)
        job.counts[child.status] += 1
        job.set_child(child)
        self.stage.count()
        job.forget(child.key)
        self.context.count("processes", child.status)
        return child
