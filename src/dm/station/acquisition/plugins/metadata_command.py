"""Metadata from a station's own program: it gets a file's path and prints what it knows."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

from dm.common.errors import ProcessingError
from dm.station.acquisition.plugins import metadata_values as values

MAX_OUTPUT = 1 << 16


def run(executable: str, path: str, seconds: float) -> dict[str, Any]:
    """Run ``executable <path>`` and return what it printed.

    :param executable: absolute path of the program.
    :param path: the data file, as text by ``os.fsdecode``.
    :param seconds: time limit; the program and what it started are killed then.
    :raises ProcessingError: it cannot be started, fails, takes too long, or prints too much or nothing sensible.
    """
    try:
        process = subprocess.Popen(
            [executable, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ProcessingError(f"Metadata program {executable!r} cannot be started: {error.strerror}.") from None
    try:
        output, complaint = _read(process, executable, seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if process.returncode:
        last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise ProcessingError(f"Metadata program {executable!r} ended with status {process.returncode}: {last[:200]}")
    return parse(output.decode("utf-8", "replace"), executable)


def _read(process: subprocess.Popen[bytes], executable: str, seconds: float) -> tuple[bytes, bytes]:
    """Collect both outputs to their end and wait for the exit, within time and size."""
    deadline = time.monotonic() + seconds
    parts: dict[str, bytes] = {"out": b"", "err": b""}
    late = ProcessingError(f"Metadata program {executable!r} did not finish in {seconds:g} s.")
    with selectors.DefaultSelector() as selector:
        for pipe, name in ((process.stdout, "out"), (process.stderr, "err")):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise late
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 14)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data == "err":
                    parts["err"] = (parts["err"] + chunk)[-4096:]
                else:
                    parts["out"] += chunk
                    if len(parts["out"]) > MAX_OUTPUT:
                        raise ProcessingError(f"Metadata program {executable!r} printed more than {MAX_OUTPUT} bytes.")
    try:
        process.wait(max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise late from None
    return parts["out"], parts["err"]


def parse(output: str, executable: str = "") -> dict[str, Any]:
    """Return the metadata in a program's output: a JSON object, or lines ``key=value`` (values are text).

    :raises ProcessingError: neither.
    """
    stripped = output.strip()
    if stripped.startswith("{"):
        try:
            found = json.loads(stripped)
        except (ValueError, RecursionError) as error:
            raise ProcessingError(f"Metadata program {executable!r} printed broken JSON: {error}.") from None
    else:
        found = {}
        for line in filter(None, (line.strip() for line in stripped.splitlines())):
            name, equals, value = line.partition("=")
            if not equals or not name.strip():
                raise ProcessingError(f"Metadata program {executable!r} printed {line[:80]!r}, which is not key=value.")
            found[name.strip()] = value.strip()
    result: dict[str, Any] = values.clean(found)
    return result
