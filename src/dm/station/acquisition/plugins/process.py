"""Running a site's own program: an argument list, no shell, a time limit for all it starts, its output capped."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_SLICE = 0.2  # seconds after which it is looked whether the service stops
_CHUNK = 1 << 14
_KILL_AFTER = 2.0
_LAST_CHUNKS = 64


@dataclass
class Ended:
    """How a program ended.

    :param status: exit status, negative for a signal; ``None`` when it was stopped by us.
    :param output: the last bytes of standard output and standard error together.
    :param late: it did not end in time. :param stopped: the service stops.
    """

    status: int | None = None
    output: bytes = b""
    late: bool = False
    stopped: bool = False


@dataclass
class Program:
    """One run of a program.

    :param arguments: the whole vector. :param given: its standard input. :param seconds: it may take.
    :param variables: its environment. :param stop: ends it when set. :param keep: bytes of output that are kept.
    """

    arguments: Sequence[str | bytes]
    given: bytes
    seconds: float
    variables: Mapping[bytes, bytes]
    stop: threading.Event = field(default_factory=threading.Event)
    keep: int = 4096

    def run(self) -> Ended:
        """Run it to its end, and leave nothing of it behind.

        :raises OSError: it cannot be started.
        """
        process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=dict(self.variables),
            start_new_session=True,
        )
        ended = Ended()
        try:
            self._follow(process, ended)
        finally:
            _end(process)
        if not (ended.late or ended.stopped):
            ended.status = process.returncode
        return ended

    def _follow(self, process: subprocess.Popen[bytes], ended: Ended) -> None:
        """Write its input and read its output until both are over and it has ended, or it must be."""
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + self.seconds
        left = memoryview(self.given)
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while selector.get_map() and process.poll() is None:
                if self._over(ended, deadline):
                    return
                for key, _events in selector.select(min(_SLICE, max(0.0, deadline - time.monotonic()))):
                    if key.fileobj is process.stdin:
                        left = _write(process, left)
                        if not left:
                            selector.unregister(process.stdin)
                            _close(process.stdin)
                    elif not _read(process, ended, self.keep):
                        selector.unregister(process.stdout)
            while process.poll() is None:
                if self._over(ended, deadline):
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_SLICE)
        for _chunk in range(_LAST_CHUNKS):  # what it said last; something it left behind may go on saying things
            if not _read(process, ended, self.keep):
                break

    def _over(self, ended: Ended, deadline: float) -> bool:
        ended.late = time.monotonic() >= deadline
        ended.stopped = self.stop.is_set() and not ended.late
        return ended.late or ended.stopped


def _write(process: subprocess.Popen[bytes], left: memoryview) -> memoryview:
    """Write what goes at once; a program that does not read its input loses the rest."""
    assert process.stdin is not None
    try:
        return left[os.write(process.stdin.fileno(), left[:_CHUNK]) :] if left else left
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]


def _read(process: subprocess.Popen[bytes], ended: Ended, keep: int) -> bool:
    """Read what is there; return whether there may be more now or later."""
    assert process.stdout is not None
    try:
        chunk = os.read(process.stdout.fileno(), _CHUNK)
    except BlockingIOError:
        return False
    ended.output = (ended.output + chunk)[-keep:]
    return bool(chunk)


def _close(pipe: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.close()  # type: ignore[attr-defined]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and everything of its session that is left: asked first, then killed."""
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_AFTER)
    _signal(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        _close(pipe)


def _signal(group: int, number: signal.Signals) -> None:
    """Signal a process group; one of another account (``sudo``) passes on what its leader gets."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
