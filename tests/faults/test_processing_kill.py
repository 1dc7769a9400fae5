"""kill -9 of the processing service, of its stages' supervisors, of its database: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dm.common.embedded import EmbeddedMongo
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Process, Running, running_processing

JOBS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[storage.Site]:
    with storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
def work(open_directory: Path) -> Path:
    open_directory.chmod(0o777)
    return open_directory


@pytest.fixture
def process(
    site: storage.Site, new_mongo_database: Callable[[], str], certificates: Path, tmp_path: Path
) -> Iterator[Callable[..., tuple[Process, Running]]]:
    made: list[tuple[Process, Running]] = []

    def make(database: str | None = None, **changes: Any) -> tuple[Process, Running]:
        url = database or new_mongo_database()
        process = Process(site, url, certificates, tmp_path / f"p{len(made)}", free_port(), **changes)
        process.start()
        made.append((process, Running(site, process.url)))
        return made[-1]

    yield make
    for service, running in made:
        running.close()
        if service.process is not None and service.process.poll() is None:
            service.stop()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)
    return found


def lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def leads_a_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid  # the shim itself, not the readers it forked
    except ProcessLookupError:
        return False


def shims(service: Process) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if len(command) > 2 and command[1].endswith("shim.sh") and str(service.directory) in command[2]:
            found += [process] if leads_a_session(process.pid) else []
    return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 8))])
def test_kill_9_with_twenty_running_stages(seed: int, process: Callable[..., Any], work: Path) -> None:
    chance = random.Random(seed)
    service, running = process(concurrent_stages=JOBS + 4)
    stages = {
        "1": {
            "command": f"echo s1-$n >>{work}/log; sleep $pause; echo e1-$n >>{work}/log; echo V: $n",
            "outputVariableRegexList": ["V: (?P<value>.*)"],
        },
        "2": {"command": f'echo s2-$value >>{work}/log; sleep $pause; echo "second $value"', "runIf": "$value == $n"},
        "3": {
            "command": f"echo s3-$n >>{work}/log; grep -c s3-$n'$' {work}/log",
            "outputVariableRegexList": ["(?P<times>[0-9]+)"],
            "repeatPeriod": 0.2,
            "repeatUntil": "$times == 2",
            "maxRepeats": 9,
        },
    }
    running.workflow(stages)
    jobs = [running.start(n=n, pause=round(chance.uniform(0.05, 1.0), 2)) for n in range(JOBS)]
    for _ in range(5):
        time.sleep(chance.uniform(0.0, 0.7))
        service.kill()
        time.sleep(chance.choice([0.0, 0.3]))
        service.start()
    for n, job in enumerate(jobs):
        record = running.finished(job)
        assert record["status"] == "done", (n, record.data)
        first, second, third = record["workflow"]["stages"].values()
        assert [child["stdOut"] for child in first["childProcesses"].values()] == [f"V: {n}\n"]
        assert [child["stdOut"] for child in second["childProcesses"].values()] == [f"second {n}\n"]
        assert third["nCompletedChildProcesses"] == len(third["childProcesses"]) == 2
        numbers = [int(number) for stage in (first, second, third) for number in stage["childProcesses"]]
        assert numbers == [0, 1, 2, 3]
    counts = Counter(lines(work / "log"))
    assert counts == Counter(
        {f"{mark}-{n}": times for n in range(JOBS) for mark, times in (("s1", 1), ("e1", 1), ("s2", 1), ("s3", 2))}
    )
    assert service.stop() == 0
    assert [path.name for path in (service.directory / "var" / "processing").iterdir()] == [".lock"]


def test_sigterm_leaves_stages_running_and_the_next_service_takes_them_over(
    process: Callable[..., Any], work: Path
) -> None:
    service, running = process()
    job = running.start(running.workflow({"1": {"command": f"echo b >>{work}/log; sleep 1.5; echo e >>{work}/log"}}))
    until(lambda: lines(work / "log"))
    assert service.stop() == 0
    assert len(shims(service)) == 1
    service.start()
    record = running.finished(job)
    assert record["status"] == "done" and lines(work / "log") == ["b", "e"] and record["runTime"] >= 1.4


def test_a_stage_that_ended_while_the_service_was_away_keeps_its_times_and_output(
    process: Callable[..., Any], work: Path
) -> None:
    service, running = process()
    job = running.start(running.workflow({"1": {"command": f"echo b >>{work}/log; sleep 0.3; echo out; exit 5"}}))
    until(lambda: lines(work / "log"))
    service.kill()
    until(lambda: not shims(service))
    ended = time.time()
    time.sleep(0.5)
    service.start()
    record = running.finished(job)
    child = record["workflow"]["stages"]["1"]["childProcesses"]["0"]
    assert (record["status"], child["exitStatus"], child["stdOut"]) == ("failed", 5, "out\n")
    assert child["endTime"] <= ended + 0.1


@pytest.mark.parametrize(("policy", "status", "runs"), [("fail", "failed", 1), ("rerun", "done", 2)])
def test_a_stage_that_disappeared_without_a_result(
    policy: str, status: str, runs: int, process: Callable[..., Any], work: Path
) -> None:
    service, running = process(lost_stage=policy)
    job = running.start(running.workflow({"1": {"command": f"echo b >>{work}/log; test -e {work}/go || sleep 300"}}))
    until(lambda: lines(work / "log"))
    service.kill()
    (shim,) = shims(service)
    commands = shim.children(recursive=True)
    for gone in [shim, *commands]:
        gone.kill()
    psutil.wait_procs([shim, *commands], timeout=10)
    (work / "go").touch()
    service.start()
    record = running.finished(job)
    assert record["status"] == status and len(lines(work / "log")) == runs
    if policy == "fail":
        assert "disappeared without an exit status" in record["errorMessage"]
        assert record["workflow"]["stages"]["1"]["childProcesses"]["0"]["exitStatus"] == -1


def test_a_killed_supervisor_takes_its_command_along(process: Callable[..., Any], work: Path) -> None:
    service, running = process()
    job = running.start(running.workflow({"1": {"command": f"echo b >>{work}/log; sleep 300"}}))
    until(lambda: lines(work / "log"))
    (shim,) = shims(service)
    commands = shim.children(recursive=True)
    shim.kill()
    assert running.finished(job)["status"] == "failed"
    assert psutil.wait_procs(commands, timeout=10)[1] == []


def test_a_wish_to_stop_survives(process: Callable[..., Any], work: Path) -> None:
    service, running = process()
    resist = f"trap 'echo t >>{work}/log' TERM; echo b >>{work}/log; while :; do sleep 0.1; done"
    job = running.start(running.workflow({"1": {"command": resist}, "2": {"command": "true"}}))
    until(lambda: lines(work / "log"))
    running.api().stopProcessingJob(None, job["id"])
    service.kill()
    service.start()
    record = running.finished(job)
    assert record["status"] == "aborted" and record["workflow"]["stages"]["2"]["childProcesses"] == {}
    assert record["workflow"]["stages"]["1"]["childProcesses"]["0"]["status"] == "aborted"
    until(lambda: not shims(service))


def test_a_second_service_on_the_same_spool_refuses(
    process: Callable[..., Any], site: storage.Site, mongo_url: str, certificates: Path
) -> None:
    service, _ = process()
    other = Process(site, mongo_url, certificates, service.directory, free_port())
    with pytest.raises(AssertionError, match="Another processing service uses the spool directory"):
        other.start()
    assert other.process is not None and other.process.wait() == 4


def test_the_database_goes_away_while_jobs_run(
    site: storage.Site, certificates: Path, tmp_path: Path, work: Path
) -> None:
    database = EmbeddedMongo(tmp_path / "mongo")
    database.start()
    try:
        with running_processing(site, database.url("own"), certificates, tmp_path / "p") as running:
            stages = {
                "1": {"command": f"echo s1-$n >>{work}/log; sleep 0.5"},
                "2": {"command": f"echo s2-$n >>{work}/log"},
            }
            running.workflow(stages)
            jobs = [running.start(n=n) for n in range(6)]
            until(lambda: len(lines(work / "log")) >= 2)
            database.stop()
            time.sleep(1.0)
            status = running.rest(None).get("/status")
            assert status["status"] == "critical"
            database.start()
            assert [running.finished(job)["status"] for job in jobs] == ["done"] * 6
        assert Counter(lines(work / "log")) == Counter([f"s{stage}-{n}" for stage in (1, 2) for n in range(6)])
    finally:
        database.stop()


def test_stages_do_not_die_of_signals_to_the_service_group(process: Callable[..., Any], work: Path) -> None:
    service, running = process()
    job = running.start(running.workflow({"1": {"command": f"echo b >>{work}/log; sleep 0.5; echo e >>{work}/log"}}))
    until(lambda: lines(work / "log"))
    assert service.process is not None
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(30) == 0
    service.start()
    assert running.finished(job)["owner"] == OWNER and lines(work / "log") == ["b", "e"]
