"""Workflows over HTTPS: their revisions, their arguments, and input files from the catalog."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from dm.common.errors import AuthorizationError, InvalidArgument, ObjectNotFound
from dm.station.catalog.api import DatasetCatApi, FileCatApi
from dm.station.catalog.service import build_from_settings as build_catalog
from dm.station.catalog.settings import CatalogSettings
from dm.station.processing import literals
from dm.station.processing.versionstore import KEPT, VersionStore
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Running, running_processing, station_settings

EXPERIMENT = "cataloged"
SAY = {"1": {"command": 'echo "F: $filePath"'}}


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[storage.Site]:
    with storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        manager = running.experiments(storage.MANAGER)
        manager.addExperiment(EXPERIMENT, storage.STATION, storage.STATION)
        running.users(storage.MANAGER).addUserExperimentRole(storage.ALICE, "User", EXPERIMENT, storage.STATION)
        yield running


@pytest.fixture(scope="module")
def catalog_url(
    site: storage.Site, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A catalog that knows some files and datasets of an experiment."""
    settings = CatalogSettings(
        host="127.0.0.1",
        port=0,
        certificate=certificates / "server.pem",
        key=certificates / "server.key",
        database_url=mongo_url,
        threads=8,
    )
    service = build_catalog(settings, station_settings(site, tmp_path_factory.mktemp("catalog")))
    service.start()
    try:
        with service.server:
            login = (storage.MANAGER, storage.password_of(storage.MANAGER), service.server.url)
            files, datasets = (kind(*login, ca_file=site.ca_file) for kind in (FileCatApi, DatasetCatApi))
            for number in range(4):
                record = {"experimentName": EXPERIMENT, "experimentFilePath": f"run1/a {number};$x.h5"}
                files.addExperimentFile(record | {"fileSize": 1000 * number, "sample": "NaCl"})
            files.addExperimentFile(
                {"experimentName": EXPERIMENT, "experimentFilePath": "result.h5", "root": "analysis", "sample": "NaCl"}
            )
            datasets.addExperimentDataset(
                {"experimentName": EXPERIMENT, "datasetName": "large", "fileQueryDict": {"fileSize": {"$gte": 2000}}}
            )
            files.close()
            datasets.close()
            yield service.server.url
    finally:
        service.stop()


