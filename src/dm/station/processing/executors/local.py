"""The ``local`` executor: processes of this host, under a supervisor that outlives the service.

Each start of the service has a supervisor of its own (see :mod:`dm.station.processing.executors.supervisor.program`),
a *generation*, with a directory below the spool directory. What an earlier service started is found in the journals of
the generations before; as their supervisors take no orders any more once their service is gone, a process that is in
no journal was never started and never will be.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Collection, Coroutine
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from dm.common.errors import ConfigurationError, ProcessingError
from dm.station.processing.executors.base import ExecutorSettings, Outcome, Task
from dm.station.processing.executors.exchange import Exchange
from dm.station.processing.executors.generation import PREFIX, Generation
from dm.station.processing.executors.supervisor.records import Ended, StartOrder
from dm.station.processing.processes import boot_id

_MOST_STARTS = 10_000  # of one supervisor: its journal and what is remembered of it stay small
_ATTACH_SECONDS = 10.0
_LEAVE_SECONDS = 3.0
_TRIES = 3
_UNKNOWN = "The process disappeared without an exit status: the host restarted, or the spool directory is another one."
_SUFFIX = {"stdout": "out", "stderr": "err"}


class LocalSettings(ExecutorSettings):
    """Settings of the ``local`` executor."""

    output_grace: float = Field(
        default=10,
        gt=0,
        le=3600,
        description="Seconds that what a process left running when it ended may go on, its output being kept.",
    )
    log_limit: int = Field(
        default=4 << 30,
        ge=1024,
        description="Bytes that a process may write to standard output, and to standard error; beyond it is killed.",
    )
    reserve: int = Field(
        default=256 << 20,
        ge=0,
        description="Bytes that stay free on the disk of the spool directory: a process whose output would take them "
        "is killed.",
    )


class Local:
    """Runs processes on this host.

    :param spool: directory for what runs and its output; on a local disk. :param settings: of the executor.
    """

    name: ClassVar[str] = "local"
    settings_model: ClassVar[type[ExecutorSettings]] = LocalSettings

    def __init__(self, spool: Path, settings: LocalSettings | None = None) -> None:
        self.spool = spool
        self.settings = settings or LocalSettings()
        self._exchange = Exchange(spool)
        self._own: Generation | None = None
        self._launching = asyncio.Lock()
        self._generations: set[Generation] = set()
        self._homes: dict[str, Generation] = {}  # keys that are not forgotten
        self._ends: dict[str, Ended] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._wanted: set[str] = set()
        self._new_boot = False
        self._tries: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped: set[str] = set()  # before they were started
        self._closing = False

    # --- life ------------------------------------------------------------------------------------------------

    async def open(self, keys: Collection[str]) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        self._wanted = set(keys)
        try:
            found = await asyncio.to_thread(self._prepare)
        except OSError as error:
            raise ConfigurationError(f"The spool directory {self.spool} cannot be used: {error}.") from error
        if not found:
            await asyncio.to_thread(self._exchange.close, False)  # what was not started before a crash left there
        if attaching := [self._later(self._attach(directory)) for directory in found]:
            done, _ = await asyncio.wait(attaching, timeout=_ATTACH_SECONDS)
            for task in done:
                task.result()

    def _prepare(self) -> list[Path]:
        """Make the directory, note the boot, and return the directories of earlier generations."""
        self.spool.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.spool.chmod(0o711)
        note = self.spool / ".boot"
        try:
            self._new_boot = note.read_text() != boot_id()
        except FileNotFoundError:
            self._new_boot = True  # also when somebody emptied the directory: nothing is known of what ran
        if self._new_boot:
            part = self.spool / ".boot.part"
            with part.open("w") as stream:
                stream.write(boot_id())
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(note)
            place = os.open(self.spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(place)
            finally:
                os.close(place)
        return sorted(entry for entry in self.spool.iterdir() if entry.name.startswith(PREFIX) and entry.is_dir())

    async def _attach(self, directory: Path) -> None:
        generation = Generation(directory, self._on_end, self._on_gone)
        generation.kept = set(self._wanted)  # until it is known which of them are there
        self._generations.add(generation)
        await generation.attach()
        self._adopt(generation)
        self._later(self._adopt_rest(generation))

    def _adopt(self, generation: Generation) -> None:
        for key in generation.journal.begun.keys() & self._wanted:
            self._homes.setdefault(key, generation)

    async def _adopt_rest(self, generation: Generation) -> None:
        """When a generation takes no orders any more: keep what is wanted of it, tidy away the rest."""
        await generation.settled.wait()
        self._adopt(generation)
        for key in generation.keep_only(self._wanted):
            await self._remove_output(key)
        self._tidy(generation)

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        self._closing = True
        own = self._own
        if own is not None:
            own.retire()
        leaving = [generation.dead.wait() for generation in self._generations if generation.idle]
        if leaving:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*leaving), _LEAVE_SECONDS)
        for generation in list(self._generations):
            await generation.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = await asyncio.to_thread(lambda: any(self.spool.glob(f"{PREFIX}*")))
        await asyncio.to_thread(self._exchange.close, left)
        for future in self._waiting.values():
            future.cancel()

    # --- processes -------------------------------------------------------------------------------------------

    async def find(self, key: str) -> bool:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        if key in self._homes:
            return True
        for generation in list(self._generations):
            if generation is not self._own:
                await generation.settled.wait()
                self._adopt(generation)
        if key not in self._homes and self._new_boot and key in self._wanted:
            self._on_end(Ended(key, None, 0.0, time.time(), reason=_UNKNOWN, lost=True))
            return True
        return key in self._homes

    async def start(self, task: Task) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        account = task.account
        output = self._exchange.path(task.key, account)
        prefix = () if account.user is not None else account.prefix
        order = StartOrder(task.key, task.script, os.fsencode(output), account.user, prefix)
        self._wanted.add(task.key)
        await self._send(order)

    async def _send(self, order: StartOrder) -> None:
        own = self._own
        if own is None or own.dead.is_set() or own.starts >= _MOST_STARTS:
            own = await self._supervisor()
        self._homes[order.key] = own
        await own.start(order)

    async def _supervisor(self) -> Generation:
        """Return the supervisor that takes orders, a new one where there is none or it has had its share."""
        async with self._launching:
            own = self._own
            if own is not None and not own.dead.is_set():
                if own.starts < _MOST_STARTS:
                    return own
                own.retire()
            settings = self.settings
            words = [str(settings.log_limit), str(settings.reserve), str(settings.output_grace)]
            self._own = await Generation.launch(self.spool, words, self._on_end, self._on_gone)
            self._generations.add(self._own)
            return self._own

    def _on_end(self, ended: Ended) -> None:
        if ended.key not in self._wanted:
            return  # nobody asks for it: it goes with its generation
        self._ends[ended.key] = ended
        future = self._waiting.pop(ended.key, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _on_gone(self, generation: Generation) -> None:
        """A supervisor is gone: what it had not taken goes to the next one."""
        if self._own is generation:
            self._own = None
        for order in generation.unseen:
            generation.kept.discard(order.key)
            if not self._closing:
                self._later(self._again(order))
        generation.unseen.clear()
        self._tidy(generation)

    async def _again(self, order: StartOrder) -> None:
        """Give an order to the next supervisor that the one before has not taken."""
        self._homes.pop(order.key, None)
        tries = self._tries[order.key] = self._tries.get(order.key, 1) + 1
        reason = "It was not started: the supervisor of processes does not stay alive."
        if order.key in self._stopped:
            reason = "It was stopped before it was started."
        elif tries <= _TRIES:
            try:
                await self._send(order)
                return
            except ProcessingError as error:
                reason = error.message
        self._on_end(Ended(order.key, None, 0.0, time.time(), reason=reason))

    async def wait(self, key: str) -> Outcome:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        if key not in self._ends:
            future = self._waiting.get(key)
            if future is None:
                future = self._waiting[key] = asyncio.get_running_loop().create_future()
            await asyncio.shield(future)
        return self._outcome(self._ends[key])

    def _outcome(self, ended: Ended) -> Outcome:
        output, problem = self._exchange.read(ended.key)
        died = ended.status is not None and ended.status < 0
        number = -ended.status if died and ended.status is not None else None
        home = self._homes.get(ended.key)
        return Outcome(
            exit_status=128 + number if number is not None else ended.status,
            end_time=ended.end,
            start_time=ended.start or None,
            signal=number,
            reason=ended.reason or problem,
            lost=ended.lost,
            stdout=home.file(ended.key, "out") if home and ended.out else None,
            stderr=home.file(ended.key, "err") if home and ended.err else None,
            output=output,
            cpu_seconds=ended.cpu if ended.status is not None else None,
            max_memory=ended.memory if ended.status is not None else None,
        )

    def output(self, key: str, stream: str) -> Path | None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        home = self._homes.get(key)
        file = home.file(key, _SUFFIX[stream]) if home and stream in _SUFFIX else None
        return file if file is not None and file.is_file() else None

    async def stop(self, key: str, number: signal.Signals) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        home = self._homes.get(key)
        if home is not None and not home.dead.is_set():
            home.signal(key, number)
        elif key not in self._ends:
            self._stopped.add(key)

    async def forget(self, key: str) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        await self._remove_output(key)
        self._ends.pop(key, None)
        self._tries.pop(key, None)
        self._stopped.discard(key)
        self._wanted.discard(key)
        home = self._homes.pop(key, None)
        if home is not None:
            home.forget(key)
            self._tidy(home)

    async def _remove_output(self, key: str) -> None:
        large = self._exchange.remove(key)
        if large is not None:
            await asyncio.to_thread(self._exchange.remove_large, large)

    def _tidy(self, generation: Generation) -> None:
        """Remove the directory of a generation when nobody needs it any more."""
        if generation.dead.is_set() and not generation.kept:
            self._generations.discard(generation)
            generation.remove()
