"""Running one process of a stage: place, script, start, supervision, result."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common import statuses
from dm.common.errors import ProcessingError
from dm.station.processing import documents, regexes, structured, substitution
from dm.station.processing.context import give_up
from dm.station.processing.documents import Child
from dm.station.processing.executors.base import MARKER, Executor, Outcome, Task
from dm.station.processing.expressions import as_text

if TYPE_CHECKING:
    from dm.station.processing.stagerun import StageRun

log = logging.getLogger(__name__)
NO_STATUS = -1  # exitStatus of a process that never gave one
MAX_CAPTURED = 2 << 20
_KILLED_SECONDS = 30.0
_SOON = 0.2  # seconds that the record of a process may wait for the start of the next one
_SMALL = 64 << 10  # read without a thread
_QUICK_BYTES, _QUICK_PATTERNS = 2 << 10, 10  # searched without a thread


class ChildRun:
    """One process.

    :param stage: its stage. :param file: index of its input file. :param repeat: which repeat.
    :param child: its record, when an earlier service has begun it. :param attempt: how many there were before.
    """

    def __init__(self, stage: StageRun, file: int, repeat: int, child: Child | None, attempt: int) -> None:
        self.stage = stage
        self.job = stage.job
        self.context = stage.job.context
        self.file = file
        self.repeat = repeat
        self.child = child
        self.attempt = attempt
        self.stopped: str | None = None
        self.exact = True  # whether the record shows all that was printed, byte for byte

    async def run(self) -> Child | None:
        """Run to the end and return the record; ``None`` when the job was stopped before the process was started.

        :raises DmException: it cannot be run with these values.
        """
        submitted = time.time()
        child = self.child
        name = child.executor if child else self.stage.stage.get("executor") or self.context.executors.default
        executor = await self._executor(name)
        if executor is None:
            return None
        found = child is not None and await executor.find(child.key)
        if found:
            self.context.slots.take(self.job.owner)
        elif not await self._place():
            return await self._never_started()
        self.stage.running += 1
        try:
            outcome = None if found else await self._start(submitted, name, executor)
            outcome = outcome or await self._supervise(executor)
        finally:
            self.stage.running -= 1
            self.context.slots.release(self.job.owner)
        try:
            return await self._ended(outcome)
        finally:  # not before: until its record is complete, its output is in the executor's files
            self.job.running.pop(self._known().number, None)

    async def _executor(self, name: str) -> Executor | None:
        """Return the executor; ``None`` when the job was stopped before it could be used, and nothing was started."""
        executors, job = self.context.executors, self.job
        if not executors.opened(name):
            await job.flush()
            if self.child is None and not await job.unless(self.stage.abort, executors.get(name)):
                return None
        return await executors.get(name)

    async def _place(self) -> bool:
        if self.stage.abort.is_set():
            return False
        slots, job = self.context.slots, self.job
        if not slots.busy(job.owner):
            slots.take(job.owner)
            return True
        return await job.unless(self.stage.abort, self._turn())

    async def _turn(self) -> None:
        """Wait for a place. What the job has to write is written with the start, unless that is some time away."""
        slots, job = self.context.slots, self.job
        turn = asyncio.ensure_future(slots.acquire(job.owner, job.order, job.priority))
        try:
            await asyncio.wait({turn}, timeout=_SOON)
            if not turn.done():
                await asyncio.shield(job.flush())  # a stop does not interrupt what it has to tell
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                slots.release(job.owner)
            turn.cancel()
            raise

    async def _never_started(self) -> Child | None:
        if self.child is None:
            return None
        self.stopped = statuses.ABORTED
        return await self._ended(Outcome(None, end_time=time.time(), reason="The job was stopped."))

    async def _start(self, submitted: float, name: str, executor: Executor) -> Outcome | None:
        """Record the process, then start it; the record comes first so that no process is ever unknown.

        :returns: an outcome when it could not be started.
        """
        stage, job = self.stage, self.job
        variables = {key: as_text(value) for key, value in stage.variables(self.file).items()}
        for key in ("filePath", *job.arguments):
            if key in variables and (reason := substitution.bad_value(key, variables[key])):
                raise ProcessingError(reason)
        account = stage.account
        directory = stage.stage.get("workingDir")
        if directory is not None:
            directory = substitution.shown(directory, variables)
            directory = account.home + directory[1:] if directory.startswith("~/") else directory
        defaults = [account.home] if account.home else []
        if job.data_directory and not variables["filePath"].startswith("/"):
            defaults.insert(0, job.data_directory)
        if self.child is not None:
            job.forget(self.child)
        number = self.child.number if self.child else job.next_child
        child = Child(
            number=number,
            stage=stage.index,
            repeat=self.repeat,
            file=self.file,
            executor=name,
            key=f"{job.id}.{number}.{secrets.token_hex(4)}",
            command="",
            workingDir=documents.displayable(directory) if directory is not None else None,
            userAccount=job.workflow["userAccount"],
            submitTime=submitted,
            attempt=self.attempt,
        )
        environment = {
            **self.context.environment,
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
            "DM_JOB_ID": job.id,
            "DM_STAGE": stage.name,
            "DM_ATTACH_KEY": f"{job.id}.{stage.index}.{self.repeat}.{self.file}",
            MARKER: child.key,
        }
        head = substitution.prologue(environment, defaults, directory, bool(account.prefix))
        script = substitution.script(stage.stage["command"], variables, head)
        shown = documents.displayable(substitution.shown(stage.stage["command"], variables, documents.SHOWN_COMMAND))
        switched = account.name == job.workflow["userAccount"] and account.prefix
        child.command = f"sudo -u {account.name} -- {shown}" if switched else shown
        child.startTime = time.time()
        self.child = child
        job.next_child = max(job.next_child, number + 1)
        job.enter(stage.index)
        job.set(nextChild=job.next_child)
        job.set_child(child)
        stage.count()
        await job.flush()
        try:
            await executor.start(Task(child.key, script, account))
        except ProcessingError as error:
            return Outcome(None, end_time=time.time(), reason=error.message)
        return None

    async def _supervise(self, executor: Executor) -> Outcome:
        """Wait for the end of the process; stop it when its time is over or the job is to stop."""
        child, context = self._known(), self.context
        self.job.running[child.number] = child
        waiter = asyncio.ensure_future(executor.wait(child.key))
        abort = asyncio.ensure_future(self.stage.abort.wait())
        try:
            await asyncio.wait({waiter, abort}, timeout=self._time_left(), return_when=asyncio.FIRST_COMPLETED)
            if not waiter.done():
                self.stopped = statuses.ABORTED if self.stage.abort.is_set() else statuses.FAILED
                await executor.stop(child.key, signal.SIGTERM)
                await asyncio.wait({waiter}, timeout=context.settings.stop_grace)
                if not waiter.done():
                    await executor.stop(child.key, signal.SIGKILL)
                    await asyncio.wait({waiter}, timeout=_KILLED_SECONDS)
            if waiter.done():
                return waiter.result()
            return Outcome(None, end_time=time.time(), reason="The process could not be killed.")
        finally:
            await give_up((waiter, abort))

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

    # --- the result ------------------------------------------------------------------------------------------

    async def _ended(self, outcome: Outcome) -> Child:
        child, stage, job = self._known(), self.stage, self.job
        child.startTime = outcome.start_time or child.startTime
        child.endTime = max(outcome.end_time, child.startTime or child.submitTime)
        child.exitStatus = NO_STATUS if outcome.exit_status is None else outcome.exit_status
        child.status = statuses.DONE if child.exitStatus == 0 else statuses.FAILED
        child.signal, child.lost = outcome.signal, outcome.lost and not self.stopped
        if self.stopped:
            child.status = self.stopped
        if self.stopped == statuses.FAILED:
            child.reason = f"{stage.where} was stopped after {self._limit():g} s, its time limit."
        elif outcome.reason and not self.stopped:
            child.status = statuses.FAILED
            child.reason = f"{stage.where} failed: {outcome.reason}"
        child.stdErr, _ = await self._output(outcome.stderr, "stderr", 0)
        child.stdErr = child.stdErr or outcome.reason
        patterns = stage.stage.get("outputVariableRegexList") or []
        child.stdOut, beginning = await self._output(
            outcome.stdout, "stdout", self.context.settings.output_limit if patterns else 0
        )
        if not self.exact:
            await self._keep(outcome)
        await self._captured(patterns, beginning, outcome.output)
        stage.counts[child.status] += 1
        job.set_child(child)
        stage.count()
        job.forget(child)
        path = documents.displayable(stage.inputs[self.file])
        told = {"stage": stage.name, "filePath": path, "status": child.status, "exitStatus": child.exitStatus}
        job.tell("file", **told)
        self.context.count("processes", child.status)
        return child

    async def _keep(self, outcome: Outcome) -> None:
        """Put the whole output aside. Where the disk does not take it, the result counts, and the record tells."""
        child, number = self._known(), self._known().number
        try:
            await self.context.blocking(self.context.logs.keep, self.job.id, number, outcome.stdout, outcome.stderr)
        except OSError as error:
            log.error("the output of process %d of job %s is lost: %s", number, self.job.id, error)
            child.outputTruncated = True
            note = f"(The whole output could not be kept: {error.strerror}.)"
            child.stdErr = f"{child.stdErr}\n{note}" if child.stdErr else note

    async def _output(self, file: Path | None, stream: str, wanted: int) -> tuple[str, bytes]:
        """Return what the record shows of an output, and its first bytes.

        :param wanted: how many bytes.
        """
        if file is None:
            return "", b""
        child, limit = self._known(), self.context.settings.record_output_limit
        try:
            size = file.stat().st_size
        except FileNotFoundError:  # a service that was killed then has put it aside
            kept = await self.context.blocking(self.context.logs.path, self.job.id, child.number, stream)
            if kept is None:
                return "", b""
            file, size = kept, kept.stat().st_size
        if size == 0:
            return "", b""
        reading = (_read, file, size, limit, wanted)
        head, tail, beginning = _read(*reading[1:]) if size <= _SMALL else await self.context.blocking(*reading)
        if size > limit:
            child.outputTruncated = True
        shown = documents.displayed(head, tail, size - len(head) - len(tail))
        self.exact = self.exact and size <= limit and shown.encode() == head
        return shown, beginning

    async def _captured(self, patterns: list[str], stdout: bytes, output: bytes) -> None:
        """Note the values that a process gave in its output and in its output file."""
        child = self._known()
        found: dict[str, Any] = {}
        if patterns and stdout:
            quick = len(stdout) <= _QUICK_BYTES and len(patterns) <= _QUICK_PATTERNS
            values = regexes.capture(patterns, stdout) if quick else None
            found |= values if values is not None else await self.context.blocking(regexes.capture, patterns, stdout)
        if output:
            try:
                found |= structured.values(output)
            except ProcessingError as error:
                if child.status == statuses.DONE:
                    child.status = statuses.FAILED
                    child.reason = f"{self.stage.where} failed: {error.message}"
        limit = MAX_CAPTURED if len(self.stage.inputs) == 1 else MAX_CAPTURED // documents.EMBEDDED
        size = sum(len(str(value)) for value in found.values())
        if size > limit:
            child.status = statuses.FAILED
            child.reason = f"{self.stage.where} failed: it gave {size} characters as values, over {limit}."
        else:
            child.captured = found


def _read(file: Path, size: int, limit: int, wanted: int) -> tuple[bytes, bytes, bytes]:
    """Return beginning and end of a file, ``limit`` bytes together, and its first ``wanted`` bytes."""
    with file.open("rb") as stream:
        first = stream.read(max(wanted, min(size, limit)))
        if size <= limit:
            return first[:limit], b"", first[:wanted]
        stream.seek(size - limit // 2)
        tail = stream.read(limit // 2)
    return first[: limit - limit // 2], tail, first[:wanted]
