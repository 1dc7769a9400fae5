"""Submitting one batch job, following it to its end, and finding it again after a restart."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from dm.station.processing.batch import outcome, script
from dm.station.processing.batch.listing import SharedListing
from dm.station.processing.batch.outcome import BatchError, Outcome, Record, Refused, Unavailable, judged
from dm.station.processing.batch.relay import Relay
from dm.station.processing.batch.request import Request
from dm.station.processing.batch.schedulers import BROKEN, Scheduler, environment
from dm.station.processing.batch.state import Files, Noted, State, new_name

T = TypeVar("T")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FIRST_LOOK, _LAST_LOOK = 2.0, 15.0  # seconds between looks at the scheduler's list
_FIRST_TICK, _LAST_TICK = 0.1, 2.0  # seconds between looks at the job's own files
_STOP_SECONDS = 60.0  # for the end of a job that is to be deleted
_STOPPED_LOOK = 0.5  # seconds between looks at the list then
_STOPPED_SECONDS = 1.0  # for the accounting of one that was
_DELETE_SECONDS = 10.0  # for the deleting command to end


class Patience:
    """Bears with a scheduler that does not answer, for a while."""

    def __init__(self, seconds: float, tell: Callable[[str], None]) -> None:
        self.seconds = seconds
        self._tell = tell
        self._since: float | None = None

    def fails(self, error: Unavailable) -> None:
        """Note a failure. :raises Unavailable: it has lasted too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._tell(f"{error} Trying again for {self.seconds:g} s.")
        if now - self._since >= self.seconds:
            raise Unavailable(f"The scheduler has not answered for {self.seconds:g} s: {error}") from error

    def answered(self) -> None:
        """Note an answer."""
        if self._since is not None:
            self._tell("The scheduler answers again.")
        self._since = None


