"""What the previous release sends is still understood: its interface, as recorded, is part of ours.

``tests/releases/<release>/<service>.json`` holds each route of that release with the arguments it took.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from dm.common import interface
from dm.common.web import common, openapi

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "tests" / "releases").glob("*/*.json"))


def arguments(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, bool]:
    """Return the arguments of an operation, and whether each must be given."""
    found = {one["name"]: bool(one.get("required")) for one in operation.get("parameters", [])}
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    while "$ref" in body:
        path, body = body["$ref"].split("/")[1:], document
        for key in path:
            body = body[key]
    for name in body.get("properties", {}):
        found.setdefault(name, name in body.get("required", []))
    return found


def ours(service: str) -> dict[str, dict[str, bool]]:
    """Return ``METHOD path`` -> arguments of a service of this release."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    routes = generate.route_table(generate.SERVICES[service][1]) + common.routes(MagicMock())
    document = openapi.document(service, routes)
    return {
        f"{method.upper()} {path}": arguments(document, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def test_something_is_recorded() -> None:
    assert {file.stem for file in RECORDED} == {"storage", "acquisition", "catalog", "processing"}


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_call_of_the_previous_release_is_understood(file: Path) -> None:
    recorded = json.loads(file.read_text())
    assert recorded["interface"].partition(".")[0] == str(interface.MAJOR), (
        "then the interface needs a new major number"
    )
    present = ours(file.stem)
    for call, known in recorded["routes"].items():
        assert call in present, f"{call} is gone"
        lost = set(known) - set(present[call])
        assert not lost, f"{call} does not take {lost} any more"
        demanded = {name for name, must in present[call].items() if must and not known.get(name, {}).get("required")}
        assert not demanded, f"{call} demands {demanded}, which the previous release does not send"
