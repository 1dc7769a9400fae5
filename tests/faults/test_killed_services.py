"""F-01, F-02, F-03: the acquisition and storage services killed and stopped at any instant."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.faults.bench import Bench, fill
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


@pytest.mark.timeout(400)
def test_f01_killed_5_times_during_an_upload_of_5000_files(bench: Bench, source: Path) -> None:
    bench.reconfigure(batch_files=50, batches_per_task=2)
    kill_loop(bench, source, seed=int(os.environ.get("DM_TEST_SEED", "1")), kills=5)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_f01_killed_50_times_during_an_upload_of_5000_files(bench: Bench, source: Path) -> None:
    bench.reconfigure(batch_files=50, batches_per_task=2)
    kill_loop(bench, source, seed=int(os.environ.get("DM_TEST_SEED", str(time.time_ns() % 10_000))), kills=50)
