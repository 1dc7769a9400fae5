"""F-43: every route of every service, with the objects of others: nobody gets at what is not theirs.

The routes tables themselves say what is called; experiments, files, DAQs, jobs ... of one group of people exist for
real, all with one mark in their names, and the others try.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest

from dm.common import tls
from dm.common.client import RestClient
from dm.common.environment import URL_VARIABLES
from dm.common.statuses import INACTIVE
from dm.common.web import common
from dm.common.web.routes import Access, Route, Who
from tests.live import STATION, Suite
from tests.service.route_walk import call, code

MARK = "zq7f"
EXPERIMENT, GONE = f"{MARK}-theirs", f"{MARK}-gone"
FILE = f"{MARK}.dat"
PASSWORD = "pass-word-1"
MEMBER, STRANGER, ELSEWHERE = "d620001", "d620002", "d620003"
SERVICES = ("storage", "facility", "acquisition", "catalog", "processing")
OTHER_STATION = "99ZZ"
SECONDS = 60.0
SESSION_ENDS = {("POST", "/logout"), ("DELETE", "/sessions")}
# What a member may call and changes something, but only of their own.
OWN_CHANGES = {("POST", "/tokens")}
# A manager of any station may reset the alarms of the Facility Service, which is for all.
HARMLESS = {("facility", "DELETE", "/status")}
# Answers that repeat what was asked for, and know nothing of it.
NOT_KNOWN = {"/fileWait": {"path": FILE, "state": "unknown", "reached": False, "over": False}}
OPTIONAL = ("experimentName", "stationName", "path", "username")


@dataclass
class World:
    """The running suite with the objects in question.

    :param values: argument name -> value that names one of them. :param ids: path prefix -> the ``id`` to use below it.
    :param sessions: (service, user) -> session id.
    """

    suite: Suite
    values: dict[str, Any]
    ids: dict[str, str]
    sessions: dict[tuple[str, str], str]

    def url(self, service: str) -> str:
        return self.suite.environment[URL_VARIABLES[service]]

    def rest(self, service: str, username: str, password: str = PASSWORD) -> RestClient:
        return RestClient(self.url(service), username, password, ca_file=self.suite.environment["DM_CA_FILE"])

    def arguments(self, route: Route) -> dict[str, Any]:
        """Return arguments for a route that name the objects."""
        prefix = route.path[1:].partition("/")[0]
        return self.values | ({"id": self.ids[prefix]} if prefix in self.ids else {})


def all_routes(service: str) -> list[Route]:
    """Return the routes of a service that are not public."""
    _, module = _generate().SERVICES[service]
    routes = _generate().route_table(module) + common.routes(MagicMock())
    return [route for route in routes if route.access.who is not Who.PUBLIC]


def _generate() -> ModuleType:
    if "generate" not in _modules:
        file = Path(__file__).parents[2] / "docs" / "generate.py"
        spec = importlib.util.spec_from_file_location("docs_generate", file)
        assert spec is not None and spec.loader is not None
        _modules["generate"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_modules["generate"])
    return _modules["generate"]


_modules: dict[str, ModuleType] = {}


def ended(client: RestClient, path: str) -> dict[str, Any]:
    """Wait for the end of something that runs."""
    deadline = time.monotonic() + SECONDS
    while (record := client.get(path, waitTime=5))["status"] not in INACTIVE:
        assert time.monotonic() < deadline, record
    return dict(record)


@pytest.fixture(scope="module")
def world(suite: Suite, run_directory: Path) -> Iterator[World]:
    made = World(suite, {}, {}, {})
    with made.rest("storage", *suite.administrator) as site:
        for username in (MEMBER, STRANGER, ELSEWHERE):
            site.post("/users", {"username": username, "password": PASSWORD})
        site.post("/stations", {"name": OTHER_STATION})
        elsewhere = {"username": ELSEWHERE, "roleName": "manager", "stationName": OTHER_STATION}
        site.post("/userStationRoles", elsewhere)
        _things(made, run_directory / MARK)
        for service in SERVICES:
            for username in (MEMBER, STRANGER, ELSEWHERE):
                with made.rest(service, username) as client:
                    client.login()
                    made.sessions[service, username] = str(client.cookie)
        yield made
        site.delete("/userStationRoles", **elsewhere)
        site.delete(f"/stations/{OTHER_STATION}")


def _things(world: World, source: Path) -> None:
    """Make what others shall not get at."""
    owner = world.suite.manager[0]
    clients = {service: world.rest(service, *world.suite.manager) for service in SERVICES}
    storage, acquisition, catalog, processing = (clients[name] for name in ("storage", *SERVICES[2:]))
    of_experiment = {"experimentName": EXPERIMENT, "stationName": STATION}
    experiment = storage.post("/experiments", of_experiment | {"typeName": "TEST", "usernames": [MEMBER]})
    gone = storage.post("/experiments", of_experiment | {"typeName": "TEST", "experimentName": GONE})
    operation = storage.delete(f"/experimentsById/{gone['id']}")
    source.mkdir()
    (source / FILE).write_bytes(MARK.encode())
    begun = {"experimentName": EXPERIMENT, "dataDirectory": str(source)}
    upload, daq = acquisition.post("/uploads", begun), acquisition.post("/daqs", begun)
    acquisition.post(f"/daqs/{daq['id']}/stop")
    workflow = processing.post(
        "/workflows/addWorkflow",
        {"workflow": {"name": MARK, "owner": owner, "stages": {"1": {"command": f"echo {MARK}"}}}},
    )
    job = processing.post(
        f"/processingJobsByWorkflow/{owner}/{MARK}/startProcessingJob", {"argsDict": {"filePath": f"/{MARK}"}}
    )
    ended(acquisition, f"/uploads/{upload['id']}")
    ended(acquisition, f"/daqs/{daq['id']}")
    ended(processing, f"/processingJobsById/{job['id']}")
    catalog.post(
        f"/experimentDatasets/{EXPERIMENT}", {"datasetInfo": {"datasetName": MARK, "experimentFilePathPattern": "*"}}
    )
    dataset = catalog.get(f"/experimentDatasets/{EXPERIMENT}/{MARK}")
    run = catalog.post(f"/experimentRuns/{EXPERIMENT}", {"runInfo": {"runId": MARK}})
    changing = catalog.post(f"/fileUpdates/{EXPERIMENT}", {"files": [{"experimentFilePath": FILE, "note": MARK}]})
    (file,) = catalog.get(f"/experimentFiles/{EXPERIMENT}", keyList="ALL")
    world.values.update(
        of_experiment,
        experimentId=experiment["id"], operationId=operation["id"], batchId="00000000-0000-4000-8000-000000000000",
        grantId=storage.post("/grants", of_experiment | {"purpose": "upload"})["id"],
        tokenId=storage.post("/tokens", {"name": MARK, "scopes": ["read"]})["id"],
        purpose="upload", path=FILE, paths=[FILE], experimentFilePath=FILE, relativePath=FILE,
        dataDirectory=str(source), username=owner, roleName="User", owner=owner, name=MARK, workflow=MARK,
        jobId=job["id"], number="0", revision="1", date="today", datasetName=MARK, runId=run["runId"],
        updateId=changing["id"], scopes=["read"],
        newPassword=PASSWORD, oldPassword=PASSWORD, newExperimentName=f"{MARK}-x", startDate="2026-01-01",
        endDate="2026-12-31",
    )  # fmt: skip
    world.ids.update(
        daqs=daq["id"], uploads=upload["id"], workflowsById=workflow["id"], experimentFilesById=file["id"],
        datasetsById=dataset["id"],
    )  # fmt: skip
    world.values["workflows"] = workflow
    for client in clients.values():
        client.close()


def called(world: World, http: httpx.Client, service: str, route: Route, username: str | None) -> httpx.Response:
    """Call a route with the objects in question as somebody, or as nobody."""
    arguments = world.arguments(route)
    if route.path.startswith("/workflows/"):
        arguments["workflow"] = {"name": MARK, "owner": arguments["owner"], "stages": {"1": {"command": "true"}}}
    if route.path.startswith("/deletedExperimentsById/"):
        arguments["experimentId"] = world.values["experimentId"] + 1
    session = world.sessions[service, username] if username else None
    reply = call(http, world.url(service).removesuffix("/dm") + "/dm", route, arguments, session, OPTIONAL)
    assert reply.status_code < 500, f"{route.method} {route.path}: {reply.text[:300]}"
    return reply


@pytest.fixture(scope="module")
def http(suite: Suite) -> Iterator[httpx.Client]:
    with httpx.Client(verify=tls.client_context(suite.environment["DM_CA_FILE"]), timeout=30) as client:
        yield client


def of_experiment(access: Access) -> bool:
    """Whether a route's rule speaks of an experiment."""
    return access.who in (Who.EXPERIMENT, Who.PI) or (access.argument or "").startswith("experiment_")


