"""Pid files that cannot be fooled: a pid alone is reused, a pid with its start time is not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from dm.common.errors import InvalidObjectState

_POLL = 0.02


def start_token(pid: int) -> str | None:
    """Return what tells this process from a later one with the same pid.

    :returns: ``<boot id>:<ticks since boot>``, or ``None`` when no such process runs (a zombie does not run).
    """
    try:
        # The command name in brackets may itself contain blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


class PidFile:
    """A file with a pid in its first line and the process's start token in the second.

    :param path: where it lives; its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, pid: int) -> None:
        """Record a running process, replacing the file in one step."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(f"{pid}\n{start_token(pid) or ''}\n", "ascii")
        temporary.replace(self.path)

    def recorded(self) -> tuple[int, str] | None:
        """Return pid and start token as written, or ``None`` without a readable file."""
        try:
            pid, token, *_ = [*self.path.read_text("ascii", "replace").split("\n"), ""]
            return int(pid), token
        except (OSError, ValueError):
            return None

    def alive(self) -> int | None:
        """Return the pid when the recorded process itself still runs."""
        found = self.recorded()
        return found[0] if found and found[1] and start_token(found[0]) == found[1] else None

    def remove(self) -> None:
        """Delete the file if it is there."""
        self.path.unlink(missing_ok=True)

    def terminate(self, patience: float = 10.0, first: signal.Signals = signal.SIGTERM) -> bool:
        """Stop the recorded process and remove the file.

        :param patience: seconds between the first signal and SIGKILL.
        :returns: ``False`` when it had to be killed.
        :raises InvalidObjectState: it is still there after SIGKILL.
        """
        found = self.recorded()
        pid = self.alive()
        polite = True
        if found and pid is not None:
            _signal(pid, first)
            if not self._gone(patience):
                polite = False
                _signal(pid, signal.SIGKILL)
                if not self._gone(5.0):
                    raise InvalidObjectState(f"Process {pid} of {self.path} survives SIGKILL; look at it by hand.")
        self.reap()
        self.remove()
        return polite

    def reap(self) -> None:
        """Take a dead child of ours out of the process table, where it stays until it is waited for."""
        found = self.recorded()
        if found and self.alive() is None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found[0], os.WNOHANG)

    def _gone(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while self.alive() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
