"""What a stage may do to its supervisor: print without end, print anything, hang, resist, leave daemons behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.test_processing_kill import free_port, stages, supervisors, until
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import Process, Running

GIGABYTE = 1 << 30
FLAT = 64 << 20
GRACE = 0.5


@pytest.fixture(scope="module")
def service(storage_site: storage.Site, mongo_url: str, certificates: Path, run_directory: Path) -> Iterator[Process]:
    directory = run_directory / "output"
    process = Process(storage_site, mongo_url, certificates, directory, free_port(), stop_grace=0.5)
    text = process.config.read_text().replace("output_grace = 1.0", f"output_grace = {GRACE}")
    process.config.write_text(text)
    process.start()
    try:
        yield process
    finally:
        if process.process is not None and process.process.poll() is None:
            process.stop()


@pytest.fixture(scope="module")
def running(service: Process) -> Iterator[Running]:
    found = Running(service.site, service.url)
    yield found
    found.close()


def child_of(job: Any, stage: str = "1") -> dict[str, Any]:
    return job["workflow"]["stages"][stage]["childProcesses"]["0"]


def log_of(service: Process, job: Any, stream: str) -> Path:
    return service.directory / "var" / "processing" / "logs" / job["id"] / f"0.{stream}"


def nothing_runs(service: Process) -> None:
    until(lambda: not stages(service))
    place = service.directory / "var" / "processing" / "local"
    assert list((place / "exchange").rglob("*/*")) == []
    assert {path.name for path in place.glob("g-*/*")} <= {"control", "journal", "log"}


def test_a_gigabyte_is_kept_whole_and_the_service_stays_small(service: Process, running: Running) -> None:
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    command = f"echo first; head -c {GIGABYTE} /dev/zero; echo last; echo done >&2"
    job = running.start(running.workflow({"1": {"command": command, "outputVariableRegexList": ["(?P<one>first)"]}}))
    before = largest = process.memory_info().rss
    while running.api().getProcessingJobById(None, job["id"], 0.05)["status"] in ("pending", "running"):
        largest = max(largest, process.memory_info().rss)
    supervisor = supervisors(service)[-1].memory_info().rss
    record = running.finished(job)
    child = child_of(record)
    assert record["status"] == "done" and record["one"] == "first" and child["stdErr"] == "done\n"
    assert child["stdOut"].startswith("first\n") and child["stdOut"].endswith("last\n") and child["outputTruncated"]
    assert len(child["stdOut"]) < 1 << 20
    whole = log_of(service, record, "stdout")
    assert whole.stat().st_size == GIGABYTE + len("first\nlast\n")
    assert largest - before < FLAT and supervisor < FLAT
    whole.unlink()
    nothing_runs(service)


def test_a_gigabyte_as_output_file(service: Process, running: Running) -> None:
    record = running.run(
        {"1": {"command": f"yes | head -c 2000000 >$DM_OUTPUT_FILE; truncate -s {GIGABYTE} $DM_OUTPUT_FILE"}}
    )
    assert record["status"] == "failed" and "structured output is larger than" in record["errorMessage"]
    nothing_runs(service)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("mkfifo $DM_OUTPUT_FILE", "no regular file"),
        ("ln -s /etc/passwd $DM_OUTPUT_FILE", "it is a link"),
        ("mkdir $DM_OUTPUT_FILE", "no regular file"),
        ("head -c 100 /dev/urandom >$DM_OUTPUT_FILE", "structured output"),
    ],
    ids=["fifo", "link", "directory", "binary"],
)
def test_an_output_file_that_is_none(command: str, reason: str, service: Process, running: Running) -> None:
    record = running.run({"1": {"command": command}})
    assert record["status"] == "failed" and reason in record["errorMessage"], record.data
    assert "root:" not in str(record.data)
    nothing_runs(service)


def test_binary_output(service: Process, running: Running) -> None:
    every = "".join(f"\\{n:03o}" for n in range(256))
    record = running.run({"1": {"command": f"printf '{every}'; printf '\\377' >&2"}})
    child = child_of(record)
    assert record["status"] == "done" and child["stdErr"] == "\\xff" and "\\x00" in child["stdOut"]
    assert log_of(service, record, "stdout").read_bytes() == bytes(range(256))


@pytest.mark.parametrize(
    ("command", "status", "number"),
    [
        ("exit 255", 255, None),
        ("exec >&- 2>&-; exit 7", 7, None),
        ("kill -KILL $$; sleep 9", 137, signal.SIGKILL),
        ("kill -SEGV $$; sleep 9", 139, signal.SIGSEGV),
    ],
    ids=["255", "closed", "killed", "crashed"],
)
def test_ends_are_told_as_they_were(
    command: str, status: int, number: int | None, service: Process, running: Running
) -> None:
    record = running.run({"1": {"command": command}})
    child = child_of(record)
    assert (record["status"], child["exitStatus"], child.get("signal")) == ("failed", status, number)
    if number == signal.SIGKILL:
        assert "killed (signal 9), perhaps by the kernel for lack of memory" in record["errorMessage"]
    nothing_runs(service)


@pytest.mark.parametrize("way", ["timeout", "stop"])
def test_what_hangs_and_resists_is_ended_with_all_it_started(
    way: str, service: Process, running: Running, work: Path
) -> None:
    command = (
        f"trap '' TERM; setsid sh -c 'echo $$ >{work}/daemon; exec sleep 1000' & echo $$ >{work}/first; "
        "while :; do sleep 0.05; done"
    )
    limit = {"timeout": 1} if way == "timeout" else {}
    job = running.start(running.workflow({"1": {"command": command, **limit}}))
    pids = [
        int(until(lambda name=name: (work / name).exists() and (work / name).read_text()))
        for name in ("daemon", "first")
    ]
    if way == "stop":
        running.api().stopProcessingJob(None, job["id"])
    record = running.finished(job)
    child = child_of(record)
    assert record["status"] == ("failed" if way == "timeout" else "aborted")
    assert child["exitStatus"] == 137 and child["signal"] == signal.SIGKILL
    if way == "timeout":
        assert "time limit" in record["errorMessage"]
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    nothing_runs(service)


def test_a_daemon_neither_holds_its_stage_nor_outlives_it(service: Process, running: Running, work: Path) -> None:
    daemon = "setsid sh -c '(echo $$; while :; do echo still here; sleep 0.05; done) & echo $! >{file}' {ends} ; exit 0"
    quiet = daemon.format(file=work / "quiet", ends="</dev/null >/dev/null 2>&1")
    loud = daemon.format(file=work / "loud", ends="")
    record = running.run({"1": {"command": quiet}, "2": {"command": loud}})
    assert record["status"] == "done"
    assert (
        child_of(record, "1")["stdOut"] == ""
        and "still here" in record["workflow"]["stages"]["2"]["childProcesses"]["1"]["stdOut"]
    )
    for name in ("quiet", "loud"):
        pid = int((work / name).read_text())
        until(lambda pid=pid: not psutil.pid_exists(pid))
    nothing_runs(service)