@pytest.mark.parametrize("service", SERVICES)
def test_f43_nobody_gets_anywhere(world: World, http: httpx.Client, service: str) -> None:
    for route in all_routes(service):
        reply = called(world, http, service, route, None)
        assert (reply.status_code, code(reply)) == (401, 6), f"{route.method} {route.path}"


@pytest.mark.parametrize("username", [STRANGER, ELSEWHERE])
@pytest.mark.parametrize("service", SERVICES)
def test_f43_the_objects_of_others(world: World, http: httpx.Client, service: str, username: str) -> None:
    for route in all_routes(service):
        what = f"{route.method} {route.path} as {username}"
        if (route.method, route.path) in SESSION_ENDS:
            continue
        reply = called(world, http, service, route, username)
        shown = f"{what}: {reply.status_code} {reply.text[:300]}"
        if of_experiment(route.access):
            assert (reply.status_code, code(reply)) == (404, 14), shown
        elif reply.is_success:
            assert route.method == "GET" or (service, route.method, route.path) in HARMLESS, shown
            assert MARK not in reply.text or reply.json() == NOT_KNOWN.get(route.path), shown
        else:
            assert (reply.status_code, code(reply)) in {(403, 5), (404, 14)}, shown


@pytest.mark.parametrize("service", SERVICES)
def test_f43_what_a_member_sees_and_may_not_change(world: World, http: httpx.Client, service: str) -> None:
    for route in all_routes(service):
        if (route.method, route.path) in SESSION_ENDS | OWN_CHANGES:
            continue
        reply = called(world, http, service, route, MEMBER)
        shown = f"{route.method} {route.path}: {reply.status_code} {reply.text[:300]}"
        if route.access.who is Who.EXPERIMENT and route.method == "GET":
            assert reply.is_success or "has no Globus group" in reply.text, shown
        elif route.access.who in (Who.PI, Who.MANAGER, Who.ADMIN, Who.SERVICE):
            assert (reply.status_code, code(reply)) == (403, 5), shown


