"""A processing service whose stages run on dask: service, workers and scheduler are killed; the policy decides."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.embedded import free_port
from tests.faults.processing_spool import until
from tests.service import storage_fixtures as storage
from tests.service.dask_fixtures import marked, open_to
from tests.service.dask_server import DaskServer, interpreter, stage_account
from tests.service.processing_fixtures import Process, Running

JOBS = 12


@pytest.fixture
def server(open_directory: Path, run_directory: Path) -> Iterator[DaskServer]:
    account = stage_account()
    running = DaskServer(open_directory / "work", account, interpreter(run_directory, account))
    try:
        running.start("w0")
        yield running
    finally:
        running.stop()


@pytest.fixture
def work(open_directory: Path, server: DaskServer) -> Path:
    return open_to(open_directory / "marks", server.account)


@pytest.fixture
def started(
    storage_site: storage.Site, server: DaskServer, mongo_url: str, certificates: Path, tmp_path: Path
) -> Iterator[tuple[Process, Running]]:
    dask = server.settings(patience=30).model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    service = Process(
        storage_site, mongo_url, certificates, tmp_path / "p", free_port(), executor="dask", executors={"dask": dask},
        concurrent_stages=JOBS + 4,
    )  # fmt: skip
    service.start()
    running = Running(storage_site, service.url)
    yield service, running
    running.close()
    if service.process is not None and service.process.poll() is None:
        service.stop()


def children(job: Any) -> list[dict[str, Any]]:
    """Return the process records of a job's stages, in their order."""
    return [child for stage in job["workflow"]["stages"].values() for child in stage["childProcesses"].values()]


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_a_worker_dies_while_the_service_is_away(
    started: tuple[Process, Running], server: DaskServer, work: Path
) -> None:
    service, running = started
    before, after = {"command": f"echo before-$n >>{work}/log"}, {"command": f"echo after-$n >>{work}/log; echo fine"}
    lost = {"command": f"echo $n $DM_OUTPUT_FILE >>{work}/ran; while [ ! -e {work}/go ]; do sleep 0.05; done; exit 0"}
    jobs = {}
    for policy in ("fail", "rerun"):
        running.workflow({"1": before, "2": {**lost, "onLost": policy}, "3": after}, name=policy)
        jobs[policy] = running.start(policy, n=policy)
    until(lambda: len(lines(work / "ran")) == 2)
    service.kill()
    server.kill("w0")
    server.add("w1")
    service.start()
    until(lambda: len(lines(work / "ran")) == 3)
    (work / "go").touch()

    failed = running.finished(jobs["fail"])
    assert failed["status"] == "failed" and "The dask worker w0 (tcp://" in failed["errorMessage"]
    first, second = children(failed)
    assert first["exitStatus"] == 0 and (second["status"], second["lost"], second["exitStatus"]) == ("failed", True, -1)

    done = running.finished(jobs["rerun"])
    assert done["status"] == "done", done.data
    assert [child.get("lost", False) for child in children(done)] == [False, True, False, False]
    assert children(done)[-1]["stdOut"] == "fine\n"
    where = [(line.split()[0], "/w0/" in line) for line in lines(work / "ran")]
    assert sorted(where[:2]) == [("fail", True), ("rerun", True)] and where[2:] == [("rerun", False)]
    assert sorted(lines(work / "log")) == ["after-rerun", "before-fail", "before-rerun"]


@pytest.mark.long
def test_kill_9_of_the_service_loses_nothing(started: tuple[Process, Running], server: DaskServer, work: Path) -> None:
    service, running = started
    chance = random.Random(5)
    stages = {
        str(number): {
            "command": f"echo {number}-$n >>{work}/log; sleep $pause; echo V: $n; seq 3000",
            "outputVariableRegexList": ["V: (?P<value>.*)"],
            "runIf": "$n == $n" if number == 1 else "$value == $n",
        }
        for number in range(1, 5)
    }
    server.add("w1")
    running.workflow(stages)
    jobs = [running.start(n=n, pause=round(chance.uniform(0.0, 0.6), 2)) for n in range(JOBS)]
    for _ in range(8):
        time.sleep(chance.uniform(0.0, 0.8))
        service.kill()
        time.sleep(chance.choice([0.0, 0.3]))
        service.start()
    for n, job in enumerate(jobs):
        record = running.finished(job)
        assert record["status"] == "done", (n, record.data)
        assert len(children(record)) == 4 and not any(child.get("lost") for child in children(record))
        assert all(child["stdOut"].startswith(f"V: {n}\n1\n2\n") for child in children(record))
    assert Counter(lines(work / "log")) == Counter(f"{number}-{n}" for number in range(1, 5) for n in range(JOBS))
    assert service.stop() == 0
    left = [path.name for path in (service.directory / "var" / "processing" / "dask").iterdir()]
    assert not [name for name in left if not name.startswith(".")]


@pytest.mark.long
def test_a_scheduler_that_dies_is_told_in_the_record(
    started: tuple[Process, Running], server: DaskServer, work: Path
) -> None:
    _, running = started
    command = f"echo $n >>{work}/ran; while [ ! -e {work}/go ]; do sleep 0.05; done"
    running.workflow({"1": {"command": command, "onLost": "rerun"}})
    job = running.start(n="n")
    until(lambda: lines(work / "ran"))
    key = f"{job['id']}.0"
    server.kill_scheduler()
    time.sleep(1)
    server.start("w1")
    until(lambda: len(lines(work / "ran")) == 2)
    (work / "go").touch()
    record = running.finished(job)
    assert record["status"] == "done"
    assert ["restarted" in child["stdErr"] for child in children(record)] == [True, False]
    assert not marked(key)
