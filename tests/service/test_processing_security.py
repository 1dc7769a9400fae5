"""What strangers and members must not learn or get at: status texts, definitions of others, foreign directories."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common.errors import AuthorizationError, ObjectNotFound
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Running, running_processing

SECRET = {"1": {"command": "echo secret-of-the-manager"}}
_PATH = re.compile(r"(?<![:/\w.])/\w")


@pytest.fixture(scope="module")
def service(
    storage_site: storage.Site, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("processing")
    with running_processing(storage_site, mongo_url, certificates, place, users_may_author=True) as running:
        yield running


def test_strangers_learn_of_no_directory_from_the_status(service: Running) -> None:
    assert service.processing is not None
    executors = service.processing.executors
    executors.problems["hpc"] = "The spool directory /home/dm/var/processing/hpc cannot be used: no such file."
    try:
        service.processing.health.clear()
        checks = {check["name"]: check for check in service.rest(None).get("/status")["checks"]}
        assert checks["executors"]["status"] == "warning" and "hpc" in checks["executors"]["message"]
        told = {name: check["message"] for name, check in checks.items() if _PATH.search(check["message"])}
        assert not told
    finally:
        del executors.problems["hpc"]
        service.processing.health.clear()


def test_an_id_used_before_opens_nobodys_revisions(service: Running) -> None:
    manager, alice = service.api(), service.api(storage.ALICE)
    spec = {"name": "confidential", "owner": OWNER, "stages": SECRET}
    deleted = manager.addWorkflow(spec)
    manager.deleteWorkflowByName(OWNER, "confidential")
    mine = {"name": "mine", "owner": storage.ALICE, "id": deleted["id"], "stages": {"1": {"command": "true"}}}
    added = alice.addWorkflow(mine)
    assert [version["name"] for version in alice.listWorkflowVersions(storage.ALICE, "mine")] == ["mine"]
    shown = alice.getWorkflowVersion(storage.ALICE, "mine", added["revision"])
    assert "secret-of-the-manager" not in str(shown)
    with pytest.raises(ObjectNotFound):
        alice.diffWorkflowVersions(storage.ALICE, "mine")
    assert manager.listWorkflowVersions(OWNER, "confidential")  # nor is the owner shut out of it
    assert manager.restoreWorkflowVersion(OWNER, "confidential", 1)["stages"]["1"]["command"] == SECRET["1"]["command"]


def test_a_batch_job_trusts_no_directory_that_others_may_change(tmp_path: Path) -> None:
    """Whoever may write there would choose what runs on the cluster in this account's name."""
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    for name in ("qsub", "qacct", "qstat"):
        program = bin_directory / name
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        program.chmod(0o755)
    for prepared in ("open", "link"):
        shared = tmp_path / prepared
        shared.mkdir()
        if prepared == "open":
            (shared / ".dm-batch").mkdir()
            (shared / ".dm-batch").chmod(0o777)
        else:
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            (shared / ".dm-batch").symlink_to(tmp_path / "elsewhere")
        done = subprocess.run(
            [sys.executable, "-m", "dm.station.processing.batch.command", "--scheduler=sge", "--patience=1s",
             f"--directory={shared}", "--", "true"],
            env={**os.environ, "PATH": f"{bin_directory}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 81 and ".dm-batch" in done.stderr, (prepared, done.returncode, done.stderr)
        assert not (tmp_path / "ran").exists()


def test_who_left_an_experiment_cannot_run_its_jobs_again(service: Running) -> None:
    """Stages work on the experiment's data; to have been a member once is not enough."""
    storage_site, alice = service.site, service.api(storage.ALICE)
    storage_site.experiments(OWNER).addExperiment("left", typeName="TEST", stationName=storage.STATION)
    storage_site.users(OWNER).addUserExperimentRole(storage.ALICE, "User", "left", storage.STATION)
    service.workflow({"1": {"command": "test $x = y"}}, "alices", storage.ALICE)
    job = alice.startProcessingJob(
        storage.ALICE, "alices", {"filePath": "/dev/null", "experimentName": "left", "x": "n"}
    )
    assert service.finished(job, storage.ALICE)["status"] == "failed"
    storage_site.users(OWNER).deleteUserExperimentRole(storage.ALICE, "User", "left", storage.STATION)
    assert service.processing is not None
    service.processing.site.forget()
    for again in (
        lambda: alice.resumeProcessingJob(storage.ALICE, job["id"]),
        lambda: alice.restartProcessingJob(storage.ALICE, job["id"], "1"),
    ):
        with pytest.raises(ObjectNotFound, match="left"):
            again()
    assert alice.getProcessingJobById(None, job["id"])["status"] == "failed"
    assert service.api().resumeProcessingJob(None, job["id"])["id"] == job["id"]  # its managers may
    service.finished(job)


def test_users_who_may_author_name_no_account_but_their_own(service: Running) -> None:
    """Commands of theirs run under the stage account; listed accounts are for workflows of the station's managers."""
    alice, manager = service.api(storage.ALICE), service.api()
    spec = {"name": "borrowed", "owner": storage.ALICE, "stages": {"1": {"command": "id -un"}}}
    for call in (alice.addWorkflow, alice.upsertWorkflow):
        with pytest.raises(AuthorizationError, match="userAccount 'daemon'"):
            call({**spec, "userAccount": "daemon"})
    given = manager.addWorkflow({**spec, "userAccount": "daemon"})  # a manager may give her one
    for call in (alice.updateWorkflow, alice.upsertWorkflow):
        with pytest.raises(AuthorizationError, match="userAccount 'daemon'"):
            call({**spec, "userAccount": "daemon", "stages": {"1": {"command": "other"}}})
    assert alice.getWorkflowByName(storage.ALICE, "borrowed")["revision"] == given["revision"]
    assert alice.updateWorkflow({**spec, "userAccount": storage.ALICE})["userAccount"] == storage.ALICE
    with pytest.raises(AuthorizationError, match="userAccount 'daemon'"):
        alice.restoreWorkflowVersion(storage.ALICE, "borrowed", 1)
