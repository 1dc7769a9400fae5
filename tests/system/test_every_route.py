"""Every route of the services has answered well at least once, as their own metrics say.

Runs after ``test_every_api_method.py`` of the same run, whose calls count; what no API method calls is called here.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import urlencode

import httpx
import pytest

from dm.common import tls
from dm.common.client import RestClient
from dm.common.environment import URL_VARIABLES
from dm.common.errors import InvalidSession
from dm.common.statuses import INACTIVE
from dm.common.web import common, openapi
from dm.common.web.table import compile_route
from tests.live import ANSWERED_ELSEWHERE, STATION, Suite, answered_well

SERVICES = ("storage", "facility", "acquisition", "catalog", "processing")
EXPERIMENT = "every-route"
SECONDS = 60.0


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """The module that makes the reference pages from the routes tables."""
    spec = importlib.util.spec_from_file_location("docs_generate", Path(__file__).parents[2] / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clients(suite: Suite) -> Iterator[dict[str, RestClient]]:
    """Service name -> REST client under the station manager's account."""
    made = {
        service: RestClient(
            suite.environment[URL_VARIABLES[service]], *suite.manager, ca_file=suite.environment["DM_CA_FILE"]
        )
        for service in SERVICES
    }
    yield made
    for client in made.values():
        client.close()


@pytest.fixture(scope="module")
def called(clients: dict[str, RestClient], suite: Suite, run_directory: Path) -> None:
    """Routes that no API method calls: for other clients, or another spelling of what the API calls."""
    storage = clients["storage"]
    experiment = storage.post(
        "/experiments", {"experimentName": EXPERIMENT, "stationName": STATION, "typeName": "TEST"}
    )
    by_name = f"/experimentsByName/{EXPERIMENT}/{STATION}"
    assert storage.put(by_name, {"description": "by name"})["description"] == "by name"
    assert storage.get(f"/experimentsByName/{EXPERIMENT}")["description"] == "by name"
    archive = storage.download(f"/experimentsById/{experiment['id']}/archive", run_directory / "every-route.tar")
    assert archive.stat().st_size >= 1024  # the end of a tar at least

    source = run_directory / "every-route"
    source.mkdir()
    (source / "f").write_bytes(b"1")
    acquisition = clients["acquisition"]
    acquisition.login()
    form = urlencode({"experimentName": EXPERIMENT, "dataDirectory": str(source), "taskInfo": '{"note": "a form"}'})
    started = acquisition.send(
        "POST", "/daqs", content=form.encode(), headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    daq = started.json()
    assert (daq["experimentName"], daq["note"]) == (EXPERIMENT, "a form")
    assert acquisition.post(f"/daqs/{daq['id']}/stop")["id"] == daq["id"]
    upload = acquisition.post("/uploads", {"experimentName": EXPERIMENT, "dataDirectory": str(source)})
    for path in (f"/daqs/{daq['id']}", f"/uploads/{upload['id']}"):
        deadline = time.monotonic() + SECONDS
        while (record := acquisition.get(path, waitTime=5))["status"] not in INACTIVE:
            assert time.monotonic() < deadline, record
        assert record["status"] == "done"
        assert acquisition.delete(path)["id"] == record["id"]

    processing, owner = clients["processing"], suite.manager[0]
    sleeping = {"name": EXPERIMENT, "owner": owner, "stages": {"1": {"command": "sleep 300"}}}
    processing.post("/workflows/addWorkflow", {"workflow": sleeping})
    arguments = {"argsDict": {"filePath": "/dev/null"}}
    job = processing.post(f"/processingJobsByWorkflow/{owner}/{EXPERIMENT}/startProcessingJob", arguments)
    pages = processing.get("/processingJobPages", limit=5)
    assert job["id"] in [one["id"] for one in pages["jobs"]]
    assert processing.post(f"/processingJobsByOwner/{owner}/{job['id']}/abortProcessingJob")["id"] == job["id"]

    clients["catalog"].post(f"/experimentFiles/{EXPERIMENT}", {"fileInfo": {"experimentFilePath": "added"}})
    found = clients["catalog"].get(f"/experimentFiles/{EXPERIMENT}", limit=5, keyList=["fileName"])
    assert {"fileName": "added"} in found


@pytest.mark.parametrize("service", SERVICES)
def test_sessions_and_descriptions(clients: dict[str, RestClient], suite: Suite, service: str) -> None:
    """The routes that every service has."""
    client = clients[service]
    username = suite.manager[0]
    assert client.get("/session") == {"username": username, "systemRoles": [], "stationRoles": {STATION: ["manager"]}}
    paths = client.get("/openapi")["paths"]
    assert {"/login", "/logout", "/session", "/status", "/metrics", "/openapi"} <= {
        path.removeprefix("/dm") for path in paths
    }
    other = RestClient(client.url, *suite.manager, ca_file=suite.environment["DM_CA_FILE"])
    other.login()
    session = other.cookie
    other.post("/logout")
    other.close()
    stale = RestClient(client.url, session=session, ca_file=suite.environment["DM_CA_FILE"])
    with pytest.raises(InvalidSession):
        stale.get("/session")
    stale.close()
    for prefix in ("", "/dm"):  # monitoring programs know no prefix
        url = client.url.removesuffix("/dm") + prefix
        with httpx.Client(verify=tls.client_context(suite.environment["DM_CA_FILE"])) as http:
            assert http.get(f"{url}/status").json()["status"] in ("ok", "warning")
            assert "dm_requests_total{" in http.get(f"{url}/metrics").text


def operations(document: dict[str, Any]) -> set[tuple[str, str]]:
    """Return method and path of everything an OpenAPI document describes."""
    return {(method, path) for path, item in document["paths"].items() for method in item}


@pytest.mark.usefixtures("called")
@pytest.mark.parametrize("service", SERVICES)
def test_every_route_has_answered(clients: dict[str, RestClient], generate: ModuleType, service: str) -> None:
    _, module = generate.SERVICES[service]
    routes = generate.route_table(module) + common.routes(MagicMock())
    described = operations(clients[service].get("/openapi"))
    assert described == operations(openapi.document(service, routes))  # the running service has these and no others
    table = {(route.method, compile_route(route).template) for route in routes}
    missing = table - answered_well(clients[service]) - ANSWERED_ELSEWHERE.get(service, set())
    assert not missing, (
        f"{service} has not answered {', '.join(' '.join(route) for route in sorted(missing))} with a 2xx status "
        "(test_every_api_method.py must run before, in the same run)"
    )
