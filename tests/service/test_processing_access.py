"""Who may do what, in every dialect callers speak: the routes over real HTTPS."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from dm.common.errors import (
    AuthorizationError,
    InvalidArgument,
    ObjectAlreadyExists,
    ObjectNotFound,
)
from dm.station.processing.api import ServiceMonitorProcApi
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Running, running_processing
from tests.service.route_walk import assert_refuses_strangers

STAGES = {"2": {"command": "echo $x"}, "1": {"command": "date", "runIf": "True", "workingDir": None}}
WORKFLOW_KEYS = {"name", "owner", "userAccount", "description", "id", "stages"}


@pytest.fixture(scope="module")
def service(
    storage_site: storage.Site, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with running_processing(storage_site, mongo_url, certificates, tmp_path_factory.mktemp("processing")) as running:
        yield running


def twice(text: str, wrapped: bool = False) -> str:
    """Encode as published clients do: double base64 in the dress of a bytes literal, perhaps wrapped."""
    inner = base64.encodebytes(text.encode()) if wrapped else base64.b64encode(text.encode())
    return repr(base64.b64encode(inner))


def test_every_route_refuses_strangers(service: Running) -> None:
    service.workflow(STAGES, "walked")
    job = service.finished(service.start("walked"))
    stranger = service.rest(storage.STRANGER)
    stranger.login()
    workflow = {"name": "walked", "owner": OWNER, "stages": STAGES}
    assert service.server is not None
    walked = assert_refuses_strangers(
        service.url,
        service.server.application.routes,
        service.site.ca_file,
        stranger.cookie,
        {
            "owner": OWNER,
            "name": "walked",
            "workflow": "walked",
            "jobId": job["id"],
            "id": job["workflow"]["id"],
            "number": "0",
            "date": "today",
            "revision": "1",
        },
    )
    assert walked >= 29
    # routes open to any user decide for themselves
    for method, path, body in (
        ("GET", f"/processingJobsById/{job['id']}", None),
        ("GET", f"/workflowsById/{job['workflow']['id']}", None),
        ("POST", "/workflows/addWorkflow", {"workflow": {**workflow, "name": "new"}}),
        ("PUT", "/workflows/updateWorkflow", {"workflow": workflow}),
        ("PUT", "/workflows/upsertWorkflow", {"workflow": {**workflow, "owner": storage.STRANGER}}),
    ):
        with pytest.raises((AuthorizationError, ObjectNotFound)):
            stranger.request(method, path, body=body)
    assert stranger.get("/processingJobPages") == {"jobs": [], "after": None}
    with pytest.raises(AuthorizationError):
        stranger.get("/logbook/today")
    assert stranger.get("/processingJobs") == [] == stranger.get(f"/processingJobsByOwner/{storage.STRANGER}")
    assert service.api().getProcessingJobById(OWNER, job["id"])["status"] == "done"


def test_jobs_and_workflows_belong_to_their_owners(service: Running) -> None:
    service.workflow(STAGES, "alices", owner=storage.ALICE)
    service.workflow(STAGES, "station")
    alice, bob = service.api(storage.ALICE), service.api(storage.BOB)
    job = alice.startProcessingJob(storage.ALICE, "alices", {"filePath": "/dev/null", "x": 1})
    assert job["owner"] == storage.ALICE
    assert service.finished(job, storage.ALICE)["status"] == "done"
    for refused in (
        lambda: bob.getProcessingJobById(None, job["id"]),
        lambda: bob.getProcessingJobById(storage.BOB, job["id"]),
        lambda: bob.stopProcessingJob(storage.BOB, job["id"]),
        lambda: bob.deleteProcessingJob(storage.BOB, job["id"]),
        lambda: bob.resumeProcessingJob(storage.BOB, job["id"]),
        lambda: bob.restartProcessingJob(storage.BOB, job["id"], "1"),
        lambda: bob.getChildProcess(storage.BOB, job["id"], 0),
        lambda: list(bob.getProcessingJobOutput(storage.BOB, job["id"], 0)),
        lambda: bob.getWorkflowById("", job["workflow"]["id"]),
    ):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            refused()
    for refused in (
        lambda: bob.listProcessingJobs(storage.ALICE),
        lambda: list(bob.iterateProcessingJobs(storage.ALICE)),
        lambda: list(alice.listProcessingLog()),
        lambda: alice.startProcessingJob(storage.ALICE, "alices", {"filePath": "x"}, priority=1),
        lambda: bob.listWorkflows(storage.ALICE),
        lambda: bob.getWorkflowByName(storage.ALICE, "alices"),
        lambda: alice.startProcessingJob(OWNER, "station", {"filePath": "x"}),
        lambda: alice.startProcessingJob(storage.ALICE, "alices", {"filePath": "x"}, jobOwner=storage.BOB),
        lambda: alice.addWorkflow({"name": "mine", "stages": STAGES}),
        lambda: alice.updateWorkflow({"name": "alices", "owner": storage.ALICE, "stages": STAGES}),
        lambda: alice.deleteWorkflowByName(storage.ALICE, "alices"),
    ):
        with pytest.raises(AuthorizationError):
            refused()
    assert [found["id"] for found in alice.listProcessingJobs()] == [job["id"]]
    assert [found["id"] for found in alice.iterateProcessingJobs()] == [job["id"]]
    assert bob.listProcessingJobs() == []
    assert job["id"] in [found["id"] for found in service.api().listProcessingJobs()]
    with pytest.raises(ObjectNotFound):  # an experiment that is not hers
        alice.startProcessingJob(storage.ALICE, "alices", {"filePath": "x", "experimentName": "e-of-others"})
    with pytest.raises(ObjectNotFound):  # of another station
        service.api(storage.OTHER_MANAGER).getProcessingJobById(None, job["id"])


def test_the_service_account_submits_for_a_user(service: Running) -> None:
    service.workflow(STAGES, "daq")
    account = service.api(storage.SERVICE)
    job = account.startProcessingJob(OWNER, "daq", {"filePath": "/dev/null"}, "key-1", storage.ALICE)
    assert job["owner"] == storage.ALICE
    again = account.startProcessingJob(OWNER, "daq", {"filePath": "/dev/null"}, "key-1", storage.ALICE)
    assert again["id"] == job["id"]
    alice = service.api(storage.ALICE)
    assert alice.waitProcessingJob(storage.ALICE, job["id"], 60)["status"] == "done"
    assert service.api(storage.MANAGER).getProcessingJobById(OWNER, job["id"])["id"] == job["id"]


def test_users_may_author_where_the_settings_say_so(
    storage_site: storage.Site, new_mongo_database: Any, certificates: Path, tmp_path: Path
) -> None:
    with running_processing(
        storage_site, new_mongo_database(), certificates, tmp_path, users_may_author=True
    ) as open_to_all:
        alice = open_to_all.api(storage.ALICE)
        assert alice.addWorkflow({"name": "mine", "stages": STAGES})["owner"] == storage.ALICE
        job = alice.startProcessingJob(storage.ALICE, "mine", {"filePath": "x"})
        assert alice.waitProcessingJob(None, job["id"], 60)["status"] == "done"
        with pytest.raises(AuthorizationError):
            alice.addWorkflow({"name": "theirs", "owner": storage.BOB, "stages": STAGES})


def test_the_life_of_a_workflow(service: Running) -> None:
    api = service.api()
    added = api.addWorkflow(
        {"name": "life 1/2 ü", "stages": STAGES, "version": 1, "arguments": {"x": {"choices": [1]}}}
    )
    assert set(added) >= WORKFLOW_KEYS and added["owner"] == added["userAccount"] == OWNER
    assert list(added["stages"]) == ["1", "2"] and len(added["id"]) == 24 and added["description"] == ""
    assert api.getWorkflowByName(OWNER, "life 1/2 ü") == added == api.getWorkflowById(OWNER, added["id"])
    with pytest.raises(ObjectAlreadyExists, match="already exists"):
        api.addWorkflow({"name": "life 1/2 ü", "owner": OWNER, "stages": STAGES})
    copied = api.addWorkflow({**added, "name": "copy"})
    assert copied["id"] != added["id"] and copied["stages"] == added["stages"]
    updated = api.updateWorkflow({"name": "life 1/2 ü", "owner": OWNER, "description": "new", "stages": STAGES})
    assert updated["id"] == added["id"] and updated["description"] == "new" and "version" not in updated
    renamed = api.updateWorkflow({**updated, "name": "renamed"})
    assert renamed["id"] == added["id"]
    assert [found["name"] for found in api.listWorkflows(OWNER, {"id": added["id"]})] == ["renamed"]
    service.workflow(STAGES, "in the way")
    with pytest.raises(ObjectAlreadyExists):
        api.updateWorkflow({**renamed, "name": "in the way"})
    assert api.deleteWorkflowByName(OWNER, "renamed")["id"] == added["id"]
    for missing in (
        lambda: api.getWorkflowByName(OWNER, "renamed"),
        lambda: api.getWorkflowById(OWNER, added["id"]),
        lambda: api.deleteWorkflowByName(OWNER, "renamed"),
        lambda: api.updateWorkflow({"name": "renamed", "owner": OWNER, "stages": STAGES}),
        lambda: api.getWorkflowById(OWNER, "../../x"),
    ):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            missing()
    assert api.upsertWorkflow({"name": "renamed", "owner": OWNER, "stages": STAGES})["id"] != added["id"]
    names = [found["name"] for found in api.listWorkflows()]
    assert names == sorted(names) and "renamed" in names


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"name": "bad", "stages": {}}, "no stages"),
        ({"name": "bad", "stages": {"1": {"command": "x", "outputVariableRegexList": ["("]}}}, "does not compile"),
        ({"name": "bad", "stages": {"1": {"command": "x", "repeatPeriod": 1}}}, "give all three"),
        ({"name": "bad", "owner": "../x", "stages": STAGES}, "invalid owner name"),
    ],
)
def test_a_bad_workflow_changes_nothing(service: Running, spec: dict[str, Any], reason: str) -> None:
    before = service.api().listWorkflows()
    with pytest.raises(InvalidArgument, match=reason):
        service.api().addWorkflow(spec)
    assert service.api().listWorkflows() == before


def test_bad_owners_are_told_in_the_published_words(service: Running) -> None:
    for owner in ("", None):
        with pytest.raises(InvalidArgument, match="invalid owner name"):
            service.api().getWorkflowByName(owner, "x")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="invalid owner name"):
        service.api().listWorkflows("a b")


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_published_requests(service: Running, wrapped: bool) -> None:
    """Paths, queries, empty bodies and the media type as recorded of published clients."""
    context = ssl.create_default_context(cafile=service.site.ca_file)
    with httpx.Client(base_url=f"{service.url.removesuffix('/dm')}/dm", verify=context, timeout=30) as client:
        assert client.get(f"/processingJobsByOwner/{OWNER}").status_code == 401
        form = {"username": OWNER, "password": storage.password_of(OWNER)}
        cookie = client.post("/login", data=form).headers["set-cookie"]
        client.cookies.clear()
        headers = {"Cookie": cookie, "Content-Type": "html"}

        def call(method: str, path: str, **query: Any) -> Any:
            reply = client.request(method, path, params=query, headers=headers, content=b"")
            assert reply.status_code == 200 and reply.headers["Dm-Status-Code"] == "0", reply.text
            return reply.json()

        name = f"published {wrapped}"
        spec = json.dumps({"name": name, "owner": OWNER, "stages": STAGES, "filler": "x" * 20_000})
        coded = quote(twice(name, wrapped), safe="'=")
        added = call("POST", "/workflows/addWorkflow", allowCurrentUsername=0, workflow=twice(spec, wrapped))
        changed = json.dumps({**added, "description": "d"})
        updated = call("PUT", "/workflows/updateWorkflow", allowCurrentUsername=0, workflow=twice(changed, wrapped))
        assert updated["description"] == "d"
        assert call("GET", f"/workflowsByOwner/{OWNER}/{coded}") == updated
        listed = call("GET", f"/workflowsByOwner/{OWNER}", queryDict=twice("{}", wrapped))
        assert updated in listed
        arguments = twice(json.dumps({"filePath": "/dev/null", "x": "ü"}), wrapped)
        job = call("POST", f"/processingJobsByWorkflow/{OWNER}/{coded}/startProcessingJob", argsDict=arguments)
        assert job["countFiles"] == 1 and job["workflow"]["stages"]["1"]["command"] == "date"
        found = call("GET", f"/processingJobsByOwner/{OWNER}/{job['id']}", waitTime=30)
        assert found["status"] == "done" and found["workflow"]["stages"]["2"]["childProcesses"]["1"]["stdOut"] == "ü\n"
        page = {"queryDict": twice("{}", wrapped), "skip": 0, "limit": 5000}
        for keys in ('"ALL"', '"DEFAULT"', '["id", "status"]'):
            (*_, last) = call("GET", f"/processingJobsByOwner/{OWNER}", keyList=twice(keys, wrapped), **page)
            assert last["id"] == job["id"] and ("workflow" in last) == (keys == '"ALL"')
        assert call("GET", "/processingJobs", limit=1)[0]["id"] == job["id"]
        bad = client.get(f"/processingJobsByOwner/{OWNER}", params={"queryDict": "b'###'"}, headers=headers)
        assert bad.status_code == 400 and bad.json()["errorCode"]
        bad = client.get(f"/processingJobsByOwner/{OWNER}", params={"queryDict": '{"$where": "1"}'}, headers=headers)
        assert bad.status_code == 400 and "$where" in bad.json()["errorMessage"]


def test_the_service_monitor(service: Running) -> None:
    password = storage.password_of(OWNER)
    monitor = ServiceMonitorProcApi(OWNER, password, service.url, ca_file=service.site.ca_file)
    try:
        assert monitor.getServiceStatus()["service"] == "processing"
        assert monitor.clearServiceStatus()["status"] in ("ok", "warning")
    finally:
        monitor.close()
