"""What the running of jobs needs from its surroundings: one object, made once by the engine."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from dm.common.errors import ServiceUnavailable
from dm.station.processing.executors.base import Executor
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.slots import FairSlots
from dm.station.processing.store import Store

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Context:
    """Surroundings of all jobs.

    :param environment: what every stage finds in its environment.
    :param threads: run what blocks. :param database_threads: the same for the database.
    :param count: called with ``(counter name, label)`` for the metrics.
    """

    store: Store
    executor: Executor
    settings: ProcessingSettings
    environment: Mapping[str, str]
    slots: FairSlots
    threads: ThreadPoolExecutor
    database_threads: ThreadPoolExecutor
    count: Callable[[str, str], None]

    async def blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something that blocks in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, functools.partial(function, *arguments))

    async def durably(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a database operation in a thread until the database answers: outages delay writes, they lose none."""
        pause = 0.2
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(
                    self.database_threads, functools.partial(function, *arguments)
                )
            except ServiceUnavailable as error:
                log.warning("%s", error)
                await asyncio.sleep(pause)
                pause = min(10.0, 2 * pause)
