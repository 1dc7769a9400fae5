"""An executor on a real dask scheduler, used in an event loop of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil

from dm.common.accounts import Account
from dm.station.processing.executors.base import Outcome, Task
from dm.station.processing.executors.dask import Dask
from dm.station.processing.executors.dask_settings import DaskSettings

PATIENCE = 60.0
_numbers = itertools.count(1)


def in_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine to its end."""
    asyncio.run(asyncio.wait_for(work, PATIENCE))


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until something is so and return what it returned."""
    deadline = time.monotonic() + PATIENCE / 2
    while not (found := condition()):
        assert time.monotonic() < deadline, what or "not in time"
        await asyncio.sleep(0.01)
    return found


class Kept:
    """An executor that stays open between tests. :param use: the executor."""

    def __init__(self, runner: asyncio.Runner, use: Use) -> None:
        self._runner = runner
        self.use = use

    def run(self, work: Callable[[Use], Coroutine[Any, Any, None]]) -> None:
        """Run a test's coroutine to its end."""
        self._runner.run(asyncio.wait_for(work(self.use), PATIENCE))


@contextlib.contextmanager
def kept_open(spool: Path, settings: DaskSettings, account: Account) -> Iterator[Kept]:
    """Open an executor for several tests."""
    with asyncio.Runner() as runner:
        manager = opened(spool, settings, account)
        use = runner.run(manager.__aenter__())
        try:
            yield Kept(runner, use)
        finally:
            runner.run(manager.__aexit__(None, None, None))


class Use:
    """An open executor with short ways to use it. :param executor: the executor. :param account: of the workers."""

    def __init__(self, executor: Dask, account: Account) -> None:
        self.executor = executor
        self.account = account

    async def start(self, script: str, key: str = "") -> str:
        """Start a script and return its key."""
        key = key or f"stage-{next(_numbers)}"
        await self.executor.start(Task(key, script.encode(), self.account))
        return key

    async def run(self, script: str) -> Outcome:
        """Run a script and return its outcome; its files stay until the executor is opened again."""
        return await self.executor.wait(await self.start(script))


@contextlib.asynccontextmanager
async def opened(spool: Path, settings: DaskSettings, account: Account, *keys: str) -> AsyncIterator[Use]:
    """Open an executor on a spool, with the keys of an earlier one."""
    executor = Dask(spool, settings)
    await executor.open(keys)
    try:
        yield Use(executor, account)
    finally:
        await executor.close()


def text(path: Path | None) -> str:
    """Return what a stream's file holds; a missing one is empty."""
    return path.read_text() if path is not None and path.exists() else ""


def marked(key: str) -> list[psutil.Process]:
    """Return the processes of a stage, wherever they went."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if f"DM_PROCESSING_KEY={key}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


async def no_process_of(key: str) -> None:
    """Wait until nothing of a stage runs."""
    await until(lambda: not marked(key), f"processes of {key} are left")


def open_to(directory: Path, account: Account) -> Path:
    """Make a directory that stages may write to."""
    directory.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        import shutil

        shutil.chown(directory, account.name)
    return directory


async def all_of(*work: Awaitable[Outcome]) -> list[Outcome]:
    """Wait for several outcomes."""
    return list(await asyncio.gather(*work))
