"""Dispatch on raw paths, and rows that are refused when the table is made."""

from __future__ import annotations

import pytest

from dm.common.errors import ConfigurationError, InvalidRequest
from dm.common.web.arguments import encode
from dm.common.web.routes import PUBLIC, USER, Access, Arguments, Route, Who
from dm.common.web.table import RouteTable, UnknownMethodError, UnknownPathError


class Names(Arguments):
    name: str = ""
    station: str = ""
    beamline: str | None = None


def route(path: str, method: str = "GET", **options) -> Route:
    return Route(method, path, lambda request, arguments: path, options.pop("access", USER), "x", Names, **options)


def table() -> RouteTable:
    return RouteTable(
        [
            route("/status", access=PUBLIC),
            route("/experiments"),
            route("/experiments", "POST"),
            route("/experiments/getByName"),
            route("/experiments/{name}"),
            route("/experiments/{name}", "DELETE"),
            route("/experiments/{name}/{station}"),
            route("/esaf/{station}[/{beamline}]", coded=frozenset({"station", "beamline"})),
        ]
    )


def found(path: str, method: str = "GET") -> tuple[str, dict[str, str]]:
    match = table().match(method, path)
    return match.entry.route.path, match.path


@pytest.mark.parametrize(
    ("path", "template", "values"),
    [
        ("/status", "/status", {}),
        ("/dm/status", "/status", {}),
        ("/dm/experiments", "/experiments", {}),
        ("/dm/experiments/getByName", "/experiments/getByName", {}),
        ("/dm/experiments/getbyname", "/experiments/{name}", {"name": "getbyname"}),
        ("/dm/%65xperiments/a", "/experiments/{name}", {"name": "a"}),
        ("/dm/experiments/a%2Fb", "/experiments/{name}", {"name": "a/b"}),
        ("/dm/experiments/a+b", "/experiments/{name}", {"name": "a+b"}),
        ("/dm/experiments/%ff%00%zz", "/experiments/{name}", {"name": "\udcff\0%zz"}),
        ("/dm/experiments/\xff", "/experiments/{name}", {"name": "\udcff"}),
        ("/dm/experiments/..", "/experiments/{name}", {"name": ".."}),
        ("/dm/experiments/a/getByName", "/experiments/{name}/{station}", {"name": "a", "station": "getByName"}),
        ("/dm/experiments/getByName/x", "/experiments/{name}/{station}", {"name": "getByName", "station": "x"}),
        ("/dm/esaf/S", "/esaf/{station}[/{beamline}]", {"station": "S"}),
        ("/dm/esaf/S/", "/esaf/{station}[/{beamline}]", {"station": "S"}),
        ("/dm/esaf/S/b''", "/esaf/{station}[/{beamline}]", {"station": "S"}),
        ("/dm/esaf/S/%62%27%27", "/esaf/{station}[/{beamline}]", {"station": "S"}),
        ("/dm/esaf/S/B", "/esaf/{station}[/{beamline}]", {"station": "S", "beamline": "B"}),
        (
            f"/dm/esaf/S/{encode('25-ID')}",
            "/esaf/{station}[/{beamline}]",
            {"station": "S", "beamline": encode("25-ID")},
        ),
    ],
)
def test_paths(path, template, values):
    assert found(path) == (template, values)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/dm",
        "/dm/",
        "/experiments",
        "/DM/experiments",
        "/dmexperiments",
        "/dm//experiments",
        "/dm/experiments/",
        "/dm/experiments/a/",
        "/dm/experiments/a/b/c",
        "/dm/status/",
        "/dm/esaf",
        "/dm/esaf/",
        "/dm/esaf/S/B/",
        "/x/dm/status",
        "/dm/experiments//b",
        "/status/x",
        "/dm/esaf//B",
    ],
)
def test_unknown_paths(path):
    with pytest.raises(UnknownPathError):
        table().match("GET", path)


def test_other_methods_are_named():
    with pytest.raises(UnknownMethodError) as caught:
        table().match("PUT", "/dm/experiments")
    assert caught.value.allowed == ["GET", "POST"]
    with pytest.raises(UnknownMethodError) as caught:
        table().match("POST", "/dm/experiments/getByName")
    assert caught.value.allowed == ["GET", "DELETE"]


def test_method_of_a_variable_branch_is_found_behind_a_literal_one():
    assert found("/dm/experiments/getByName", "DELETE") == ("/experiments/{name}", {"name": "getByName"})


def test_malformed_code_in_an_optional_segment_is_a_bad_request():
    with pytest.raises(InvalidRequest, match="'beamline'"):
        found("/dm/esaf/S/b'!!'")


def test_a_thousand_segments_are_quick():
    with pytest.raises(UnknownPathError):
        table().match("GET", "/dm" + "/experiments" * 40_000)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([route("/a", "PATCH")], "the method is not one of"),
        ([route("a")], "must start with '/'"),
        ([route("/dm/a")], "leave out '/dm'"),
        ([route("/a/")], "is malformed"),
        ([route("/a/x{name}")], "is malformed"),
        ([route("/a/{colour}")], "has no {colour}"),
        ([route("/a", coded=frozenset({"colour"}))], "coded arguments"),
        ([route("/a", access=Access(Who.OWNER, "owner"))], "access argument 'owner'"),
        ([route("/a/{name}"), route("/a/{station}")], "Two routes for GET"),
        ([route("/a/{name}"), route("/a[/{station}]")], "Two routes for GET"),
    ],
)
def test_rows_that_cannot_work(rows, why):
    with pytest.raises(ConfigurationError, match=why):
        RouteTable(rows)