@pytest.fixture(scope="module")
def service(
    site: storage.Site,
    mongo_url: str,
    certificates: Path,
    tmp_path_factory: pytest.TempPathFactory,
    catalog_url: str,
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("processing")
    with running_processing(site, mongo_url, certificates, directory, catalog_url=catalog_url) as running:
        yield running


def printed(job: Any) -> list[str]:
    children = job.getWorkflowStage("1")["childProcesses"].values()
    return [child["stdOut"].strip() for child in children]


def test_each_change_of_a_definition_is_a_revision(service: Running) -> None:
    api = service.api()
    first = api.addWorkflow({"name": "kept", "owner": OWNER, "stages": {"1": {"command": "echo 1"}}})
    assert first["revision"] == 1
    again = api.updateWorkflow({**first.data, "stages": {"1": {"command": "echo 1", "childProcesses": {}}}})
    assert again["revision"] == 1, "nothing has changed"
    job = service.finished(service.start("kept"))
    second = api.upsertWorkflow({"name": "kept", "owner": OWNER, "stages": {"1": {"command": "echo 2"}, "2": SAY["1"]}})
    third = api.updateWorkflow({**second.data, "name": "renamed", "description": "another name"})
    assert (second["revision"], third["revision"], third["id"]) == (2, 3, first["id"])
    found = api.listWorkflowVersions(OWNER, "renamed")
    assert [(version["revision"], version["username"], version["isCurrent"]) for version in found] == [
        (1, OWNER, False),
        (2, OWNER, False),
        (3, OWNER, True),
    ]
    assert all("workflow" not in version and version["timestamp"] for version in found)
    old = api.getWorkflowVersion(OWNER, "renamed", 1)["workflow"]
    assert old["stages"] == first["stages"] and old["name"] == "kept"
    assert service.api().getProcessingJobById(OWNER, job["id"])["workflow"]["revision"] == 1
    with pytest.raises(ObjectNotFound, match="Revision 4"):
        api.getWorkflowVersion(OWNER, "renamed", 4)
    with pytest.raises(ObjectNotFound, match="'kept'"):
        api.listWorkflowVersions(OWNER, "kept")


def test_revisions_are_compared_and_restored(service: Running) -> None:
    api = service.api()
    api.addWorkflow({"name": "compared", "owner": OWNER, "stages": {"1": {"command": "echo 1"}, "2": SAY["1"]}})
    with pytest.raises(ObjectNotFound, match="before 1"):
        api.diffWorkflowVersions(OWNER, "compared")
    api.upsertWorkflow({"name": "compared", "owner": OWNER, "stages": {"1": {"command": "echo 2"}, "3": SAY["1"]}})
    found = api.diffWorkflowVersions(OWNER, "compared")
    assert (found["fromRevision"], found["toRevision"], found["same"]) == (1, 2, False)
    assert (found["addedStages"], found["removedStages"]) == (["3"], ["2"])
    assert found["changedStages"] == {"1": ["command"]}
    assert "@@ stage 1 @@\n-command: echo 1\n+command: echo 2\n" in found["text"]
    back = api.diffWorkflowVersions(OWNER, "compared", 2, 1)
    assert back["addedStages"] == ["2"]
    restored = api.restoreWorkflowVersion(OWNER, "compared", 1)
    assert restored["revision"] == 3 and list(restored["stages"]) == ["1", "2"]
    assert api.listWorkflowVersions(OWNER, "compared")[-1]["note"] == "revision 1 restored"
    assert api.diffWorkflowVersions(OWNER, "compared", 1, 3)["same"]


def test_a_deleted_workflow_can_be_seen_and_restored(service: Running) -> None:
    api = service.api()
    first = api.addWorkflow({"name": "gone", "owner": OWNER, "stages": SAY})
    api.deleteWorkflowByName(OWNER, "gone")
    found = api.listWorkflowVersions(OWNER, "gone")
    assert [(version["revision"], version["isCurrent"]) for version in found] == [(1, False)]
    again = api.restoreWorkflowVersion(OWNER, "gone", 1)
    assert (again["id"], again["revision"], again["stages"]) == (first["id"], 2, first["stages"])
    assert api.getWorkflowByName(OWNER, "gone")["revision"] == 2


def test_revisions_are_seen_by_who_sees_the_workflow(service: Running) -> None:
    service.workflow(SAY, "private")
    alice = service.api(storage.ALICE)
    for call in (
        lambda: alice.listWorkflowVersions(OWNER, "private"),
        lambda: alice.getWorkflowVersion(OWNER, "private", 1),
        lambda: alice.diffWorkflowVersions(OWNER, "private"),
        lambda: alice.restoreWorkflowVersion(OWNER, "private", 1),
    ):
        with pytest.raises(AuthorizationError):
            call()
    service.workflow(SAY, "of-alice", owner=storage.ALICE)
    assert alice.listWorkflowVersions(storage.ALICE, "of-alice")[0]["username"] == OWNER
    with pytest.raises(AuthorizationError, match="may not write"):
        alice.restoreWorkflowVersion(storage.ALICE, "of-alice", 1)


def test_changes_at_the_same_time_get_revisions_of_their_own(service: Running) -> None:
    api = service.api()
    api.addWorkflow({"name": "busy", "owner": OWNER, "stages": SAY})
    failures: list[Exception] = []

    def change(number: int) -> None:
        try:
            api.upsertWorkflow({"name": "busy", "owner": OWNER, "stages": {"1": {"command": f"echo {number}"}}})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = api.listWorkflowVersions(OWNER, "busy")
    assert [version["revision"] for version in found] == list(range(1, 10))
    commands = {api.getWorkflowVersion(OWNER, "busy", n)["workflow"]["stages"]["1"]["command"] for n in range(2, 10)}
    assert commands == {f"echo {number}" for number in range(8)}


def test_a_revision_whose_keeping_was_cut_short_is_kept_when_it_is_looked_for(service: Running, mongo_url: str) -> None:
    api = service.api()
    added = api.addWorkflow({"name": "cut-short", "owner": OWNER, "stages": SAY})
    api.upsertWorkflow({"name": "cut-short", "owner": OWNER, "stages": {"1": {"command": "echo 2"}}})
    with pymongo.MongoClient(mongo_url) as client:  # as a service that was killed between two writes leaves it
        gone = client.get_default_database()["processingWorkflowVersions"].delete_many({"workflowId": added["id"]})
        assert gone.deleted_count == 2
    found = api.listWorkflowVersions(OWNER, "cut-short")
    assert [(version["revision"], version["note"], version["username"]) for version in found] == [(2, "found", "")]
    third = api.upsertWorkflow({"name": "cut-short", "owner": OWNER, "stages": SAY})
    assert third["revision"] == 3
    assert api.diffWorkflowVersions(OWNER, "cut-short")["fromRevision"] == 2


def test_a_workflow_of_before_there_were_revisions_gets_them(service: Running, mongo_url: str) -> None:
    api = service.api()
    added = api.addWorkflow({"name": "old", "owner": OWNER, "stages": SAY})
    with pymongo.MongoClient(mongo_url) as client:
        database = client.get_default_database()
        database["processingWorkflowVersions"].delete_many({"workflowId": added["id"]})
        old = {key: value for key, value in added.data.items() if key != "revision"}
        [document] = database["processingWorkflows"].find({"workflowId": added["id"]})
        document.pop("revision")
        database["processingWorkflows"].replace_one({"_id": document["_id"]}, {**document, "workflow": json.dumps(old)})
    assert service.finished(service.start("old"))["status"] == "done"
    assert "revision" not in api.getWorkflowByName(OWNER, "old")
    changed = api.upsertWorkflow({"name": "old", "owner": OWNER, "stages": {"1": {"command": "echo 2"}}})
    assert (changed["revision"], changed["id"]) == (2, added["id"])
    assert api.getWorkflowVersion(OWNER, "old", 1)["workflow"]["stages"] == SAY


def test_the_oldest_revisions_are_forgotten(mongo_url: str) -> None:
    with pymongo.MongoClient(mongo_url) as client:
        store = VersionStore(client.get_default_database()["boundedVersions"])
        store.prepare()
        for revision in (1, 2, 3, 4, KEPT + 2):
            store.keep({"id": "a" * 24, "revision": revision, "owner": OWNER, "name": "w"}, OWNER, 1.0 * revision)
        assert [document["revision"] for document in store.find("a" * 24)] == [3, 4, KEPT + 2]
        assert store.newest("a" * 24) == KEPT + 2 and store.newest("b" * 24) == 0
        assert store.id_of(OWNER, "w") == "a" * 24 and store.id_of(OWNER, "v") is None


def test_an_executor_that_is_not_configured_is_refused_with_its_name(service: Running) -> None:
    with pytest.raises(InvalidArgument, match="Stage '1': executor 'locl' is not configured; did you mean 'local'"):
        service.workflow({"1": {"command": "true", "executor": "locl"}}, "elsewhere")
    assert service.run({"1": {"command": "true", "executor": "local"}})["status"] == "done"


def test_arguments_are_checked_when_a_job_is_submitted(service: Running) -> None:
    declared = {
        "qmap": {"required": True},
        "type": {"type": "multiple_choice", "choices": ["Multitau", "Twotime"], "default": "Multitau"},
        "gpu": {"type": "int"},
    }
    service.workflow({"1": {"command": 'echo "$qmap $type ${gpu:-none}"'}}, "declared", arguments=declared)
    before = len(service.api().listProcessingJobs(OWNER))
    for given, reason in (
        ({}, "'qmap' of workflow 'declared' is required"),
        ({"qmap": "q", "type": "Both"}, "'type' has value 'Both', which is not among its choices; give 'Multitau'"),
        ({"qmap": "q", "gpu": "one"}, "'gpu' has value 'one', which is not a whole number"),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            service.start("declared", **given)
    assert len(service.api().listProcessingJobs(OWNER)) == before, "nothing was stored"
    job = service.finished(service.start("declared", qmap="q"))
    assert printed(job) == ["q Multitau none"] and job["type"] == "Multitau"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"datasetName": "large"}, [2, 3]),
        ({"dataset": "large"}, [2, 3]),
        ({"fileQuery": {"fileSize": {"$lt": 1500}}}, [0, 1]),
        ({"fileQuery": '{"sample": "NaCl"}'}, [0, 1, 2, 3]),
    ],
)
def test_input_files_come_from_the_catalog(service: Running, given: dict[str, Any], found: list[int]) -> None:
    service.workflow(SAY, "found", owner=storage.ALICE)
    alice = service.api(storage.ALICE)
    job = alice.startProcessingJob(storage.ALICE, "found", {"experimentName": EXPERIMENT, **given})
    job = service.finished(job, storage.ALICE)
    assert printed(job) == [f"F: run1/a {number};$x.h5" for number in found]
    assert (job["countFiles"], job["status"]) == (len(found), "done")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"datasetName": "none"}, "does not exist"),
        ({"fileQuery": {"sample": "KCl"}}, "No file matches"),
        ({"fileQuery": {"$where": "1"}}, "not allowed in a query"),
        ({"fileQuery": {"sample": {"$regex": "("}}}, "not usable"),
        ({"fileQuery": "sample"}, "is not JSON"),
        ({}, "Give one of filePath"),
    ],
)
def test_an_input_specification_without_files_fails_the_job(
    service: Running, given: dict[str, Any], reason: str
) -> None:
    service.workflow(SAY, "found", owner=storage.ALICE)
    alice = service.api(storage.ALICE)
    job = alice.startProcessingJob(storage.ALICE, "found", {"experimentName": EXPERIMENT, **given})
    job = service.finished(job, storage.ALICE)
    assert (job["status"], job["countFiles"]) == ("failed", 0) and "stage" not in job
    assert job["errorMessage"].startswith("Invalid input file specification. ") and reason in job["errorMessage"]