def test_f43_all_is_still_there(world: World) -> None:
    """After all those calls nothing of it has changed."""
    manager = world.suite.manager
    with world.rest("storage", *manager) as storage, world.rest("processing", *manager) as processing:
        record = storage.get(f"/experimentsByName/{EXPERIMENT}/{STATION}")
        assert [user["username"] for user in record["experimentUsers"]] == [MEMBER]
        assert [file["experimentFilePath"] for file in storage.get("/files", experimentName=EXPERIMENT)["files"]] == [
            FILE
        ]
        assert processing.get(f"/processingJobsById/{world.values['jobId']}")["status"] == "done"
        assert world.values["tokenId"] in [token["id"] for token in storage.get("/tokens")]
        stages = processing.get(f"/workflowsById/{world.ids['workflowsById']}")["stages"]
        assert stages["1"]["command"] == f"echo {MARK}"
    with world.rest("catalog", *manager) as catalog:
        assert len(catalog.get(f"/experimentFiles/{EXPERIMENT}")) == 1
        assert len(catalog.get(f"/experimentDatasets/{EXPERIMENT}")) == 1


def test_f43_who_started_a_daq_and_is_no_manager_any_more(world: World) -> None:
    with world.rest("storage", *world.suite.administrator) as site:
        role = {"username": STRANGER, "roleName": "manager", "stationName": STATION}
        site.post("/userStationRoles", role)
        with world.rest("acquisition", STRANGER) as before:
            task = before.post(
                "/uploads", {"experimentName": EXPERIMENT, "dataDirectory": world.values["dataDirectory"]}
            )
            ended(before, f"/uploads/{task['id']}")
        site.delete("/userStationRoles", **role)
    deadline = time.monotonic() + SECONDS
    while True:  # until the station has heard of it
        with world.rest("acquisition", STRANGER) as after:
            if after.get("/session")["stationRoles"] == {}:
                assert after.send("GET", f"/uploads/{task['id']}").status_code == 404
                assert after.send("GET", f"/uploads/{task['id']}/files").status_code == 404
                assert after.get("/uploads") == []
                return
        assert time.monotonic() < deadline
