"""F-30: the n-th system call of the copy path fails - in the transport, or while storage verifies and publishes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.bench import Bench, Service, fill, settings
from tests.faults.injection import hits, injected
from tests.faults.invariant import Task, check
from tests.service.acquisition_fixtures import until

# What each service does to files: reading, writing, making, dressing, syncing, putting in place. "read" and "write"
# are also how it talks TLS, "fsync" how it gets things onto the disk.
ACQUISITION = ("openat", "readv", "read", "write", "fstat", "close", "newfstatat", "unlinkat")
STORAGE = (
    "openat",
    "read",
    "write",
    "fsync",
    "fchown",
    "fchmod",
    "utimensat",
    "mkdirat",
    "renameat",
    "fstat",
    "unlinkat",
)
ERRORS = {
    "write": ("ENOSPC", "EIO", "EINTR", "EDQUOT"),
    "openat": ("EMFILE", "EIO", "ENOMEM", "EINTR"),
    "fsync": ("EIO", "ENOSPC"),
    "mkdirat": ("ENOSPC", "EIO"),
    "renameat": ("EIO", "ENOSPC"),
}
USUAL = ("EIO", "EINTR", "ENOMEM")
FEW = [
    ("acquisition", "openat", "EMFILE", 3),
    ("storage", "fsync", "EIO", 1),
    ("storage", "fchmod", "EIO", 2),
    ("storage", "renameat", "ENOSPC", 2),
    ("storage", "write", "ENOSPC", 2),
]
SWEEP = [
    (name, call, error, number)
    for name, calls in (("acquisition", ACQUISITION), ("storage", STORAGE))
    for call in calls
    for error in ERRORS.get(call, USUAL)
    for number in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 200)
]


def survives(bench: Bench, source: Path, log: Path, name: str, call: str, error: str, number: int) -> int:
    """Let the n-th call in every thread of a service fail while files come in; return how many failed."""
    service = next(service for service in bench.services if service.name == name)
    experiment = bench.experiment()
    daq = bench.begin("daq", experiment, source)
    with injected(service, f"{call}:error={error}:when={number}", log):
        for part in range(3):
            fill(source / f"d{part}", 4, 2000, seed=number)
        # no request is made meanwhile: answers would be lost, and be waited for
        until(lambda: not service.alive() or bench.arrived(experiment) == 12, 100)
        time.sleep(0.5)  # what comes after: catalog, ledger, staging cleared
    failed = hits(log)
    if not service.alive():  # it may give up, but nothing may be lost by that
        service.start()
    _wait(bench, service, daq["id"])
    bench.patiently(lambda: bench.stop_daq(daq["id"]))
    record = bench.finish("daq", daq["id"])
    assert (record["status"], record["nCompletedFiles"]) == ("done", 12), record
    if call == "unlinkat" and service is bench.storage:  # what it could not remove, it sweeps later, and when it starts
        service.stop()
        service.start()
    check(bench, experiment, source, task=Task("daq", daq["id"]), resent=2, tolerated=lambda _trace: True)
    return failed


def _wait(bench: Bench, service: Service, task: str) -> None:
    """Wait until all files are done, or the service is no more."""
    deadline = time.monotonic() + 100
    while service.alive() and bench.completed("daq", task) != 12:
        if time.monotonic() > deadline:
            rows = [(row["path"], row["state"], row["lastError"]) for row in bench.files("daq", task)]
            raise AssertionError(f"not done: {bench.info('daq', task)}\n{rows}\n{service.tail()}")
        time.sleep(0.05)


@settings(batch_files=4, attempts=50, retry_most_seconds=2)  # the first call of every thread fails
@pytest.mark.parametrize(("name", "call", "error", "number"), FEW)
def test_f30_a_system_call_fails(
    bench: Bench, source: Path, tmp_path: Path, name: str, call: str, error: str, number: int
) -> None:
    assert survives(bench, source, tmp_path / "strace", name, call, error, number) > 0


@settings(batch_files=4, attempts=50, retry_most_seconds=2)  # the first call of every thread fails
@pytest.mark.long
@pytest.mark.parametrize(("name", "call", "error", "number"), SWEEP)
def test_f30_any_system_call_fails(
    bench: Bench, source: Path, tmp_path: Path, name: str, call: str, error: str, number: int
) -> None:
    survives(bench, source, tmp_path / "strace", name, call, error, number)
