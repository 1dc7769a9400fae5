"""What is generated from a routes table: the OpenAPI document and the reference page."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field

from dm.common.web.openapi import document, reference
from dm.common.web.routes import PUBLIC, USER, Access, Arguments, Route, Who


class Inner(BaseModel):
    path: str


class Start(Arguments):
    experiment_name: str = Field(description="Name of the experiment.")
    data_directory: str
    task_info: dict[str, Any] = Field(default_factory=dict, description="Settings | of the DAQ.")
    skip: int = 0
    files: list[Inner] | None = None


class Esaf(Arguments):
    station: str
    beamline: str | None = None


ROUTES = [
    Route("GET", "/status", lambda request, arguments: {}, PUBLIC, "Tell how it is."),
    Route(
        "POST",
        "/experimentsByName/{experimentName}/startDaq/{dataDirectory}",
        lambda request, arguments: {},
        Access(Who.EXPERIMENT, "experiment_name"),
        "Start a DAQ.",
        Start,
        frozenset({"experimentName", "dataDirectory", "taskInfo"}),
        body_limit=8 << 20,
    ),
    Route("GET", "/esaf/{station}[/{beamline}]", lambda request, arguments: [], USER, "List ESAFs.", Esaf),
]


def test_document():
    found = document("acquisition", ROUTES)
    json.dumps(found)
    assert found["openapi"] == "3.1.0"
    assert set(found["paths"]) == {
        "/dm/status",
        "/dm/experimentsByName/{experimentName}/startDaq/{dataDirectory}",
        "/dm/esaf/{station}/{beamline}",
        "/dm/esaf/{station}",
    }
    start = found["paths"]["/dm/experimentsByName/{experimentName}/startDaq/{dataDirectory}"]["post"]
    places = {parameter["name"]: parameter["in"] for parameter in start["parameters"]}
    assert places == {
        "experimentName": "path", "dataDirectory": "path", "taskInfo": "query", "skip": "query", "files": "query",
    }  # fmt: skip
    assert start["security"] == [{"session": []}, {"token": []}]
    assert set(found["components"]["securitySchemes"]) == {"session", "token"}
    assert found["paths"]["/dm/status"]["get"]["security"] == []
    body = start["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"taskInfo", "skip", "files"}, "what is in the path is not in the body"
    assert "required" not in body, "it may be in the query"
    assert body["additionalProperties"] is False
    ids = [operation["operationId"] for path in found["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids) == 4
    assert "AuthorizationError" in found["components"]["schemas"]["Error"]["properties"]["errorClass"]["enum"]


def test_every_reference_in_the_document_leads_somewhere():
    found = document("acquisition", ROUTES)

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = found
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(found)


def test_reference_page():
    page = reference("acquisition", ROUTES)
    assert page.startswith("# REST interface of the acquisition service\n")
    assert "## POST /dm/experimentsByName/{experimentName*}/startDaq/{dataDirectory*}" in page
    assert "## GET /dm/esaf/{station}[/{beamline}]" in page
    assert "| taskInfo* | object | no | Settings \\| of the DAQ. |" in page
    assert "| experimentName* | string | yes | Name of the experiment. |" in page
    assert "| skip | integer | no, default `0` |" in page
    assert "Largest request body: 8,388,608 bytes." in page
    assert "Who may call: anybody, without a session." in page
    assert reference("acquisition", ROUTES) == page, "the same each time, for drift tests"
