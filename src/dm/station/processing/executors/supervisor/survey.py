"""A look at all processes of the host: who descends from whom, and signals that cannot meet the wrong one."""

from __future__ import annotations

import os
import signal


class Process:
    """One line of ``/proc/<pid>/stat``. :param start: clock ticks since boot: with the pid it names a process."""

    __slots__ = ("group", "parent", "pid", "session", "start")

    def __init__(self, pid: int, parent: int, group: int, session: int, start: int) -> None:
        self.pid = pid
        self.parent = parent
        self.group = group
        self.session = session
        self.start = start


def look(pid: int) -> Process | None:
    """Return a process, or ``None`` when there is none of that pid or it has ended (a zombie has)."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(descriptor, 4096).rpartition(b")")[2].split()
        finally:
            os.close(descriptor)
        if fields[0] in b"ZX":
            return None
        return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def everything() -> dict[int, Process]:
    """Return all processes by pid."""
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib is not loaded in the supervisor
        if name.isdigit() and (process := look(int(name))) is not None:
            found[process.pid] = process
    return found


def tree(processes: dict[int, Process], roots: set[int]) -> dict[int, int]:
    """Return the descendants of some processes, each with the nearest of the roots above it; roots are not included."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: dict[int, int] = {}
    waiting = [(root, root) for root in roots]
    while waiting:
        above, root = waiting.pop()
        for pid in children.get(above, ()):
            if pid not in roots and pid not in found:
                found[pid] = root
                waiting.append((pid, root))
    return found


def environment(pid: int, name: bytes) -> bytes | None:
    """Return a variable of a process's initial environment, where it can be read."""
    try:
        descriptor = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces = []
            while piece := os.read(descriptor, 1 << 16):
                pieces.append(piece)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    for line in b"".join(pieces).split(b"\0"):
        if line.startswith(name + b"="):
            return line[len(name) + 1 :]
    return None


def send(process: Process, number: int) -> bool:
    """Signal exactly this process. :returns: whether it was there and may be signalled."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = look(process.pid)
        if now is None or now.start != process.start:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
