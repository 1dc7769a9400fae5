"""kill -9 of the processing service, of its stages' supervisors, of its database: nothing lost, nothing twice."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dm.common.embedded import EmbeddedMongo, free_port
from tests.faults.processing_spool import nothing_is_left, spool, supervisors, until
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Process, Running, lines, running_processing

JOBS = 20


@pytest.fixture
def process(
    storage_site: storage.Site, new_mongo_database: Callable[[], str], certificates: Path, tmp_path: Path
) -> Iterator[Callable[..., tuple[Process, Running]]]:
    made: list[tuple[Process, Running]] = []

    def make(database: str | None = None, **changes: Any) -> tuple[Process, Running]:
        url = database or new_mongo_database()
        process = Process(storage_site, url, certificates, tmp_path / f"p{len(made)}", free_port(), **changes)
        process.start()
        made.append((process, Running(storage_site, process.url)))
        return made[-1]

    yield make
    for service, running in made:
        running.close()
        if service.process is not None and service.process.poll() is None:
            service.stop()


def stages(service: Process) -> list[psutil.Process]:
    """Return the first processes of all that runs."""
    found = []
    for supervisor in supervisors(service):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child for child in supervisor.children() if child.status() != psutil.STATUS_ZOMBIE]
    return found


def power_cut(service: Process) -> None:
    """End the service, its supervisors and all they started at once."""
    service.kill()
    found = supervisors(service)
    gone = [*found, *(process for supervisor in found for process in supervisor.children(recursive=True))]
    for process in gone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(gone, timeout=10)


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
    nothing_is_left(service)


def test_sigterm_leaves_stages_running_and_the_next_service_takes_them_over(
    process: Callable[..., Any], work: Path
) -> None:
    service, running = process()
    job = running.start(running.workflow({"1": {"command": f"echo b >>{work}/log; sleep 1.5; echo e >>{work}/log"}}))
    until(lambda: lines(work / "log"))
    assert service.stop() == 0
    assert len(stages(service)) == 1
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
    until(lambda: not supervisors(service))
    ended = time.time()
    time.sleep(0.5)
    service.start()
    record = running.finished(job)
    child = record["workflow"]["stages"]["1"]["childProcesses"]["0"]
    assert (record["status"], child["exitStatus"], child["stdOut"]) == ("failed", 5, "out\n")
    assert child["endTime"] <= ended + 0.1


RERUN = ("rerun", "done", 2)
POLICIES = pytest.mark.parametrize(("policy", "status", "runs"), [("fail", "failed", 1), RERUN])
POLICIES_LONG = pytest.mark.parametrize(
    ("policy", "status", "runs"), [("fail", "failed", 1), pytest.param(*RERUN, marks=pytest.mark.long)]
)


def told(record: Any, policy: str, status: str, reason: str) -> None:
    """What a job says of a process that was lost."""
    assert record["status"] == status, record.data
    first = record["workflow"]["stages"]["1"]["childProcesses"]["0"]
    if policy == "fail":
        assert reason in record["errorMessage"]
        assert first["exitStatus"] == -1 and first["lost"] is True


@POLICIES_LONG
def test_a_stage_that_disappeared_without_a_result(
    policy: str, status: str, runs: int, process: Callable[..., Any], work: Path
) -> None:
    service, running = process(lost_stage=policy)
    job = running.start(running.workflow({"1": {"command": f"echo b >>{work}/log; test -e {work}/go || sleep 300"}}))
    until(lambda: lines(work / "log"))
    power_cut(service)
    (work / "go").touch()
    service.start()
    told(running.finished(job), policy, status, "disappeared without an exit status: its supervisor was killed")
    assert len(lines(work / "log")) == runs


@POLICIES
def test_a_killed_supervisor_takes_its_commands_along(
    policy: str, status: str, runs: int, process: Callable[..., Any], work: Path
) -> None:
    service, running = process(lost_stage=policy, concurrent_stages=8)
    stage = f"echo b$n >>{work}/log; test -e {work}/go || (setsid sleep 300 & sleep 300)"
    running.workflow({"1": {"command": stage}})
    jobs = [running.start(n=n) for n in range(4)]
    until(lambda: len(lines(work / "log")) == 4 and len(stages(service)) == 4)
    (supervisor,) = supervisors(service)
    commands = until(lambda: len(found := supervisor.children(recursive=True)) >= 12 and found)
    (work / "go").touch()
    supervisor.kill()
    for job in jobs:
        told(running.finished(job), policy, status, "disappeared without an exit status: its supervisor was killed")
    assert psutil.wait_procs(commands, timeout=10)[1] == []
    assert Counter(lines(work / "log")) == Counter({f"b{n}": runs for n in range(4)})
    assert running.finished(running.start(n=9))["status"] == "done"  # under the next supervisor


@POLICIES_LONG
def test_a_host_that_restarted(policy: str, status: str, runs: int, process: Callable[..., Any], work: Path) -> None:
    service, running = process(lost_stage=policy)
    stage = {"1": {"command": f"echo b >>{work}/log; test -e {work}/go || sleep 300"}}
    job = running.start(running.workflow(stage))
    until(lambda: lines(work / "log"))
    journals = list(spool(service).glob("g-*/journal"))
    power_cut(service)
    (work / "go").touch()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for file in (spool(service) / ".boot", *journals):
        file.write_text(file.read_text().replace(boot, "00000000-0000-0000-0000-000000000000"))
    service.start()
    told(running.finished(job), policy, status, "the host restarted")
    assert len(lines(work / "log")) == runs


def test_a_spool_directory_that_is_gone(process: Callable[..., Any], work: Path) -> None:
    service, running = process()
    job = running.start(running.workflow({"1": {"command": f"echo b >>{work}/log; sleep 300"}}))
    until(lambda: lines(work / "log"))
    power_cut(service)
    shutil.rmtree(spool(service))
    service.start()
    told(running.finished(job), "fail", "failed", "the spool directory is another one")
    assert lines(work / "log") == ["b"]


def test_several_kills_in_a_row_leave_every_generation_to_its_end(process: Callable[..., Any], work: Path) -> None:
    service, running = process(concurrent_stages=8)
    running.workflow(
        {"1": {"command": f"echo b$n >>{work}/log; while ! test -e {work}/go; do sleep 0.02; done; exit $n"}}
    )
    jobs = []
    for n in range(4):
        jobs.append(running.start(n=n))
        until(lambda n=n: f"b{n}" in lines(work / "log"))
        service.kill()
        service.start()
    assert len(supervisors(service)) == 4
    (work / "go").touch()
    for n, job in enumerate(jobs):
        assert running.finished(job)["workflow"]["stages"]["1"]["childProcesses"]["0"]["exitStatus"] == n
    assert sorted(lines(work / "log")) == [f"b{n}" for n in range(4)]
    assert service.stop() == 0
    nothing_is_left(service)


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
    until(lambda: not stages(service))


def test_a_second_service_on_the_same_spool_refuses(
    process: Callable[..., Any], storage_site: storage.Site, mongo_url: str, certificates: Path
) -> None:
    service, _ = process()
    other = Process(storage_site, mongo_url, certificates, service.directory, free_port())
    with pytest.raises(AssertionError, match="Another processing service uses the spool directory"):
        other.start()
    assert other.process is not None and other.process.wait() == 4


def test_the_database_goes_away_while_jobs_run(
    storage_site: storage.Site, certificates: Path, tmp_path: Path, work: Path
) -> None:
    database = EmbeddedMongo(tmp_path / "mongo")
    database.start()
    try:
        with running_processing(storage_site, database.url("own"), certificates, tmp_path / "p") as running:
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
