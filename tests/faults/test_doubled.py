"""F-51: two services on one database, two DAQs on one directory, two stations' hosts on one directory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bench import MODULES, Bench, fill
from tests.faults.invariant import Task, check
from tests.service.acquisition_fixtures import until


def test_f51_a_second_service_refuses(bench: Bench, source: Path) -> None:
    experiment = bench.experiment()
    daq = bench.begin("daq", experiment, source)
    fill(source, 10)
    program = f"import sys; from {MODULES['acquisition']} import main; sys.exit(main())"
    second = subprocess.run(
        [sys.executable, "-c", program, "--config", str(bench.config)], capture_output=True, timeout=100, check=False
    )
    assert second.returncode == 4
    assert b"Another acquisition service" in second.stderr
    assert b"Traceback" not in second.stderr
    bench.stop_daq(daq["id"])
    assert bench.finish("daq", daq["id"])["nCompletedFiles"] == 10
    check(bench, experiment, source, task=Task("daq", daq["id"]))


def test_f51_one_directory_is_one_daq(bench: Bench, source: Path) -> None:
    """Asked for twenty times at once, the DAQ runs once; an upload of the same directory shares the work."""
    experiment = bench.experiment()
    fill(source, 40)
    found: list[str] = []
    starts = [
        threading.Thread(
            target=lambda: found.append(bench.begin("daq", experiment, source, processExistingFiles=True)["id"])
        )
        for _ in range(20)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(set(found)) == 1
    upload = bench.begin("upload", experiment, source)
    fill(source, 40, prefix="later")
    assert bench.finish("upload", upload["id"])["status"] == "done"
    until(lambda: bench.arrived(experiment) == 80)
    bench.stop_daq(found[0])
    assert bench.finish("daq", found[0])["status"] == "done"
    # both may send a file, storage publishes it once: equal bytes are "unchanged"
    check(bench, experiment, source, task=Task("daq", found[0]))


def test_f51_two_experiments_from_one_directory(bench: Bench, source: Path) -> None:
    experiments = [bench.experiment(), bench.experiment()]
    daqs = [bench.begin("daq", experiment, source) for experiment in experiments]
    fill(source, 60)
    for experiment, daq in zip(experiments, daqs, strict=True):
        bench.stop_daq(daq["id"])
        record = bench.finish("daq", daq["id"])
        assert (record["status"], record["nCompletedFiles"]) == ("done", 60), record
        check(bench, experiment, source, task=Task("daq", daq["id"]))


@pytest.fixture
def other_host(bench: Bench, tmp_path: Path) -> Iterator[Bench]:
    """A second acquisition service with a database of its own, on the same site and catalog."""
    other = bench.sibling(tmp_path / "other")
    try:
        yield other
    finally:
        other.acquisition.stop()
        for client in other.clients.values():
            client.close()


def test_f51_two_hosts_watch_one_directory(bench: Bench, other_host: Bench, source: Path) -> None:
    experiment = bench.experiment()
    fill(source, 50)
    daqs = [one.begin("daq", experiment, source, processExistingFiles=True) for one in (bench, other_host)]
    fill(source, 50, prefix="later")
    for one, daq in zip((bench, other_host), daqs, strict=True):
        one.stop_daq(daq["id"])
        record = one.finish("daq", daq["id"])
        assert (record["status"], record["nCompletedFiles"]) == ("done", 100), record
    check(bench, experiment, source, task=Task("daq", daqs[0]["id"]))
