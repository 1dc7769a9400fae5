"""F-01, F-02, F-03: the acquisition and storage services killed and stopped at any instant."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.faults.bench import Bench, fill, quiet, settings
from tests.faults.injection import hits, injected
from tests.faults.invariant import Task, check
from tests.service.acquisition_fixtures import until

FILES = 5000


def kill_loop(bench: Bench, source: Path, seed: int, kills: int) -> None:
    """Kill the acquisition service again and again, spread over one upload, then expect nothing to show of it."""
    print(f"seed {seed}, {kills} kills")
    chance = random.Random(seed)
    fill(source, FILES, 400, seed=seed)
    experiment = bench.experiment()
    marks = sorted(chance.sample(range(FILES * 9 // 10), kills))
    upload = bench.begin("upload", experiment, source)
    for mark in marks:
        until(lambda mark=mark: bench.arrived(experiment) >= mark, 120)
        time.sleep(chance.random() * 0.3)
        bench.acquisition.kill()
        bench.acquisition.start(wait=chance.random() < 0.8)
    bench.acquisition.wait_until_up()
    record = bench.finish("upload", upload["id"], 300)
    assert (record["status"], record["nCompletedFiles"]) == ("done", FILES), record
    check(bench, experiment, source, task=Task("upload", upload["id"]))


@settings(batch_files=50, batches_per_task=2)
@pytest.mark.timeout(400)
def test_f01_killed_5_times_during_an_upload_of_5000_files(bench: Bench, source: Path) -> None:
    kill_loop(bench, source, seed=int(os.environ.get("DM_TEST_SEED", "1")), kills=5)


@settings(batch_files=50, batches_per_task=2)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_f01_killed_50_times_during_an_upload_of_5000_files(bench: Bench, source: Path) -> None:
    kill_loop(bench, source, seed=int(os.environ.get("DM_TEST_SEED", str(time.time_ns() % 10_000))), kills=50)


# F-02: every write to a database or another service is a window in which the process may die. The number says which.
WINDOWS = [
    ("acquisition", "sendto", 3),
    ("acquisition", "write", 3),
    ("storage", "fsync", 2),
    ("storage", "renameat", 2),
]
MORE_WINDOWS = [("acquisition", call, number) for call in ("sendto", "write") for number in range(1, 13)]
MORE_WINDOWS += [("storage", call, number) for call in ("fsync", "renameat", "sendto") for number in range(1, 8)]
MORE_WINDOWS += [("catalog", "sendto", number) for number in range(1, 5)]


def killed_in_window(bench: Bench, source: Path, log: Path, name: str, call: str, number: int) -> bool:
    """Let a service die at its n-th call (in any thread) while files come in; return whether it did."""
    service = next(service for service in bench.services if service.name == name)
    experiment = bench.experiment()
    daq = bench.begin("daq", experiment, source)
    with injected(service, f"{call}:signal=KILL:when={number}", log):
        fill(source, 12, 500)
        until(lambda: not service.alive() or bench.completed("daq", daq["id"]) == 12)
    died = hits(log) > 0
    if died:
        service.kill()
        service.start()
    bench.patiently(lambda: bench.stop_daq(daq["id"]))
    record = bench.finish("daq", daq["id"])
    assert (record["status"], record["nCompletedFiles"]) == ("done", 12), record
    check(bench, experiment, source, task=Task("daq", daq["id"]))
    return died


@settings(batch_files=4)
@pytest.mark.parametrize(("name", "call", "number"), WINDOWS)
def test_f02_killed_between_two_writes(
    bench: Bench, source: Path, tmp_path: Path, name: str, call: str, number: int
) -> None:
    assert killed_in_window(bench, source, tmp_path / "strace", name, call, number)


@settings(batch_files=4)
@pytest.mark.long
@pytest.mark.parametrize(("name", "call", "number"), MORE_WINDOWS)
def test_f02_killed_between_any_two_writes(
    bench: Bench, source: Path, tmp_path: Path, name: str, call: str, number: int
) -> None:
    killed_in_window(bench, source, tmp_path / "strace", name, call, number)


LATER = [pytest.param(number, marks=pytest.mark.long) for number in range(1, 8) if number != 3]


@pytest.mark.parametrize("number", [3, *LATER])
def test_f02_killed_while_a_daq_is_started(bench: Bench, source: Path, tmp_path: Path, number: int) -> None:
    """Started again by its user there is one DAQ, not two, and no claim of a dead one is in its way."""
    experiment = bench.experiment()
    with injected(bench.acquisition, f"sendto:signal=KILL:when={number}", tmp_path / "strace"):
        quiet(lambda: bench.begin("daq", experiment, source))
        fill(source, 12, 500)
        until(lambda: not bench.acquisition.alive() or bench.running(experiment))
    if hits(tmp_path / "strace"):
        bench.acquisition.kill()
        bench.acquisition.start()
    daq = bench.begin("daq", experiment, source, processExistingFiles=True)
    assert bench.running(experiment) == [daq["id"]]
    bench.stop_daq(daq["id"])
    assert bench.finish("daq", daq["id"])["status"] == "done"
    fresh = bench.begin("upload", experiment, source)  # whether the first start counted decides what the DAQ took
    assert bench.finish("upload", fresh["id"])["status"] == "done"
    check(bench, experiment, source, task=Task("upload", fresh["id"]))


@pytest.mark.parametrize("name", ["acquisition", "storage", pytest.param("catalog", marks=pytest.mark.long)])
def test_f03_stopped_in_the_middle(bench: Bench, source: Path, name: str) -> None:
    """Exit status 0; what was begun is finished or rolled back, and taken up after the start."""
    service = next(service for service in bench.services if service.name == name)
    experiment = bench.experiment()
    fill(source, 150, 3000)
    with (source / "large").open("wb") as stream:
        stream.truncate(100 << 20)
    upload = bench.begin("upload", experiment, source)
    until(lambda: bench.arrived(experiment) > 0)
    assert service.stop() == 0
    service.start()
    record = bench.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"]) == ("done", 151), record
    check(bench, experiment, source, task=Task("upload", upload["id"]))
