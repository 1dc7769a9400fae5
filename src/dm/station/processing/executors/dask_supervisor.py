"""Supervises one stage process on a dask worker's host: a program of its own that ends what it started when told.

Its text is sent to the worker with each stage, so it needs the standard library alone. It is the subreaper of all that
the stage starts: whatever leaves the process group, or detaches, stays its descendant. Standard input is the line to
the worker: a number is a signal to pass on, and its end means that the worker is gone - then everything is killed.
Standard output gets one JSON object when the stage has ended, and is closed; the streams are in the directory. What the
stage left running may go on for a while longer, then it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import selectors
import shutil
import signal
import sys
import time

_SUBREAPER, _DEATH_SIGNAL = 36, 1
_ROUNDS = 200  # of killing: what forks while it is killed is met again


class Supervisor:
    """One stage process.

    :param directory: holds the files ``script`` and ``environment``; gets ``stdout`` and ``stderr``.
    :param limit: bytes kept of each.
    :param grace: seconds that what a stage leaves behind may go on, its output being kept.
    """

    def __init__(self, directory: str, limit: int, grace: float) -> None:
        self.directory = directory
        self.limit = limit
        self.grace = grace
        self.status: int | None = None
        self.sizes = [0, 0]
        self.selector = selectors.DefaultSelector()
        self.control = b""
        self.abandoned = False
        self.deadline = 0.0

    def run(self) -> dict[str, object]:
        """Run the script and return ``{status, start, end, cpu, memory, sizes}``; empty when the worker went."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        child_ended, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(child_ended, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        readers, writers = zip(os.pipe(), os.pipe(), strict=True)
        files = [
            os.open(os.path.join(self.directory, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            for name in ("stdout", "stderr")
        ]
        with open(os.path.join(self.directory, "environment")) as stream:
            environment = json.load(stream)
        start = time.time()
        child = os.fork()
        if child == 0:
            self._become_script(libc, writers, environment)
        for descriptor in writers:
            os.close(descriptor)
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ, -1)
        self.selector.register(child_ended, selectors.EVENT_READ, -2)
        for index, descriptor in enumerate(readers):
            os.set_blocking(descriptor, False)
            self.selector.register(descriptor, selectors.EVENT_READ, index)
        end = self._follow(child, files)
        if self.abandoned:
            return {}
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "status": self.status,
            "start": start,
            "end": end,
            "cpu": usage.ru_utime + usage.ru_stime,
            "memory": usage.ru_maxrss * 1024,
            "sizes": self.sizes,
            "left": bool(self.signal_all(0)),
        }

    def clear(self) -> None:
        """Kill what the stage left behind when its time is over, or the worker is gone."""
        control = select.poll()
        control.register(0, select.POLLIN)
        while self.signal_all(0) and time.monotonic() < self.deadline:
            if control.poll(200):
                self._obey(0)
                if self.abandoned:
                    break
        self.kill_all()

    def _become_script(self, libc: ctypes.CDLL, writers: tuple[int, ...], environment: dict[str, str]) -> None:
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            libc.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            for number in range(1, signal.NSIG):
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(writers[0], 1)
            os.dup2(writers[1], 2)
            os.closerange(3, 256)
            os.chdir(self.directory)
            os.execve("/bin/sh", ["/bin/sh", "script"], environment)
        finally:
            os._exit(127)

    def _follow(self, child: int, files: list[int]) -> float:
        end, deadline, streams, killed = 0.0, None, 2, False
        while True:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            for key, _ in self.selector.select(timeout):
                if key.data == -1:
                    self._obey(key.fd)
                elif key.data == -2:
                    with contextlib.suppress(BlockingIOError):
                        os.read(key.fd, 4096)
                elif not self._copy(key.fd, files[key.data], key.data):
                    self.selector.unregister(key.fd)
                    streams -= 1
            if self.abandoned:
                self.kill_all()
                return time.time()
            if self._reap(child):
                end, deadline = time.time(), time.monotonic() + self.grace
                self.deadline = deadline
            if self.status is not None and (streams == 0 or killed):
                return end
            if deadline is not None and time.monotonic() >= deadline:
                self.kill_all()  # the next round reads what is left in the pipes
                killed, deadline = True, time.monotonic() + 1.0

    def _obey(self, descriptor: int) -> None:
        data = os.read(descriptor, 4096)
        if not data:
            self.abandoned = True
            return
        *lines, self.control = (self.control + data).split(b"\n")
        for line in lines:
            if int(line) == signal.SIGKILL:
                self.kill_all()
            else:
                self.signal_all(int(line))

    def _copy(self, source: int, target: int, index: int) -> bool:
        try:
            data = os.read(source, 1 << 16)
        except BlockingIOError:
            return True
        keep = data[: max(0, self.limit - self.sizes[index])]
        self.sizes[index] += len(data)
        with contextlib.suppress(OSError):  # a full disk: read on, so that the stage is not blocked
            while keep:
                keep = keep[os.write(target, keep) :]
        return bool(data)

    def _reap(self, child: int) -> bool:
        """Collect what has ended; say whether the script just did."""
        ended = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if pid == child:
                self.status = os.waitstatus_to_exitcode(status)
                ended = True

    def kill_all(self) -> None:
        """Kill every descendant, also what is started meanwhile."""
        for _ in range(_ROUNDS):
            if not self.signal_all(signal.SIGKILL):
                return
            time.sleep(0.005)

    def signal_all(self, number: int) -> int:
        """Signal every descendant; return how many there were, ended ones not counted."""
        parents: dict[int, list[int]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stream:
                    fields = stream.read().rpartition(b")")[2].split()
                    if fields[0] not in b"ZX":
                        parents.setdefault(int(fields[1]), []).append(int(name))
        found, front = [], [os.getpid()]
        while front:
            front = [child for parent in front for child in parents.get(parent, ())]
            found += front
        reached = 0
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
                reached += 1
        return reached


def main(arguments: list[str]) -> None:
    """Run ``DIRECTORY LIMIT GRACE``."""
    directory = arguments[0]
    supervisor = Supervisor(directory, int(arguments[1]), float(arguments[2]))
    result = supervisor.run()
    if supervisor.abandoned:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        os.write(1, json.dumps(result).encode())
        os.close(1)
        if result["left"]:
            supervisor.clear()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
