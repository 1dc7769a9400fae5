"""What a supervisor knows of one process it started, and of what that left behind."""

from __future__ import annotations

import os
import signal

from dm.station.processing.executors.supervisor.streams import Stream


class Stage:
    """A process that runs, or that has ended while something still holds its output open.

    :param ticks: its start as ``/proc/<pid>/stat`` has it. :param out: :param err: its output.
    """

    __slots__ = (
        "began",
        "deadline",
        "dropping",
        "ended",
        "err",
        "key",
        "killed",
        "out",
        "pid",
        "reason",
        "signals",
        "ticks",
        "usage",
    )

    def __init__(self, key: str, pid: int, ticks: int, began: float, *, out: Stream, err: Stream) -> None:
        self.key = key
        self.pid = pid
        self.ticks = ticks
        self.began = began
        self.out = out
        self.err = err
        self.signals: set[int] = set()  # that it was sent from here
        self.reason = ""
        self.killed = False
        self.dropping = False  # its output goes nowhere any more
        self.ended: tuple[int, float] | None = None  # status as of Ended, and when
        self.usage = (0.0, 0)
        self.deadline = 0.0  # when what it left behind is killed, on the monotonic clock

    def signal_group(self, number: int) -> None:
        """Signal the process and its group. Only while it has not been waited for: its pid then is its own."""
        self.signals.add(number)
        self.killed = self.killed or number == signal.SIGKILL
        if self.ended is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                os.kill(self.pid, number)  # so young that it has no group of its own yet
            except OSError:
                return  # of another account (sudo)

    @property
    def silent(self) -> bool:
        """Whether nobody can write to its output any more."""
        return not self.out.open and not self.err.open

    def pump(self) -> None:
        """Take what is there of its output; a process that writes too much is killed."""
        for stream in (self.out, self.err):
            if stream.open and (reason := stream.pump(keep=not self.dropping)):
                self.dropping = True
                self.reason = reason
                self.signal_group(signal.SIGKILL)


class Memory:
    """Tells whether the kernel has killed for lack of memory lately."""

    _RECENT = 2.0

    def __init__(self) -> None:
        self._file, self._name = _counter()
        self._count = self._read()
        self._looked = 0.0
        self._risen = -self._RECENT

    def look(self, now: float) -> None:
        """Notice the present count, at most once a second: called when processes start."""
        if now - self._looked >= 1.0:
            self.killed(now)

    def killed(self, now: float) -> bool:
        """Whether it has, within the last seconds."""
        self._looked = now
        count = self._read()
        if count > self._count:
            self._count, self._risen = count, now
        return now - self._risen < self._RECENT

    def _read(self) -> int:
        try:
            with open(self._file, "rb") as stream:  # noqa: PTH123 - pathlib is not loaded in the supervisor
                for line in stream:
                    name, _, value = line.partition(b" ")
                    if name == self._name:
                        return int(value)
        except (OSError, ValueError):
            return 0
        return 0


def _counter() -> tuple[str, bytes]:
    """Return the file that counts, best the one of our control group, and the name within."""
    places = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as stream:  # noqa: PTH123
            for line in stream:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if "memory" in controllers.split(","):
                    places.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
                elif not controllers:
                    places.append(f"/sys/fs/cgroup{path}/memory.events")
    except (OSError, ValueError):
        places = []
    for place in places:
        if os.access(place, os.R_OK):
            return place, b"oom_kill"
    return "/proc/vmstat", b"oom_kill"
