"""F-04, F-05, F-27, F-29: movers killed, services and databases frozen or gone while a DAQ runs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dm.station.processing.api import WorkflowProcApi
from tests.faults.bench import Bench, Service, fill, settings
from tests.faults.invariant import Task, check
from tests.service.acquisition_fixtures import MANAGER, until

SHORT, LONG = 2.0, pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(400)])


def closed(bench: Bench, experiment: dict, source: Path, daq: dict, count: int) -> None:
    """End a DAQ, expect all its files, and the invariant."""
    bench.patiently(lambda: bench.stop_daq(daq["id"]))
    record = bench.finish("daq", daq["id"], 200)
    assert (record["status"], record["nCompletedFiles"]) == ("done", count), record
    check(bench, experiment, source, task=Task("daq", daq["id"]))


def movers(service: Service) -> list[psutil.Process]:
    """Return the rsync processes of a service."""
    found = []
    for process in psutil.Process(service.pid).children(recursive=True):
        try:
            if process.name() == "rsync":
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@settings(transports={"rsync": {}}, batch_files=5)
def test_f04_the_mover_is_killed(bench: Bench, source: Path) -> None:
    experiment = bench.experiment()
    for number in range(30):
        (source / f"f{number}").write_bytes(os.urandom(2 << 20))
    sizes = {path.name: path.stat().st_size for path in source.iterdir()}
    upload = bench.begin("upload", experiment, source)
    killed = 0
    while killed < 4 and bench.arrived(experiment) < 30:
        for mover in movers(bench.acquisition)[:1]:
            try:
                mover.kill()
                killed += 1
            except psutil.NoSuchProcess:
                continue
        for path in bench.data(experiment).iterdir():
            assert path.stat().st_size == sizes[path.name], "a partial file at its final name"
    assert killed == 4
    record = bench.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"]) == ("done", 30), record
    check(bench, experiment, source, task=Task("upload", upload["id"]))


@settings(batch_files=10)
@pytest.mark.parametrize("seconds", [SHORT, LONG])
@pytest.mark.parametrize("transport", ["local", pytest.param("rsync", marks=pytest.mark.long)])
def test_f05_storage_does_not_answer(bench: Bench, source: Path, transport: str, seconds: float) -> None:
    if transport == "rsync":
        bench.reconfigure(transports={transport: {}}, batch_files=10)
    experiment = bench.experiment()
    daq = bench.begin("daq", experiment, source)
    fill(source, 40, prefix="before")
    until(lambda: bench.completed("daq", daq["id"]) >= 10)
    threads = psutil.Process(bench.acquisition.pid).num_threads()
    with bench.storage.frozen():
        fill(source, 40, prefix="during")
        time.sleep(seconds)
        bench.acquisition.status()  # which asks nobody; who may see a DAQ, only the site can say
    until(lambda: bench.completed("daq", daq["id"]) == 80, 100)
    assert psutil.Process(bench.acquisition.pid).num_threads() <= threads + 6  # no more than waits in pools
    closed(bench, experiment, source, daq, 80)


@contextmanager
def a_daq_goes_on(bench: Bench, source: Path) -> Iterator[int]:
    """A DAQ of 60 files ends as it should, whatever is done to its database (its process id is yielded) halfway."""
    experiment = bench.experiment()
    daq = bench.begin("daq", experiment, source)
    fill(source, 30, prefix="before")
    until(lambda: bench.completed("daq", daq["id"]) >= 1)
    pid = bench.mongo.running()
    assert pid is not None
    yield pid
    until(lambda: bench.completed("daq", daq["id"]) == 60, 100)
    closed(bench, experiment, source, daq, 60)


@pytest.mark.parametrize("seconds", [SHORT, LONG])
def test_f27_the_document_database_is_gone(bench: Bench, source: Path, seconds: float) -> None:
    with a_daq_goes_on(bench, source) as database:
        os.kill(database, signal.SIGKILL)
        try:
            fill(source, 30, prefix="during")
            time.sleep(seconds)
        finally:
            bench.mongo.start()


@pytest.mark.parametrize("seconds", [2.0, pytest.param(20.0, marks=pytest.mark.long)])
def test_f27_the_document_database_is_slow(bench: Bench, source: Path, seconds: float) -> None:
    with a_daq_goes_on(bench, source) as database:
        os.kill(database, signal.SIGSTOP)
        try:
            fill(source, 30, prefix="during")
            time.sleep(seconds)
        finally:
            os.kill(database, signal.SIGCONT)


@settings(batch_files=10)
@pytest.mark.parametrize("seconds", [1.0, LONG])
def test_f29_storage_is_down_while_a_daq_runs(bench: Bench, source: Path, seconds: float) -> None:
    experiment = bench.experiment()
    daq = bench.begin("daq", experiment, source)
    fill(source, 40, prefix="before")
    until(lambda: bench.completed("daq", daq["id"]) >= 10)
    bench.storage.kill()
    fill(source, 40, prefix="during")
    until(lambda: bench.url("storage") in bench.info("daq", daq["id"])["errorMessage"], 60)
    time.sleep(seconds)
    record = bench.info("daq", daq["id"])
    assert (record["status"], record["nProcessingErrors"]) == ("running", 0)
    bench.storage.start()
    closed(bench, experiment, source, daq, 80)


@settings(batch_files=4)
def test_f29_processing_is_down_while_jobs_are_submitted(bench: Bench, source: Path) -> None:
    """Each file gets exactly one job, whenever processing dies."""
    bench.processing.start()
    jobs = WorkflowProcApi(*MANAGER, bench.url("processing"), ca_file=bench.certificates / "ca.pem")
    try:
        stages = {"01-SEE": {"command": "/bin/echo $filePath"}}
        jobs.upsertWorkflow({"name": "once", "owner": MANAGER[0], "stages": stages})
        experiment = bench.experiment()
        daq = bench.begin("daq", experiment, source, workflowName="once", workflowOwner=MANAGER[0])
        for number in range(3):
            fill(source, 8, prefix=f"round{number}-")
            until(lambda number=number: bench.arrived(experiment) > 8 * number)
            bench.processing.kill()
            fill(source, 2, prefix=f"down{number}-")
            time.sleep(0.5)
            bench.processing.start()
        closed(bench, experiment, source, daq, 30)
        found = [job["filePath"] for job in jobs.listProcessingJobs(limit=1000, keyList="ALL")]
        wanted = [str(bench.data(experiment, path.name)) for path in source.iterdir()]
        assert sorted(found) == sorted(wanted)
    finally:
        jobs.close()
        bench.processing.stop()
        bench.processing.process = None
