"""Reads metadata in a process of its own: the libraries that parse data files can crash or hang on damaged ones.

Run as a program it answers one JSON line per JSON line: ``{"path": ...}`` gives the metadata. :class:`Reader` is the
other end: it starts the program, gives each file a time limit, and starts it afresh when a file has killed it.
"""

from __future__ import annotations

import json
import mimetypes
import os
import resource
import selectors
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from dm.common.errors import ProcessingError

_MEMORY = 4 << 30
_HEAD = 1 << 12


def extract(path: str) -> dict[str, Any]:
    """Return the metadata inside one file; at least ``mimeType``. Damaged files may crash or hang the process.

    :param path: text by ``os.fsdecode``.
    :returns: flat, JSON-able, bounded; ``metadataError`` is a sentence when the file could not be understood.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return {"metadataError": "Not a regular file."}
        # Opened once, by bytes-safe name; the libraries then get a name all of them can take.
        opened = f"/proc/self/fd/{descriptor}"
        head = os.pread(descriptor, _HEAD, 0)
        return _by_content(path, opened, head)
    finally:
        os.close(descriptor)


def _by_content(path: str, opened: str, head: bytes) -> dict[str, Any]:
    import h5py

    from dm.station.acquisition.plugins import metadata_hdf5, metadata_spec

    kind = ""
    try:
        # Not by the first bytes: a user block (XMP, say) may come before the signature.
        if h5py.is_hdf5(opened):
            kind = "application/x-hdf5"
            return {"mimeType": kind} | metadata_hdf5.extract(opened)
        if metadata_spec.is_spec(head):
            kind = "text/x-spec"
            return {"mimeType": kind} | metadata_spec.extract(opened)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return {"mimeType": kind, "metadataError": f"The file cannot be read: {reason}."}
    guessed = mimetypes.guess_type(path, strict=False)[0]
    text = bool(head) and b"\0" not in head
    return {"mimeType": guessed or ("text/plain" if text else "application/octet-stream")}


def main() -> None:
    """Answer requests on standard input until it closes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Libraries that print to standard output must not get between us and the caller.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = extract(json.loads(line)["path"])
        except Exception as error:
            answer = {"metadataError": f"The file cannot be read: {' '.join(str(error).split())[:200]}."}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Reader:
    """A reading process, started when first needed. Safe to use from several threads; they take turns.

    :param seconds: time limit per file.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def extract(self, path: str) -> dict[str, Any]:
        """Return the metadata of one file (see :func:`extract`); a file that kills the process gets a note instead.

        :raises ProcessingError: the process cannot be started at all.
        """
        with self._lock:
            for attempt in (1, 2):
                process = self._started()
                try:
                    return self._ask(process, path)
                except TimeoutError:
                    self._stop()
                    return {"metadataError": f"The file could not be read within {self.seconds:g} s."}
                except (OSError, ValueError):
                    # It may have died before, for reasons that are not this file's: give the file a fresh one.
                    self._stop()
                    if attempt == 2:
                        break
            return {"metadataError": "The file makes the reading library crash; it is probably damaged."}

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
                    [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, env=environment, cwd="/", start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise ProcessingError(f"The metadata reader cannot be started: {error.strerror}.") from error
            self._rest = b""
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], path: str) -> dict[str, Any]:
        if process.stdin is None or process.stdout is None:
            raise ValueError("no pipes")
        process.stdin.write(json.dumps({"path": path}).encode() + b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + self.seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise ValueError("reader died")
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
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


if __name__ == "__main__":
    main()
