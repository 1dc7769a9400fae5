"""What the running of jobs needs from its surroundings: one object, made once by the engine."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dm.common import setupfile
from dm.station.processing.executors.running import Executors
from dm.station.processing.logs import Logs
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.slots import FairSlots
from dm.station.processing.writer import Writer

T = TypeVar("T")
Event = dict[str, Any]


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


async def give_up(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel what is not done yet, and wait until all have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Context:
    """Surroundings of all jobs.

    :param writer: writes what changes. :param executors: run the processes. :param logs: keep long outputs.
    :param environment: what every stage finds in its environment.
    :param threads: run what blocks.
    :param count: called with ``(counter name, label)`` for the metrics.
    :param events: called with what happened once that is on disk, in the engine's loop: ``{"event": "job", "id",
        "owner", "workflowName", "workflowOwner", "status", "stage", "time"}`` or ``{"event": "file", "id", "owner",
        "stage", "filePath", "status", "exitStatus", "time"}``; times in epoch seconds.
    :param publish: uploads what a stage has made (see :mod:`dm.station.processing.artefacts`); ``None``: it cannot.
    """

    writer: Writer
    executors: Executors
    logs: Logs
    settings: ProcessingSettings
    environment: Mapping[str, str]
    slots: FairSlots
    threads: ThreadPoolExecutor
    count: Callable[[str, str], None]
    events: Callable[[Event], None]
    publish: Callable[..., Any] | None = None

    async def blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something that blocks in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, functools.partial(function, *arguments))