class BatchRun:
    """One run of ``dm-batch-run``.

    :param patience: seconds without an answer of the scheduler. :param accounting: seconds until an ended job must be
        in the accounting; after that its own note of its end is taken.
    """

    def __init__(
        self, scheduler: Scheduler, request: Request, state: State, patience: float = 600.0, accounting: float = 60.0
    ) -> None:
        self.scheduler = scheduler
        self.request = request
        self.state = state
        self.accounting = accounting
        self.patience = Patience(patience, tell)
        self.noted = Noted("", scheduler.name)
        self.files = Files(state.directory)
        self.stopped: signal.Signals | None = None
        self._stop_deadline = 0.0
        self._since = time.time()
        self._deleting: list[subprocess.Popen[bytes]] = []
        self._listing = SharedListing(scheduler)

    def run(self) -> Outcome:
        """Submit the job, or find the one submitted earlier, and follow it.

        :raises BatchError: there is no outcome to tell. What is noted stays where a later run can go on with the job.
        """
        previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            with self.state.locked() as lock:
                self._submitted(lock)
            if self.stopped is not None:
                self.files.cancel()
                self._delete()
            self._since = time.time()
            _write(1, f"Job id: {self.noted.job}\nJob name: {self.noted.name}\n")
            return self._followed()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for process in self._deleting:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_DELETE_SECONDS)

    def forget(self) -> None:
        """Remove what is noted: the outcome has been told."""
        self.state.remove()

    # --- submission

    def _submitted(self, lock: int) -> None:
        """Have a job: one that an earlier run submitted, or a new one."""
        noted = self.state.read()
        if noted is not None and noted.scheduler != self.scheduler.name:
            raise BatchError(
                f"Batch job {noted.job or noted.name} was submitted to another scheduler ({noted.scheduler}).",
                outcome.REFUSED,
            )
        if noted is not None:
            self.noted, self.files = noted, self.state.files(noted)
            noted.job = noted.job or self._found()
            if not self.files.cancelled and (noted.job or self.files.directory.exists()):
                if noted.job:
                    tell(f"Following batch job {noted.job}, which an earlier run submitted.")
                    self.state.note(noted)
                    return
            elif noted.job:
                self._clear_away()
            self.files.remove()
        self.noted = Noted(new_name(self.request.name), self.scheduler.name, time=time.time())
        self.files = self.state.files(self.noted)
        self.state.note(self.noted)
        self.files.make()
        if self.request.script is not None:
            self.files.write(script.SCRIPT, self.request.script)
        text = script.job_script(self.request, str(self.files.directory), self.scheduler.prefix)
        path = self.files.write("job.sh", text)
        try:
            self.noted.job = self._accepted(path, lock)
        except BatchError:
            if self.files.withdraw():  # from now on it cannot begin, should the scheduler have it nevertheless
                self.state.remove()
                raise
            self.noted.job = self.files.begun()
        self.state.note(self.noted)

    def _clear_away(self) -> None:
        """See to the end of a job that an earlier run was told to stop and may not have managed to delete.

        :raises BatchError: it still runs.
        """
        deadline = time.monotonic() + _STOP_SECONDS
        while self.noted.job in self._answer(self.scheduler.listing):
            self._delete()
            if time.monotonic() > deadline:
                message = f"Batch job {self.noted.job} of an earlier run, which is to be deleted, still runs."
                raise BatchError(message, outcome.REFUSED)
            self._pause(2.0)
            self._unless_stopped()

    def _accepted(self, path: Path, lock: int) -> str:
        """Submit until the scheduler has answered; a submission whose answer was lost is found by the job's name."""
        refused: Refused | None = None
        while True:
            self._unless_stopped()
            try:
                job = self.scheduler.submit(self.request, self.noted.name, path, lock)
                self.patience.answered()
                return job
            except Unavailable as error:
                self.patience.fails(error)
                refused = None
            except Refused as error:
                if refused is not None:
                    raise
                refused = error  # it may not have been the scheduler itself that said no: ask again
            self._pause(1.0 if refused else 5.0)
            if job := self._found():
                return job

    def _found(self) -> str:
        """Return the id of the job of this name, if the scheduler has it or had it."""

        def look() -> str:
            if begun := self.files.begun():
                return begun
            for job, listed in self.scheduler.listing().items():
                if listed.name == self.noted.name:
                    return job
            return self.scheduler.find(self.noted.name)

        return self._answer(look)

    def _answer(self, question: Callable[[], T]) -> T:
        """Ask until there is an answer. :raises Unavailable: that took too long."""
        while True:
            try:
                answer = question()
                self.patience.answered()
                return answer
            except Unavailable as error:
                self._unless_stopped()
                self.patience.fails(error)
                self._pause(5.0)

    def _unless_stopped(self) -> None:
        if self.stopped is not None:
            raise BatchError("Stopped before the job was submitted.", outcome.SIGNALLED + self.stopped)

    # --- the way to its end

    def _followed(self) -> Outcome:
        relays = [Relay(self.files.directory / script.STDOUT, 1), Relay(self.files.directory / script.STDERR, 2)]
        began, tick, gone = time.monotonic(), _FIRST_TICK, False
        looked = began + random.uniform(0, _FIRST_LOOK)  # noqa: S311
        while True:
            for relay in relays:
                relay.pump()
            now = time.monotonic()
            if self.files.ended() is None and now >= looked:
                every = min(_LAST_LOOK, max(_FIRST_LOOK, (now - began) / 10)) if self.stopped is None else _STOPPED_LOOK
                looked = now + every * random.uniform(0.8, 1.2)  # noqa: S311
                gone = not self._is_listed(every)
            if (gone or self.files.ended() is not None) and (record := self._record()) is not None:
                return self._ended(record, relays)
            gone = False
            if self.stopped is not None and now > self._stop_deadline:
                raise BatchError(
                    f"Batch job {self.noted.job} could not be deleted after {self.stopped.name}: it may still run.",
                    outcome.SIGNALLED + self.stopped,
                )
            time.sleep(tick if self.stopped is None else _FIRST_TICK)
            tick = min(_LAST_TICK, max(_FIRST_TICK, (now - began) / 20))
            looked = looked if self.stopped is None else min(looked, now + _STOPPED_LOOK)

    def _is_listed(self, every: float) -> bool:
        """Ask the scheduler whether the job waits or runs; when it does not answer, the job does."""
        try:
            jobs = self._listing.get(self._since, every / 2)
        except Unavailable as error:
            self.patience.fails(error)
            return True
        if jobs is None:
            return True
        self.patience.answered()
        listed = jobs.get(self.noted.job)
        if listed is None:
            begun = self.files.begun()
            if begun and begun != self.noted.job:  # submitted twice: the other one has it
                self.noted.job = begun
                return True
            return False
        if listed.state == BROKEN:
            reason = self._answer(lambda: self.scheduler.why(self.noted.job))
            self.files.cancel()
            self._delete()
            message = f"Batch job {self.noted.job} could not be started: {reason or 'it is in error.'}"
            self.state.remove()
            raise Refused(message)
        if self.stopped is not None and all(process.poll() is not None for process in self._deleting):
            self._delete()  # the first time it may not have listened
        return True

    def _ended(self, record: Record, relays: list[Relay]) -> Outcome:
        noted = self.files.ended()
        sizes = (noted.stdout, noted.stderr) if noted else (None, None)
        whole = [relay.finish(size) for relay, size in zip(relays, sizes, strict=True)]
        if not all(whole):
            tell(f"Not all output of batch job {self.noted.job} has come to this host.")
        if noted is None and record.exit_status == script.NOT_RUN and not self.files.begun():
            reason = f"could not be started: its host does not see {self.files.directory}; is that on a shared disk?"
            record = Record(outcome.NOT_STARTED, None, reason, record.host)
        if self.stopped is not None and (noted is None or noted.signalled or record.kind != outcome.EXITED):
            reason = f"Batch job {self.noted.job} was deleted as this command got signal {self.stopped.name}."
            status = outcome.SIGNALLED + self.stopped
            return Outcome(self.noted.job, self.noted.name, status, record.exit_status, reason, record)
        return judged(self.noted.job, self.noted.name, noted, record)

    def _record(self) -> Record | None:
        """Return what the accounting tells, which may come a while after the end; ``None``: the job is listed again."""
        began = time.monotonic()
        looked, pause = began, 0.2
        while True:
            patience = self.accounting if self.stopped is None else min(self.accounting, _STOPPED_SECONDS)
            last = time.monotonic() - began >= patience
            try:
                record = self.scheduler.record(self.noted.job, self.noted.name, last)
                self.patience.answered()
                if record is not None or last:
                    return record or self._unaccounted()
            except Unavailable as error:
                if last and self._goes_without_accounting(error):
                    return self._unaccounted()
            if self.files.ended() is None and time.monotonic() - looked > _FIRST_LOOK:
                looked = time.monotonic()
                if self._is_listed(_FIRST_LOOK):
                    return None
            time.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
            pause = min(5.0, pause * 1.5)

    def _goes_without_accounting(self, error: Unavailable) -> bool:
        """Say whether only the accounting fails, or it is not needed. :raises Unavailable: all fails, for too long."""
        if self.files.ended() is not None:
            return True
        try:
            self.scheduler.listing()
        except Unavailable:
            self.patience.fails(error)
            return False
        return True

    def _unaccounted(self) -> Record:
        """Say what is known of an ended job without an accounting record."""
        if self.files.ended() is not None:
            tell(f"The accounting tells nothing of batch job {self.noted.job}; its own exit status is taken.")
            return Record(outcome.EXITED)
        if not self.files.begun():
            return Record(outcome.KILLED, None, "was deleted before it began.")
        where = f"no accounting record came within {self.accounting:g} s"
        return Record(outcome.GONE, None, f"was lost: it is not in the scheduler's list, and {where}.")

    # --- being stopped

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Delete the job at once: there may be little time until we are killed."""
        if self.stopped is not None:
            return
        self.stopped = signal.Signals(number)
        self._stop_deadline = time.monotonic() + _STOP_SECONDS
        if self.noted.name:
            self.files.cancel()
        if self.noted.job:
            self._delete()

    def _delete(self) -> None:
        """Have the scheduler delete the job, without waiting for it."""
        command = [*self.scheduler.deletion(self.noted.job)]
        try:
            process = subprocess.Popen(
                command,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._deleting.append(process)
        except OSError as error:
            tell(f"{command[0]} cannot be run: {error.strerror}.")

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.stopped is None and time.monotonic() < deadline:
            time.sleep(0.2)


def tell(message: str) -> None:
    """Say something on standard error."""
    _write(2, f"dm-batch-run: {message}\n")


def _write(target: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads us any more; the job goes on
        os.write(target, text.encode(errors="surrogateescape"))
