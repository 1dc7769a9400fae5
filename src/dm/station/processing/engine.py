"""The engine: runs accepted jobs in an event loop of its own, and finds them again after a restart."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dm.common import setupfile, statuses
from dm.common.errors import ConfigurationError
from dm.station.processing import documents
from dm.station.processing.context import Context
from dm.station.processing.executors.base import Executor
from dm.station.processing.jobrun import JobRun
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.slots import FairSlots
from dm.station.processing.store import Store

log = logging.getLogger(__name__)
_START_SECONDS = 60.0
_STOP_SECONDS = 8.0


def stage_environment(settings: ProcessingSettings) -> dict[str, str]:
    """Return what every stage finds in its environment, besides its account's own variables.

    :raises ConfigurationError: the setup file named by the settings cannot be read.
    """
    given = setupfile.read_setup(settings.environment) if settings.environment else {}
    commands = str(Path(sys.executable).parent)
    return {
        **{name: value for name, value in given.items() if name.startswith("DM_") and name.isidentifier()},
        "PATH": f"{settings.path}:{commands}",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }


class Engine:
    """Runs jobs.

    :param store: :param executor: :param settings: of the service.
    :param spool: directory that belongs to this engine alone; a second engine on it refuses to start.
    :param count: called with (counter, label) for the metrics.
    """

    def __init__(
        self,
        store: Store,
        executor: Executor,
        settings: ProcessingSettings,
        spool: Path,
        count: Callable[[str, str], None] = lambda name, label: None,
    ) -> None:
        self.context = Context(
            store=store,
            executor=executor,
            settings=settings,
            environment=stage_environment(settings),
            slots=FairSlots(settings.concurrent_stages),
            threads=ThreadPoolExecutor(8, "stages"),
            database_threads=ThreadPoolExecutor(4, "database"),
            count=count,
        )
        self._spool = spool
        self._accepted: set[str] = set()
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
        store, runs = self.context.store, []
        for document in await self.context.blocking(store.active_jobs):
            outside = document["nextChild"] >= documents.EMBEDDED
            further = await self.context.blocking(store.children, document["_id"]) if outside else []
            runs.append(JobRun(self.context, document, further))
        open_keys = {child.key for run in runs for child in run.children.values() if not child.ended}
        await self.context.blocking(self.context.executor.sweep, open_keys)
        for run in runs:
            self._begin(run)
        if self._runs:
            log.info("took over %d jobs", len(self._runs))
        self._ready.set()
        await self._stop.wait()
        for task in self._tasks:
            task.cancel()  # their processes go on; the next engine takes them over
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def alive(self) -> bool:
        """Whether the engine runs."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Stop; what runs goes on, and the next engine takes it over."""
        if self._loop is not None and self._stop is not None and self.alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
        with self._changed:
            self._changed.notify_all()
        self.context.threads.shutdown(wait=False, cancel_futures=True)
        self.context.database_threads.shutdown(wait=False, cancel_futures=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- jobs ------------------------------------------------------------------------------------------------

    def submit(self, document: Mapping[str, Any]) -> None:
        """Take over a job that has been stored."""
        if self._loop is not None and self.alive():
            self._accepted.add(document["_id"])
            self._loop.call_soon_threadsafe(lambda: self._begin(JobRun(self.context, dict(document))))

    def _begin(self, run: JobRun) -> None:
        if run.id in self._runs:
            return
        self._runs[run.id] = run
        self._accepted.add(run.id)
        task = asyncio.get_running_loop().create_task(self._finish(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, run: JobRun) -> None:
        try:
            status = await run.run()
            self.context.count("jobs", status)
            log.info("job %s of %s ended: %s", run.id, run.owner, status)
        except Exception:
            log.exception("job %s could not be brought to its end", run.id)
        finally:
            self._runs.pop(run.id, None)
            self._accepted.discard(run.id)
            with self._changed:
                self._changed.notify_all()

    def abort(self, job_id: str) -> None:
        """Stop a job whose wish to stop has been stored."""

        def stop() -> None:
            if run := self._runs.get(job_id):
                run.status = statuses.ABORTING
                run.abort.set()

        if self._loop is not None and self.alive():
            self._loop.call_soon_threadsafe(stop)

    def running(self, job_id: str) -> bool:
        """Whether the job has not ended."""
        return job_id in self._accepted

    def wait(self, job_id: str, seconds: float) -> None:
        """Wait until the job has ended, or so many seconds."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self.running(job_id) and self.alive() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def load(self) -> dict[str, int]:
        """Return how much there is to do: jobs, processes running and waiting."""
        slots = self.context.slots
        return {"jobs": len(self._accepted), "running": slots.used, "waiting": slots.waiting}
