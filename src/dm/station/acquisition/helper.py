"""A process that does what might crash or hang: it answers JSON lines, and is started anew when a question kills it."""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dm.common.errors import ProcessingError

_MEMORY = 4 << 30

Json = dict[str, Any]


def answer_forever(answer: Callable[[Json], Json]) -> None:
    """Be such a process: answer the questions on standard input until it closes.

    An exception of ``answer`` is answered as ``{"error": text}``.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Libraries that print to standard output must not get between us and the caller.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception as error:
            found = {"error": " ".join(str(error).split())[:200] or type(error).__name__}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


class Helper:
    """The other end, which starts the process when first needed. Safe to use from several threads; they take turns.

    :param module: run by ``python -m``; calls :func:`answer_forever`.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def ask(self, question: Json, seconds: float) -> Json:
        """Return the answer to a question; one that kills the process is tried twice.

        :raises TimeoutError: no answer within that time; the process is killed.
        :raises OSError, ValueError: the process died, twice.
        :raises ProcessingError: it cannot be started at all.
        """
        with self._lock:
            try:
                return self._ask(self._started(), question, seconds)
            except TimeoutError:
                self._stop()
                raise
            except (OSError, ValueError):
                # It may have died before, for reasons that are not this question's: it gets a fresh one.
                self._stop()
            try:
                return self._ask(self._started(), question, seconds)
            except (OSError, ValueError):  # TimeoutError is an OSError
                self._stop()
                raise

    def kill(self) -> None:
        """Kill the process, also while it is being asked."""
        process = self._process
        if process is not None:
            with suppress(OSError):
                process.kill()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            environment = os.environ | {"HDF5_USE_FILE_LOCKING": "FALSE", "OMP_NUM_THREADS": "1"}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", self._module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, env=environment, cwd="/", start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise ProcessingError(f"The process of {self._module} cannot be started: {error.strerror}.") from error
            self._rest = b""
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], question: Json, seconds: float) -> Json:
        if process.stdin is None or process.stdout is None:
            raise ValueError("no pipes")
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise ValueError("the process died")
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Json = json.loads(line)
        return answer

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
