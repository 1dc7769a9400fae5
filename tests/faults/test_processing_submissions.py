"""kill -9 of the processing service while jobs are submitted and outputs followed: nothing unlogged, lost or twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common.embedded import free_port
from dm.common.errors import CommunicationError, ServiceUnavailable
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Process, Running

THREADS, EACH, KILLS = 6, 8, 2


@pytest.fixture(scope="module")
def service(
    postgres_url: str, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, Running]]:
    with storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as site:
        process = Process(site, mongo_url, certificates, tmp_path_factory.mktemp("processing"), free_port())
        process.start()
        running = Running(site, process.url)
        yield process, running
        running.close()
        process.stop()


def test_every_job_is_in_the_logbook_and_no_key_starts_two(service: tuple[Process, Running]) -> None:
    process, running = service
    running.workflow({"1": {"command": "true"}}, "quick")
    told: list[str] = []

    def submit(thread: int) -> None:
        for number in range(EACH):
            while True:
                try:
                    arguments = {"filePath": f"{thread}-{number}"}
                    key = f"key-{thread}-{number}"
                    told.append(running.api().startProcessingJob(OWNER, "quick", arguments, idempotencyKey=key)["id"])
                    break
                except (CommunicationError, ServiceUnavailable):
                    time.sleep(0.05)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    chance, kills = random.Random(11), 0
    while kills < KILLS and any(thread.is_alive() for thread in threads):
        time.sleep(chance.uniform(0.02, 0.1))
        process.kill()
        kills += 1
        process.start()
    for thread in threads:
        thread.join()
    jobs = list(running.api().iterateProcessingJobs(OWNER, keyList=["id", "filePath"]))
    assert len(jobs) == THREADS * EACH == len(set(told)) and {job["id"] for job in jobs} == set(told)
    assert max(Counter(job["filePath"] for job in jobs).values()) == 1
    logged = [entry["id"] for entry in running.api().listProcessingLog() if "withdrawn" not in entry]
    assert set(logged) == set(told)
    for job in jobs:
        assert running.finished(job)["status"] == "done"


def test_output_is_followed_across_a_restart(service: tuple[Process, Running], open_directory: Path) -> None:
    open_directory.chmod(0o777)
    process, running = service
    command = f"for n in 1 2 3 4 5 6; do seq $n 9000; until test -e {open_directory}/$n; do sleep 0.05; done; done"
    job = running.start(running.workflow({"1": {"command": command}}, "talks"))["id"]
    pieces: list[bytes] = []

    def follow() -> None:
        pieces.extend(running.api().getProcessingJobOutput(OWNER, job, 0, follow=True))

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(1, 7):
        time.sleep(0.2)
        if number in (2, 4):
            process.kill()
        (open_directory / str(number)).touch()
        if number in (2, 4):
            time.sleep(0.3)
            process.start()
    thread.join(60)
    assert not thread.is_alive()
    expected = b"".join(b"%d\n" % value for number in range(1, 7) for value in range(number, 9001))
    assert b"".join(pieces) == expected
    assert running.finished({"id": job})["status"] == "done"
