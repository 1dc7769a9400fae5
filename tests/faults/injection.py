"""Faults in system calls: ``strace`` attached to a running service, or a library loaded before libc."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.bench import Service

_ATTACH_SECONDS = 60


@contextmanager
def injected(service: Service, rule: str, log: Path) -> Iterator[None]:
    """Trace a running service with a fault: its n-th system call of a kind (in each thread) fails or kills it.

    :param rule: as in ``strace -e inject=RULE``, e.g. ``write:error=ENOSPC:when=3`` or ``rename:signal=KILL:when=1``.
    :param log: what was injected is written there.
    """
    calls = rule.partition(":")[0]
    command = ["strace", "-f", "-p", str(service.pid), "-o", str(log), "-e", f"trace={calls}", "-e", f"inject={rule}"]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    try:
        _wait_attached(tracer, service)
        yield
    finally:
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)  # it lets the service go
        tracer.wait(60)
        tracer.stderr.close()


def _wait_attached(tracer: subprocess.Popen[str], service: Service) -> None:
    tasks = Path(f"/proc/{service.pid}/task")
    deadline = time.monotonic() + _ATTACH_SECONDS
    while time.monotonic() < deadline:
        assert tracer.poll() is None, f"strace ended: {tracer.stderr and tracer.stderr.read()}"
        traced = [
            line.split()[1] != "0"
            for task in tasks.iterdir()
            for line in (task / "status").read_text().splitlines()
            if line.startswith("TracerPid:")
        ]
        if traced and all(traced):
            return
        time.sleep(0.01)
    raise AssertionError("strace did not attach")


def hits(log: Path) -> int:
    """Return how many faults strace injected."""
    return sum("(INJECTED)" in line or "+++ killed by SIGKILL" in line for line in log.read_text().splitlines())


def compiled(code: str, directory: Path, name: str) -> Path:
    """Compile C code into a library for ``LD_PRELOAD`` and return it."""
    source, library = directory / f"{name}.c", directory / f"{name}.so"
    source.write_text(code)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library
