"""Processes that nobody supervises any more: finding and ending all that a supervisor had started."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from dm.station.processing.executors.supervisor import survey

_PAUSE = 0.05
_PATIENCE = 5.0


@functools.cache
def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kill_rest(variable: str, begun: Mapping[str, tuple[int, int] | None]) -> None:
    """Kill processes, what descends from them, and what carries their mark, until nothing of them is found.

    Looks twice at least: a supervisor may have been killed between the fork of a process and its first program.

    :param variable: the environment variable that says the key. :param begun: key -> pid and start of the process, as
        far as known.
    """
    keys = {key.encode() for key in begun}
    deadline, clean = time.monotonic() + _PATIENCE, 0
    while clean < 2 and time.monotonic() < deadline:
        found = _members(variable.encode(), keys, begun)
        for process in found:
            survey.send(process, signal.SIGKILL)
        clean = 0 if found else clean + 1
        if clean < 2:
            time.sleep(_PAUSE)


def _members(variable: bytes, keys: set[bytes], begun: Mapping[str, tuple[int, int] | None]) -> list[survey.Process]:
    processes = survey.everything()
    first = set(begun.values())
    roots = {
        process.pid
        for process in processes.values()
        if (process.pid, process.start) in first or survey.environment(process.pid, variable) in keys
    }
    return [processes[pid] for pid in roots | survey.tree(processes, roots).keys()]
