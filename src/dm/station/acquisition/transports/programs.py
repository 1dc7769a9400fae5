"""Running the programs that move bytes: no shell, a process group of its own, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

_KILL_AFTER_SECONDS = 3.0


def kept(names: Sequence[str]) -> dict[str, str]:
    """Return the variables of this process's environment that a program may see, with a usable ``PATH``."""
    return {"PATH": os.defpath} | {name: os.environ[name] for name in names if name in os.environ}


@contextmanager
def started(
    arguments: Sequence[str | bytes], environment: Mapping[str, str], stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program in its own session, with pipes, and end it with all it started when the block is left.

    :param environment: all of its environment. :param stderr: a descriptor for its standard error, default a pipe.
    """
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=dict(environment),
        umask=0o077,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group, first politely, and close its pipes."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        try:
            process.wait(_KILL_AFTER_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()
        # what it started may outlive it for a moment
        _signal(process, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
