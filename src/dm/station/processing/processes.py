"""Processes by identity: boot, pid and start time, so that a reused pid is never mistaken for ours."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.2
_STATE, _START = 0, 19  # fields of /proc/PID/stat behind the command name


@functools.cache
def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Identity:
    """One process for ever: pids are reused, boot + pid + start time are not."""

    boot: str
    pid: int
    start: str

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """Read a ``<boot id> <line of /proc/PID/stat>`` line; ``None`` when it is not (yet) complete."""
        boot, _, line = text.partition(" ")
        pid, _, rest = line.partition(" ")
        fields = rest.rpartition(")")[2].split()
        if not text.endswith("\n") or not pid.isdigit() or len(fields) <= _START:
            return None
        return cls(boot, int(pid), fields[_START])

    def alive(self) -> bool:
        """Whether the process still runs (a zombie has ended)."""
        if self.boot != boot_id():
            return False
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return False
        return len(fields) > _START and fields[_START] == self.start and fields[_STATE] not in "ZX"

    async def ended(self) -> None:
        """Wait until the process has ended, whoever its parent is."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        except (AttributeError, OSError):  # an old kernel, or no descriptor left
            while self.alive():
                await asyncio.sleep(_POLL_SECONDS)
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.add_reader(descriptor, done.set)
        try:
            if self.alive():
                await done.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process's group, if the process or a descendant in its group is still there."""
        if self.boot == boot_id():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


def has_ended(pid: int) -> bool:
    """Whether a child of ours has ended, collected or not."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def reap(pid: int) -> None:
    """Collect an ended child of ours; does nothing for processes of others."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def signal_marked(variable: str, value: str, number: signal.Signals) -> None:
    """Signal every process whose initial environment has ``variable=value``: also those that left their session."""
    marker = f"{variable}={value}".encode()
    own = os.getpid()
    for place in Path("/proc").iterdir():
        if not place.name.isdigit() or int(place.name) == own:
            continue
        with contextlib.suppress(OSError):
            if marker in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), number)