def test_nobody_gets_files_of_experiments_they_may_not_see(service: Running) -> None:
    service.workflow(SAY, "found", owner=storage.STRANGER)
    stranger = service.api(storage.STRANGER)
    for given in ({"datasetName": "large"}, {"fileQuery": {}}, {"fileQuery": {"experimentName": EXPERIMENT}}):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            stranger.startProcessingJob(storage.STRANGER, "found", {"experimentName": EXPERIMENT, **given})


def test_a_stage_runs_on_files_of_its_own(service: Running, site: storage.Site) -> None:
    experiment = site.experiments(storage.MANAGER).getExperimentByName(EXPERIMENT, storage.STATION)
    parts = Path(experiment["dataDirectory"]) / "parts"
    parts.mkdir()
    for name in ("1 $x;.txt", "2.txt", ".hidden"):
        (parts / name).touch()
    stages = {
        "1": {"command": "echo Directory: parts", "outputVariableRegexList": ["Directory: (?P<which>.*)"]},
        "2": {
            "command": "echo P: $filePath",
            "dataDir": ["$which", f"{experiment['dataDirectory']}/${{which}}"],
            "parallelExec": True,
            "outputVariableRegexList": ["P: (?P<part>.*)"],
            "workingDir": "/",
        },
        "3": {"command": 'echo "$part $filePath"'},
    }
    service.workflow(stages, "parts", owner=storage.ALICE)
    arguments = {"experimentName": EXPERIMENT, "filePath": "/dev/null"}
    alice = service.api(storage.ALICE)
    job = service.finished(alice.startProcessingJob(storage.ALICE, "parts", arguments), storage.ALICE)
    assert job["status"] == "done", job.get("errorMessage")
    second = [child["stdOut"].strip() for child in job.getWorkflowStage("2")["childProcesses"].values()]
    assert sorted(second, reverse=True) == [
        "P: parts/2.txt",
        "P: parts/1 $x;.txt",
        f"P: {parts}/2.txt",
        f"P: {parts}/1 $x;.txt",
    ]
    [third] = job.getWorkflowStage("3")["childProcesses"].values()
    assert third["stdOut"] == f"{parts}/2.txt /dev/null\n" and job["countFiles"] == 1
    stages["1"]["command"] = "echo Directory: ../analysis"
    service.workflow(stages, "parts", owner=storage.ALICE)
    job = service.finished(alice.startProcessingJob(storage.ALICE, "parts", arguments), storage.ALICE)
    assert job["status"] == "failed" and "'2' failed: Path '../analysis' leaves" in job["errorMessage"]


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "workflows.md"
EXAMPLES = [literals.read_python(text) for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)]
# name -> arguments, what the job's stages print
RUNS: dict[str, tuple[dict[str, Any], dict[str, list[str]]]] = {
    "count-01": ({"filePath": "/etc/hostname"}, {}),
    "json-01": ({"sample": "a;b"}, {"1-FIT": [""], "2-USE": ["a;b: 0.25, [1, 2]\n"]}),
    "own-files-01": (
        {"experimentName": EXPERIMENT, "sample": "x"},
        {"1-SPLIT": ["Part: parts-x\n"], "2-EACH": ["parts-x/1.h5\n", "parts-x/2.h5\n"]},
    ),
    "arguments-01": ({"qmap": "q.h5"}, {"1": ["Multitau of /dev/null with q.h5 on -1\n"]}),
    "branches-01": ({}, {"3-JOIN": ["Left: 10 and Right: 10\n"]}),
    "careful-01": ({}, {"1-FETCH": ["", ""], "3-MAIN": [""], "9-TIDY": ["done \n"]}),
}


