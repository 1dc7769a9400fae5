"""Supervises stage processes on a dask worker's host: ends what they started when told, or when the worker goes.

One server per worker, forking a supervisor per stage. Its text is sent to the worker with each stage, so it needs the
standard library alone. A supervisor is the subreaper of all that its stage starts: whatever leaves the process group,
or detaches, stays its descendant. It has a socket to the worker: a number is a signal to pass on, and its end means
that the worker is gone - then everything is killed. The answer is one JSON object when the stage has ended; the
streams are in the directory. What the stage left running may go on for a while longer, then it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import time

_LIBC = ctypes.CDLL(None, use_errno=True)
_SCRIPT = 3  # the descriptor the script comes by, as with the local executor
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
        self.poll = select.poll()
        self.control = b""
        self.abandoned = False
        self.deadline = 0.0

    def run(self) -> dict[str, object]:
        """Run the script and return ``{status, start, end, cpu, memory, sizes, left}``; empty when the worker went."""
        _LIBC.prctl(_SUBREAPER, 1, 0, 0, 0)
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
            self._become_script(writers, environment)
        for descriptor in writers:
            os.close(descriptor)
        for descriptor in (*readers, child_ended, 0):
            os.set_blocking(descriptor, False)
            self.poll.register(descriptor, select.POLLIN)
        end = self._follow(child, child_ended, dict(zip(readers, files, strict=True)))
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
                self._obey()
                if self.abandoned:
                    break
        self.kill_all()

    def _become_script(self, writers: tuple[int, ...], environment: dict[str, str]) -> None:
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            for number in range(1, signal.NSIG):
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(writers[0], 1)
            os.dup2(writers[1], 2)
            script = os.open(os.path.join(self.directory, "script"), os.O_RDONLY)
            if script != _SCRIPT:
                os.dup2(script, _SCRIPT)
            os.set_inheritable(_SCRIPT, True)
            os.closerange(_SCRIPT + 1, 256)
            os.chdir("/")
            os.execve("/bin/sh", ["sh", "-c", f". /proc/self/fd/{_SCRIPT}", "sh"], environment)
        finally:
            os._exit(127)

    def _follow(self, child: int, child_ended: int, streams: dict[int, int]) -> float:
        """Serve worker and stage until the stage has ended and its output is read; return when it ended."""
        end, killed, names = 0.0, False, list(streams)
        while True:
            timeout = None if self.status is None else max(0.0, self.deadline - time.monotonic()) * 1000
            for descriptor, _ in self.poll.poll(timeout):
                if descriptor == 0:
                    self._obey()
                elif descriptor == child_ended:
                    with contextlib.suppress(BlockingIOError):
                        os.read(child_ended, 4096)
                elif not self._copy(descriptor, streams[descriptor], names.index(descriptor)):
                    self.poll.unregister(descriptor)
                    del streams[descriptor]
            if self.abandoned:
                self.kill_all()
                return time.time()
            if self._reap(child):
                end, self.deadline = time.time(), time.monotonic() + self.grace
            if self.status is None:
                continue
            if killed or not streams:
                return end
            if time.monotonic() >= self.deadline:
                self.kill_all()  # the next round reads what is left in the pipes
                killed, self.deadline = True, time.monotonic() + 1.0

    def _obey(self) -> None:
        try:
            data = os.read(0, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
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


def supervise(directory: str, limit: int, grace: float) -> None:
    """Run one stage; standard input and output are the socket to the worker."""
    supervisor = Supervisor(directory, limit, grace)
    result = supervisor.run()
    if supervisor.abandoned:
        shutil.rmtree(directory, ignore_errors=True)
        return
    with socket.socket(fileno=os.dup(1)) as worker:
        worker.setblocking(True)
        worker.sendall(json.dumps(result).encode())
        worker.setblocking(False)
        worker.shutdown(socket.SHUT_WR)
    if result["left"]:
        supervisor.clear()


def main() -> None:
    """Serve the worker at standard input: each message has the arguments of a stage and its socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how supervisors end
    line = socket.socket(fileno=0)
    while True:
        message, sockets, _, _ = socket.recv_fds(line, 1 << 16, 1)
        if not message:
            return
        if os.fork() == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()
                os.dup2(sockets[0], 0)
                os.dup2(sockets[0], 1)
                os.close(sockets[0])
                supervise(**json.loads(message))
            finally:
                os._exit(0)
        os.close(sockets[0])


if __name__ == "__main__":
    main()
