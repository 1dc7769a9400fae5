"""What a processing service keeps on disk of what it runs, and the supervisors it started."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.service.processing_fixtures import Process


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)
    return found


def spool(service: Process) -> Path:
    """Return the directory of the local executor."""
    return service.directory / "var" / "processing" / "local"


def supervisors(service: Process) -> list[psutil.Process]:
    """Return the living supervisors of a service, oldest first."""
    found = []
    for journal in sorted(spool(service).glob("g-*/journal")):
        header = journal.read_text().split()
        if len(header) > 4:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(header[3]))
                found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
    return found


def nothing_is_left(service: Process) -> None:
    """Wait for the end of all supervisors of a service that was stopped; its spool is empty then."""
    until(lambda: not supervisors(service))
    left = [path.name for path in (service.directory / "var" / "processing").iterdir()]
    assert set(left) <= {".lock", "local", "logs"}, left
    assert [path.name for path in spool(service).iterdir()] == [".boot"]