@pytest.mark.parametrize("workflow", EXAMPLES, ids=[example["name"] for example in EXAMPLES])
def test_the_examples_of_the_documentation_run(
    service: Running, site: storage.Site, tmp_path: Path, workflow: dict[str, Any]
) -> None:
    arguments, outputs = RUNS[workflow["name"]]
    if workflow["name"] == "own-files-01":
        experiment = site.experiments(storage.MANAGER).getExperimentByName(EXPERIMENT, storage.STATION)
        parts = Path(experiment["dataDirectory"]) / "parts-x"
        parts.mkdir()
        for name in ("1.h5", "2.h5"):
            (parts / name).touch()
    service.api().upsertWorkflow(workflow | {"owner": OWNER})
    job = service.finished(service.start(workflow["name"], **arguments))
    assert job["status"] == "done", job
    for stage, wanted in outputs.items():
        children = job.getWorkflowStage(stage)["childProcesses"].values()
        assert sorted(child["stdOut"] for child in children) == wanted


def test_the_careful_example_tidies_up_after_a_failure(service: Running) -> None:
    [careful] = [example for example in EXAMPLES if example["name"] == "careful-01"]
    service.api().upsertWorkflow(careful | {"owner": OWNER})
    job = service.finished(service.start("careful-01", code=4))
    assert job["status"] == "failed"
    [child] = job.getWorkflowStage("9-TIDY")["childProcesses"].values()
    assert child["stdOut"] == "failed 3-MAIN\n"


def test_every_example_is_run() -> None:
    assert [example["name"] for example in EXAMPLES] == list(RUNS)
