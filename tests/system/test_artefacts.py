"""What stages make goes into the experiment, in an installation as ``dm-install`` leaves it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.deploy import components
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.processing.api import WorkflowProcApi
from tests.live import Suite

EXPERIMENT = "with-artefacts"
SECONDS = 60.0


@pytest.fixture
def api(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkflowProcApi]:
    for name, value in suite.environment.items():
        monkeypatch.setenv(name, value)
    made = WorkflowProcApi()
    yield made
    made.close()


def test_results_are_uploaded_with_the_stage(suite: Suite, api: WorkflowProcApi, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--type", "TEST")
    owner = api.username
    make = 'mkdir -p $id; for n in 1 2; do echo "$n of $filePath" >$id/result-$n.txt; done; echo no >$id/other'
    stages = {
        "1-MAKE": {"command": make, "workingDir": str(open_directory), "artefacts": ["$id/result-*.txt", "$id/other"]},
        "2-AFTER": {"command": "true"},
    }
    api.upsertWorkflow({"name": "artefacts", "owner": owner, "stages": stages})
    arguments = {"filePath": "a.h5", "experimentName": EXPERIMENT}
    job = api.waitProcessingJob(owner, api.startProcessingJob(owner, "artefacts", arguments)["id"], SECONDS)
    assert job["status"] == "done", job
    uploaded = job.getWorkflowStage("1-MAKE")["artefacts"]
    names = [f"{job['id']}/other", f"{job['id']}/result-1.txt", f"{job['id']}/result-2.txt"]
    assert [record["experimentFilePath"] for record in uploaded] == names
    shown = suite.dm("dm-get-experiment", "--experiment", EXPERIMENT, "--display-format=json", "--all")
    analysis = Path(json.loads(shown)["analysisDirectory"])
    assert (analysis / names[1]).read_text() == "1 of a.h5\n"
    assert uploaded[1]["size"] == len("1 of a.h5\n")

    again = api.waitProcessingJob(owner, api.restartProcessingJob(owner, job["id"], "1-MAKE")["id"], SECONDS)
    assert again["status"] == "done" and len(again.getWorkflowStage("1-MAKE")["artefacts"]) == 3


def test_a_missing_result_fails_the_stage(api: WorkflowProcApi, open_directory: Path) -> None:
    owner = api.username
    stages = {"1-MAKE": {"command": "true", "workingDir": str(open_directory), "artefacts": ["result.h5"]}}
    api.upsertWorkflow({"name": "artefacts-missing", "owner": owner, "stages": stages})
    for experiment, reason in ((EXPERIMENT, "does not exist after the stage"), (None, "no experimentName")):
        arguments = {"filePath": "a.h5"} | ({"experimentName": experiment} if experiment else {})
        begun = api.startProcessingJob(owner, "artefacts-missing", arguments)["id"]
        job = api.waitProcessingJob(owner, begun, SECONDS)
        assert job["status"] == "failed" and reason in job["errorMessage"], job


def test_a_killed_service_uploads_nothing_twice(suite: Suite, api: WorkflowProcApi, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    owner = api.username
    make = {"command": "head -c 50000000 /dev/zero >$id.bin", "workingDir": str(open_directory), "artefacts": ["*.bin"]}
    api.upsertWorkflow({"name": "artefacts-killed", "owner": owner, "stages": {"1-MAKE": make}})
    arguments = {"filePath": "a.h5", "experimentName": EXPERIMENT}
    begun = api.startProcessingJob(owner, "artefacts-killed", arguments)["id"]
    uploads = ExperimentDaqApi()
    deadline = time.monotonic() + SECONDS
    while not uploads.listUploadRecords({"processingJobId": begun}):
        assert time.monotonic() < deadline, api.getProcessingJobById(owner, begun)
        time.sleep(0.01)
    parts = components.chosen("processing", suite.installed.layout.settings)
    (pid,) = [part.pid_file.alive() for part in parts]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    components.start(parts)
    job = api.waitProcessingJob(owner, begun, SECONDS)
    assert job["status"] == "done", job
    (record,) = job.getWorkflowStage("1-MAKE")["artefacts"]
    assert (record["path"], record["size"]) == (f"{begun}.bin", 50_000_000)
    assert len(uploads.listUploadRecords({"processingJobId": begun})) == 1
    uploads.close()
