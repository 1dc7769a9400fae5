"""The same thing asked for many times at the same time happens once; things that exclude each other do."""

from __future__ import annotations

import datetime
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common import environment
from dm.common.embedded import free_port
from dm.common.errors import (
    DmException,
    InvalidObjectState,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceUnavailable,
)
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, PATIENCE, Running, running_processing

COUNT = 50


@pytest.fixture(scope="module")
def service(
    postgres_url: str, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("processing")
    environment.write_login_file(directory / "manager.login", OWNER, storage.password_of(OWNER))
    settings = {
        "concurrent_stages": 4,
        "stop_grace": 0.2,
        "artefact_directory": directory / "artefacts",
        "artefact_login_file": directory / "manager.login",
        "acquisition_url": f"https://localhost:{free_port()}",  # nobody is there
    }
    with (
        storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as site,
        running_processing(site, mongo_url, certificates, directory, **settings) as running,
    ):
        running.api().listWorkflows()  # logged in once for all threads
        yield running


def at_once(call: Callable[[int], Any], count: int = COUNT) -> list[Any]:
    """Call in that many threads at the same time; return what each got, results or DM's errors."""
    gate, answers = threading.Barrier(count), [None] * count

    def ask(number: int) -> None:
        gate.wait()
        try:
            answers[number] = call(number)
        except DmException as error:
            answers[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def logged(service: Running, job_id: str) -> list[dict[str, Any]]:
    return [dict(entry) for entry in service.api().listProcessingLog() if entry["id"] == job_id]


def test_one_job_of_many_submissions_with_one_key(service: Running, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    service.workflow({"1": {"command": f"echo run >>{open_directory}/runs"}}, "keyed")
    api, arguments = service.api(), {"filePath": "/dev/null"}
    answers = at_once(lambda _: api.startProcessingJob(OWNER, "keyed", arguments, idempotencyKey="k"))
    assert len({answer["id"] for answer in answers}) == 1
    service.finished(answers[0])
    assert (open_directory / "runs").read_text() == "run\n"
    assert len(api.listProcessingJobs(OWNER, {"workflow.name": "keyed"})) == 1
    (entry,) = logged(service, answers[0]["id"])
    assert entry["submittedBy"] == OWNER and len(entry["idempotencyKeyHash"]) == 64


def test_one_job_of_many_wishes_with_one_key(service: Running) -> None:
    """In one request, and in several at the same time."""
    service.workflow({"1": {"command": "true"}}, "wished")
    wish = {"argsDict": {"filePath": "/dev/null"}, "idempotencyKey": "w"}
    other = {**wish, "idempotencyKey": "v"}
    answers = at_once(lambda _: service.api().startProcessingJobs(OWNER, "wished", [wish, other, wish]), 8)
    ids = {tuple(job["id"] for job in answer) for answer in answers}
    assert len(ids) == 1
    first, second, third = ids.pop()
    assert first == third != second
    for job in (first, second):
        assert service.finished({"id": job})["status"] == "done"
        assert len(logged(service, job)) == 1


def test_without_a_logbook_nothing_is_accepted(service: Running) -> None:
    assert service.processing is not None
    service.workflow({"1": {"command": "true"}}, "unlogged")
    service.finished(service.start("unlogged"))
    directory, today = service.processing.logbook.directory, f"{datetime.date.today().isoformat()}.jsonl"
    (directory / today).rename(directory / "aside")
    (directory / today).symlink_to("elsewhere")  # which is not followed: as good as a full disk
    answers = at_once(lambda _: service.api().startProcessingJob(OWNER, "unlogged", {"filePath": "/dev/null"}), 10)
    assert all(isinstance(answer, ServiceUnavailable) and "No job was accepted" in str(answer) for answer in answers)
    health = {check["name"]: check for check in service.rest(None).get("/status")["checks"]}
    assert health["logbook"]["status"] == "critical" and "no job is accepted" in health["logbook"]["message"]
    (directory / today).unlink()
    (directory / "aside").rename(directory / today)
    assert len(service.api().listProcessingJobs(OWNER, {"workflow.name": "unlogged"})) == 1
    accepted = at_once(lambda _: service.start("unlogged"), 10)
    for job in accepted:
        assert service.finished(job)["status"] == "done" and len(logged(service, job["id"])) == 1


def test_one_workflow_of_many_additions(service: Running) -> None:
    spec = {"name": "added at once", "owner": OWNER, "stages": {"1": {"command": "true"}}}
    answers = at_once(lambda number: service.api().addWorkflow({**spec, "description": str(number)}))
    refused = [answer for answer in answers if isinstance(answer, ObjectAlreadyExists)]
    (added,) = [answer for answer in answers if not isinstance(answer, DmException)]
    assert len(refused) == COUNT - 1
    assert service.api().getWorkflowByName(OWNER, "added at once")["description"] == added["description"]


def test_many_resume_a_job_once(service: Running, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    command = f"echo run >>{open_directory}/runs; test -e {open_directory}/good"
    job = service.finished(service.start(service.workflow({"1": {"command": command}}, "resumed")))
    assert job["status"] == "failed"
    (open_directory / "good").touch()
    answers = at_once(lambda _: service.api().resumeProcessingJob(OWNER, job["id"]), 20)
    assert all(isinstance(answer, InvalidObjectState) or answer["id"] == job["id"] for answer in answers)
    ended = service.finished(job)
    assert (ended["status"], ended["restarts"]) == ("done", 1)
    assert (open_directory / "runs").read_text() == "run\nrun\n"


def test_a_job_that_waits_for_the_acquisition_service_can_be_stopped(service: Running, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    service.site.experiments(OWNER).addExperiment("waiting", stationName=storage.STATION)
    stage = {"command": "echo r >result", "workingDir": str(open_directory), "artefacts": ["result"]}
    service.workflow({"1": stage, "2": {"command": "true"}}, "uploads")
    job = service.start("uploads", experimentName="waiting")
    deadline = time.monotonic() + PATIENCE
    while not service.api().listChildProcesses(OWNER, job["id"]) and time.monotonic() < deadline:
        time.sleep(0.02)
    service.api().stopProcessingJob(OWNER, job["id"])
    ended = service.finished(job)
    assert (ended["status"], ended["stage"]) == ("aborted", "1") and "errorMessage" not in ended
    assert ended.getWorkflowStage("1")["status"] == "aborted"


def test_stop_resume_restart_and_delete_race_on_one_job(service: Running) -> None:
    service.workflow({"1": {"command": "true"}, "2": {"command": "sleep 30"}}, "raced")
    chance, api = random.Random(5), service.api()
    for _ in range(3):
        job = service.start("raced")["id"]
        calls: list[Callable[[], Any]] = [
            lambda job=job: api.stopProcessingJob(OWNER, job),
            lambda job=job: api.resumeProcessingJob(OWNER, job),
            lambda job=job: api.restartProcessingJob(OWNER, job, "1"),
            lambda job=job: api.deleteProcessingJob(OWNER, job),
        ]
        order = [chance.choice(calls) for _ in range(40)] + [calls[0]]
        answers = at_once(lambda number, order=order: order[number](), len(order))
        for answer in answers:
            assert isinstance(answer, InvalidObjectState | ObjectNotFound) or answer.get("id") == job, answer
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:  # whoever came last, it can be stopped, and then be deleted
            try:
                api.stopProcessingJob(OWNER, job)
            except (InvalidObjectState, ObjectNotFound):
                break
        try:
            assert service.finished({"id": job})["status"] in ("aborted", "done")
            api.deleteProcessingJob(OWNER, job)
        except ObjectNotFound:
            pass
        with pytest.raises(ObjectNotFound):
            api.getProcessingJobById(OWNER, job)
    assert service.processing is not None
    deadline = time.monotonic() + PATIENCE
    while service.processing.engine.load()["jobs"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.processing.engine.load() == {"jobs": 0, "queued": 0, "running": 0, "waiting": 0}
