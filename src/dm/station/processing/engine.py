"""The engine: runs accepted jobs in an event loop of its own, and finds them again after a restart."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dm.common import statuses
from dm.common.errors import ConfigurationError, DmException, ServiceUnavailable
from dm.station.processing import documents
from dm.station.processing.admission import Admission, Waiting
from dm.station.processing.context import Context, Event, stage_environment
from dm.station.processing.documents import Child
from dm.station.processing.executors.running import Executors
from dm.station.processing.jobrun import JobRun
from dm.station.processing.logs import Logs
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.slots import FairSlots
from dm.station.processing.store import Store
from dm.station.processing.writer import ServiceEnds, Writer

log = logging.getLogger(__name__)
_START_SECONDS = 60.0
_STOP_SECONDS = 8.0
_KEPT_IN_MEMORY = 2_000  # documents of waiting jobs; those of further ones are read again
_EXPIRE_SECONDS = 3_600.0


class Engine:
    """Runs jobs.

    :param store: :param executors: :param settings: of the service.
    :param spool: directory that belongs to this engine alone; a second engine on it refuses to start.
    :param count: called with (counter, label) for the metrics.
    :param events: see :class:`~dm.station.processing.context.Context`; called in the engine's thread.
    """

    def __init__(
        self,
        store: Store,
        executors: Executors,
        settings: ProcessingSettings,
        spool: Path,
        *,
        count: Callable[[str, str], None] = lambda name, label: None,
        events: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.writer = Writer(store)
        self.context = Context(
            writer=self.writer,
            executors=executors,
            logs=Logs(spool / "logs"),
            settings=settings,
            environment=stage_environment(settings),
            slots=FairSlots(settings.concurrent_stages, settings.owner_stages),
            threads=ThreadPoolExecutor(8, "stages"),
            count=count,
            events=events,
        )
        self._store = store
        self._spool = spool
        self._accepted: set[str] = set()
        self._looked_up: set[tuple[str, tuple[str, int]]] = set()  # jobs found in the database, see _turn
        self._wishes: set[str] = set()  # accepted jobs that are to be stopped
        self._again: dict[str, Mapping[str, Any]] = {}  # jobs let go on before their end was known here
        self._taken_over = False  # before, no job begins and none is stopped
        self._admission = Admission(settings.concurrent_jobs)
        self._runs: dict[str, JobRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._lock: int | None = None

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take over the jobs of an earlier engine, then new ones.

        :raises ConfigurationError: another engine has the spool directory.
        """
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._spool / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise ConfigurationError(
                f"Another processing service uses the spool directory {self._spool}; stop it first."
            ) from None
        self._lock = lock
        self.writer.start()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._thread.start()
        self._ready.wait(_START_SECONDS)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self.close()
            raise failure

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            log.exception("the engine ended")
            self._failure = error
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._take_over()
        self._taken_over = True
        self._wishes &= self._accepted
        for job_id in list(self._wishes):
            self._stop_job(job_id)
        self._admit()
        housekeeping = asyncio.create_task(self._expire())
        self._ready.set()
        await self._stop.wait()
        housekeeping.cancel()
        for task in self._tasks:
            task.cancel()  # their processes go on; the next engine takes them over
        await asyncio.gather(housekeeping, *self._tasks, return_exceptions=True)
        await self.context.executors.close()

    async def _take_over(self) -> None:
        """Go on with the jobs of an earlier engine."""
        keys: dict[str, set[str]] = {}
        begun: list[JobRun] = []
        unreadable: dict[str, Exception] = {}
        active = await self.context.blocking(self._store.active_jobs)
        for document in active:
            self._enqueue(document)
            if document["status"] == statuses.PENDING and not document["children"]:
                continue
            self._admission.remove(document["_id"])  # it is under way, whatever the limits are now
            try:
                further = await self._further(document)
                known = [Child.from_document(child) for child in [*document["children"].values(), *further]]
                begun.append(JobRun(self.context, document, further))
            except DmException:
                raise
            except Exception as error:
                unreadable[document["_id"]] = error
                continue
            for child in known:
                if not child.ended:
                    keys.setdefault(child.executor, set()).add(child.key)
        await self.context.executors.open(keys)
        for run in begun:
            self._runs[run.id] = run
            self._spawn(self._finish(run))
        for job_id, problem in unreadable.items():
            self._spawn(self._refuse(job_id, problem))
        if active:
            log.info("took over %d jobs", len(active))

    async def _further(self, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a job's processes that are stored outside of its document, without what they printed."""
        if document["nextChild"] < documents.EMBEDDED:
            return []
        return await self.context.blocking(self._store.children, document["_id"], 0, 0, ("stdOut", "stdErr"))

    async def _expire(self) -> None:
        """Remove outputs that have been kept long enough, now and then."""
        while self.context.settings.log_days:
            try:
                await self.context.blocking(self.context.logs.expire, self.context.settings.log_days)
            except OSError as error:  # the next time, perhaps
                log.warning("old outputs cannot be removed: %s", error)
            await asyncio.sleep(_EXPIRE_SECONDS)

    def alive(self) -> bool:
        """Whether the engine runs."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Stop; what runs goes on, and the next engine takes it over."""
        if self._loop is not None and self._stop is not None and self.alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            self.writer.close()
        with self._changed:
            self._changed.notify_all()
        self.context.threads.shutdown(wait=False, cancel_futures=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- jobs ------------------------------------------------------------------------------------------------

    def submit(self, document: Mapping[str, Any]) -> None:
        """Take over a job that has been stored."""

        def enqueue() -> None:
            self._hand_over(dict(document))
            self._admit()

        turn = (document["_id"], _turn(document))
        if self._loop is not None and self.alive() and turn not in self._looked_up:
            self._accepted.add(document["_id"])
            self._loop.call_soon_threadsafe(enqueue)

    def look_again(self) -> None:
        """Find accepted jobs in the database that nobody has handed over, as soon as it answers."""
        if self._loop is not None and self.alive():
            self._loop.call_soon_threadsafe(lambda: self._spawn(self._look_again()))

    async def _look_again(self) -> None:
        pause = 1.0
        while True:
            await asyncio.sleep(pause)
            try:
                found = await self.context.blocking(self._store.active_jobs)
            except ServiceUnavailable:
                pause = min(10.0, 2 * pause)
                continue
            break
        for document in found:
            ending = self._admission.ending(document["_id"], _turn(document))
            if document["_id"] not in self._accepted or ending:
                # Whoever is just about to hand it over comes too late, even when it has ended by then.
                self._looked_up.add((document["_id"], _turn(document)))
                self._hand_over(document)
        self._admit()

    def _hand_over(self, document: dict[str, Any]) -> None:
        """Put a job into the queue; one whose last end is not known here yet when it is."""
        if self._admission.ending(document["_id"], _turn(document)):
            self._again[document["_id"]] = document
        else:
            self._enqueue(document)

    def _enqueue(self, document: Mapping[str, Any], *, at_hand: bool = True) -> None:
        workflow = f"{document.get('workflowOwner', '')}:{document.get('workflowName', '')}"
        self._accepted.add(document["_id"])
        self._admission.add(
            Waiting(
                rank=(-document.get("priority", 0), document["order"]),
                id=document["_id"],
                owner=document["owner"],
                workflow=workflow,
                most=document.get("maxConcurrentJobs", 0),
                turn=_turn(document),
                document=dict(document) if at_hand and len(self._admission) < _KEPT_IN_MEMORY else None,
            )
        )

    def _admit(self) -> None:
        """Begin jobs as long as there is room."""
        while self._taken_over and (job := self._admission.next()) is not None:
            self._spawn(self._take_up(job))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_up(self, job: Waiting) -> None:
        """Run a job from the queue; its document may have to be read again."""
        document, pause = job.document, 1.0
        job.document = None
        while True:
            try:
                document = document or await self.context.blocking(self._store.job, job.id)
                if document is None or not document.get("active"):
                    self._over(job.id)
                    return
                run = JobRun(self.context, document, await self._further(document))
                break
            except DmException as error:
                log.warning("%s", error)
                await asyncio.sleep(pause)
                pause = min(10.0, 2 * pause)
            except Exception as error:
                await self._refuse(job.id, error)
                return
        if run.id in self._wishes:
            run.stop()
        self._runs[run.id] = run
        await self._finish(run)

    async def _finish(self, run: JobRun) -> None:
        try:
            status = await run.run()
            self.context.count("jobs", status)
            log.info("job %s of %s ended: %s", run.id, run.owner, status)
        except ServiceEnds:
            log.info("job %s goes on with the next service", run.id)
        except Exception:
            log.exception("job %s could not be brought to its end", run.id)
        finally:
            self._over(run.id)

    async def _refuse(self, job_id: str, error: Exception) -> None:
        """End a job whose document is not what this version can run."""
        log.error("job %s cannot be read", job_id, exc_info=error)
        message = f"The job cannot be read by this version of the service: {type(error).__name__} {error!s:.200}."
        values = {"status": statuses.FAILED, "active": 0, "endTime": time.time(), "errorMessage": message}
        try:
            await asyncio.wrap_future(self.writer.update(job_id, values))
        except DmException as problem:
            log.warning("%s", problem)
        finally:
            self._over(job_id)

    def _over(self, job_id: str) -> None:
        self._runs.pop(job_id, None)
        self._accepted.discard(job_id)
        self._wishes.discard(job_id)
        self._admission.ended(job_id)
        if (again := self._again.pop(job_id, None)) is not None:
            self._enqueue(again, at_hand=False)  # it may have been stopped since
        with self._changed:
            self._changed.notify_all()
        if self._stop is not None and not self._stop.is_set():
            self._admit()

    def abort(self, job_id: str) -> None:
        """Stop a job whose wish to stop has been stored."""

        def stop() -> None:
            if job_id in self._accepted or not self._taken_over:
                self._wishes.add(job_id)
            if self._taken_over:
                self._stop_job(job_id)

        if self._loop is not None and self.alive():
            self._loop.call_soon_threadsafe(stop)

    def _stop_job(self, job_id: str) -> None:
        if (waiting := self._admission.remove(job_id)) is not None:
            waiting.document = None  # it says nothing of the wish
            self._spawn(self._take_up(waiting))
        elif run := self._runs.get(job_id):
            run.stop()

    def running(self, job_id: str) -> bool:
        """Whether the job has not ended."""
        return job_id in self._accepted

    def wait(self, job_id: str, seconds: float) -> None:
        """Wait until the job has ended, or so many seconds."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self.running(job_id) and self.alive() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def output(self, job_id: str, number: int, stream: str) -> Path | None:
        """Return the file with what a running process has printed so far, if there is one on this host.

        :param number: of the process. :param stream: ``stdout`` or ``stderr``.
        """
        run = self._runs.get(job_id)
        child = run.running.get(number) if run is not None else None
        return self.context.executors.output(child.executor, child.key, stream) if child is not None else None

    def load(self) -> dict[str, int]:
        """Return how much there is to do: jobs, those waiting to begin, processes running and waiting."""
        slots = self.context.slots
        return {
            "jobs": len(self._accepted),
            "queued": len(self._admission),
            "running": slots.used,
            "waiting": slots.waiting,
        }

    def problems(self) -> dict[str, str]:
        """Return why executors cannot be used at present, by name."""
        return self.context.executors.troubles()


def _turn(document: Mapping[str, Any]) -> tuple[str, int]:
    """Return what tells a job from one that had its id before, and how often it was let go on."""
    return document["order"], document.get("restarts", 0)
