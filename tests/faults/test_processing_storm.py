"""kill -9 of the processing service at random, again and again: every stage of every job runs exactly once."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from dm.common.embedded import free_port
from dm.common.errors import DmException
from dm.station.processing.executors.base import MARKER
from tests.faults.processing_spool import nothing_is_left, until
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Process, Running

STAGES = 5


@contextmanager
def submitting(running: Running, wishes: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Submit jobs one by one beside the test, each until it is accepted, and wait for the last.

    :returns: idempotency key -> job id.
    """
    accepted: dict[str, str] = {}
    over = threading.Event()

    def submit() -> None:
        for wish in wishes:
            while not over.is_set():
                try:
                    job = running.api().startProcessingJob(OWNER, "w", wish["argsDict"], wish["idempotencyKey"])
                except DmException:
                    time.sleep(0.02)
                else:
                    accepted[wish["idempotencyKey"]] = str(job["id"])
                    break

    thread = threading.Thread(target=submit)
    thread.start()
    try:
        yield accepted
        thread.join(60)
    finally:
        over.set()
        thread.join()


def marked(jobs: set[str]) -> list[psutil.Process]:
    """Return the processes that carry the mark of one of these jobs."""
    found = []
    for process in psutil.process_iter():
        try:
            key = process.environ().get(MARKER, "")
        except psutil.Error:
            continue
        if key.partition(".")[0] in jobs:
            found.append(process)
    return found


@pytest.mark.parametrize(
    ("jobs", "kills", "pause"),
    [(40, 5, 0.1), pytest.param(200, 50, 0.3, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)
def test_every_stage_runs_exactly_once(
    jobs: int,
    kills: int,
    pause: float,
    storage_site: storage.Site,
    database: str,
    certificates: Path,
    tmp_path: Path,
    open_directory: Path,
) -> None:
    chance = random.Random(jobs)
    open_directory.chmod(0o777)
    log = open_directory / "log"
    service = Process(storage_site, database, certificates, tmp_path, free_port(), concurrent_stages=8)
    service.start()
    running = Running(storage_site, service.url)
    try:
        stage = f"echo $n.%d >>{log}; sleep $pause%d; echo done $n.%d"
        running.workflow({f"{number}": {"command": stage % (number, number, number)} for number in range(STAGES)})
        wishes = [
            {
                "idempotencyKey": f"job-{n}",
                "argsDict": {"filePath": "/dev/null", "n": n}
                | {f"pause{number}": round(chance.uniform(0, 2 * pause), 3) for number in range(STAGES)},
            }
            for n in range(jobs)
        ]
        together = wishes[: jobs // 2]
        answers = running.api().startProcessingJobs(OWNER, "w", together)
        with submitting(running, wishes[jobs // 2 :]) as accepted:
            for _ in range(kills):
                time.sleep(chance.uniform(0.0, 0.8))
                service.kill()
                if chance.random() < 0.2:  # while it takes over what the last one left
                    service.launch()
                    time.sleep(chance.uniform(0.2, 1.0))
                    service.kill()
                service.start()
        accepted.update((wish["idempotencyKey"], str(job["id"])) for wish, job in zip(together, answers, strict=True))
        records = [running.finished({"id": accepted[f"job-{n}"]}) for n in range(jobs)]
        for n, record in enumerate(records):
            assert (record["status"], record["n"]) == ("done", n), record.data
            children = [stage["childProcesses"] for stage in record["workflow"]["stages"].values()]
            assert [[child["stdOut"] for child in one.values()] for one in children] == [
                [f"done {n}.{number}\n"] for number in range(STAGES)
            ]
            assert not [child for one in children for child in one.values() if child.get("attempt")]
        assert Counter(log.read_text().split()) == Counter(
            f"{n}.{number}" for n in range(jobs) for number in range(STAGES)
        )
        listed = running.api().listProcessingJobs(OWNER, limit=2 * jobs)
        assert Counter(job["id"] for job in listed) == Counter(accepted.values()), "a job was accepted twice"
        assert {job["status"] for job in listed} == {"done"}
        assert service.stop() == 0
        until(lambda: not marked(set(accepted.values())))
        nothing_is_left(service)
    finally:
        running.close()
        if service.process is not None and service.process.poll() is None:
            service.stop()
