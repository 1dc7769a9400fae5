"""F-45, F-46: operators, SQL and markup in names, values and queries are data, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from dm.common.client import RestClient, segment
from dm.common.environment import URL_VARIABLES
from dm.common.errors import DmException, InvalidArgument, InvalidRequest
from tests.live import STATION, Suite
from tests.system.test_following import terminal

SQL = [
    "'; DROP TABLE users; --",
    '" OR "1"="1',
    "1) UNION SELECT password_hash FROM users --",
    "%",
    "_",
    "\\",
    "$1",
    ":x",
]
MARKUP = [
    "<script>alert(1)</script>",
    "javascript:alert(1)",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "\x1b]0;owned\x07",
    "\u202egpj",
]
OPERATORS: list[dict[str, Any]] = [
    {"$where": "sleep(5000) || true"},
    {"experimentName": {"$ne": None}},
    {"$or": [{"experimentName": {"$gt": ""}}, {}]},
    {"path": {"$regex": "(a+)+$"}},
    {"$expr": {"$function": {"body": "function() {return true}", "args": [], "lang": "js"}}},
    {"$jsonSchema": {}},
    {"$lookup": {"from": "users"}},
    {"a\0b": 1},
]


@pytest.fixture(scope="module")
def clients(suite: Suite) -> Iterator[dict[str, RestClient]]:
    environment = suite.environment
    with ExitStack() as stack:
        yield {
            service: stack.enter_context(
                RestClient(environment[URL_VARIABLES[service]], *suite.manager, ca_file=environment["DM_CA_FILE"])
            )
            for service in ("storage", "catalog", "processing")
        }


@pytest.fixture(scope="module")
def experiment(clients: dict[str, RestClient]) -> str:
    name = "data-stays-data"
    clients["storage"].post("/experiments", {"experimentName": name, "stationName": STATION, "typeName": "TEST"})
    return name


@pytest.mark.parametrize("text", SQL)
def test_f45_sql_is_text(clients: dict[str, RestClient], experiment: str, suite: Suite, text: str) -> None:
    storage = clients["storage"]
    changed = storage.put(f"/experimentsByName/{experiment}/{STATION}", {"description": text})
    assert changed["description"] == text
    for path in (f"/experimentsByName/{segment(text)}/{STATION}", f"/experimentsByStation/{segment(text)}",
                 f"/usersByUsername/{segment(text)}"):  # fmt: skip
        with pytest.raises(DmException) as refusal:
            storage.get(path)
        assert refusal.value.http_status in (400, 403, 404), refusal.value
    with pytest.raises(DmException) as login:
        RestClient(storage.url, text, text, ca_file=suite.environment["DM_CA_FILE"]).login()
    assert login.value.http_status == 401
    assert storage.get("/session")["username"] == suite.manager[0], "the table of users is still there"


@pytest.mark.parametrize("query", OPERATORS, ids=lambda query: next(iter(query)).replace("\0", "NUL"))
def test_f45_operators_are_refused_or_find_no_more(
    clients: dict[str, RestClient], experiment: str, query: dict[str, Any]
) -> None:
    catalog = clients["catalog"]
    path = f"/experimentFilePages/{segment(experiment)}"
    assert catalog.get(path)["files"] == [], "the experiment has no files"
    try:
        found = catalog.get(path, queryDict=query)
    except (InvalidArgument, InvalidRequest) as refusal:
        assert "no path" not in str(refusal) and refusal.http_status == 400
        return
    assert found["files"] == [], "no operator reaches those of others"


@pytest.mark.parametrize("key", ["$set", "a.b", "__proto__", "constructor", "", "$where"])
def test_f45_keys_of_metadata_are_data(clients: dict[str, RestClient], experiment: str, key: str) -> None:
    storage = clients["storage"]
    path = f"/experimentsByName/{experiment}/{STATION}"
    try:
        storage.put(path, {"metadata": {key: {"$ne": 1}}})
    except DmException as refusal:
        assert refusal.http_status == 400, refusal
        return
    assert storage.get(path)["metadata"][key] == {"$ne": 1}


@pytest.mark.parametrize("text", MARKUP)
def test_f46_markup_comes_back_as_json_that_no_browser_runs(
    clients: dict[str, RestClient], experiment: str, text: str
) -> None:
    storage = clients["storage"]
    path = f"/experimentsByName/{experiment}/{STATION}"
    storage.put(path, {"description": text})
    reply = storage.send("GET", path)
    assert json.loads(reply.text)["description"] == text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.text.isascii() and "\x1b" not in reply.text


def test_f46_a_terminal_is_not_steered_by_names(clients: dict[str, RestClient], experiment: str, suite: Suite) -> None:
    text = "\x1b]0;owned\x07\x1b[2J\u202egpj \x9b31m"
    clients["storage"].put(f"/experimentsByName/{experiment}/{STATION}", {"description": text})
    with terminal(suite, "dm-get-experiment", "--experiment", experiment, "--display-keys", "description") as shown:
        seen = shown.read(until="x9b31m")
    assert "\x07" not in shown.seen and "\x1b]0" not in shown.seen and "\x1b[2J" not in shown.seen
    assert "\u202e" not in shown.seen and "\x9b" not in shown.seen
    assert r"\x1b]0;owned\x07\x1b[2J\u202egpj \x9b31m" in seen
