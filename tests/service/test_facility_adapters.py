"""The adapters against what facilities have: files, databases, a web service; all with names of their own."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from dm.common.errors import CommunicationError, ConfigurationError
from dm.site.facility.adapters.base import FacilityAdapter, Person
from dm.site.facility.adapters.loading import load
from dm.site.facility.settings import FacilitySettings, StationSelection, TemplateSettings
from tests.service.facility_fixtures import Web, http_settings, running_web


class Own(FacilityAdapter):
    """What a facility writes that has none of these."""

    provides = frozenset({"beamlines"})

    def beamlines(self) -> Iterator[dict[str, Any]]:
        yield {"name": "1-BM"}

    def check(self) -> None:
        """It always answers."""


def made(table: dict[str, Any], file: Path | str = "settings") -> FacilityAdapter:
    settings = FacilitySettings.model_construct(adapters={"one": table})
    return load(settings, file)["one"]


def left_out(adapter: FacilityAdapter) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    adapter.on_rejected = lambda kind, which, why: found.append((which, why))
    return found


# --- settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "adapter is missing; name one of csv, http, sql"),
        ({"adapter": "cvs"}, "Did you mean 'csv'"),
        ({"adapter": "csv"}, "facility.adapters.one.directory is missing"),
        ({"adapter": "csv", "directory": "x", "separator": ";"}, "unknown key facility.adapters.one.separator"),
        ({"adapter": "csv", "directory": "x", "fields": {"proposal": {}}}, "'proposal' is no kind of record"),
        ({"adapter": "sql", "queries": {}}, "give either url or url_file"),
        ({"adapter": "sql", "url": "sqlite://", "queries": {"people": "x"}}, "'people' is no query we ask"),
        ({"adapter": "http", "url": "http://example.org", "paths": {}}, "take an https address"),
        ({"adapter": "http", "url": "https://a:b@example.org", "paths": {}}, "keep the password out"),
        ({"adapter": "json:JSONDecoder"}, "is not a FacilityAdapter class"),
    ],
)
def test_settings_that_do_not_fit(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(table)
    assert message in str(caught.value)


def test_an_adapter_of_the_facilitys_own() -> None:
    adapter = made({"adapter": f"{__name__}:Own"})
    assert (adapter.name, list(adapter.beamlines())) == ("one", [{"name": "1-BM"}])
    with pytest.raises(ConfigurationError, match="'one' has no runs"):
        adapter.runs()


def test_the_examples_of_the_how_to_fit(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "facility-adapter.md").read_text()
    (tmp_path / "facility").mkdir()
    seen = set()
    for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL):
        values = tomllib.loads(block).get("facility", {})
        seen |= set(values)
        if "adapters" in values:
            load(FacilitySettings.model_construct(adapters=values["adapters"]), tmp_path / "dm.toml")
        for station in values.get("stations", {}).values():
            StationSelection(**station)
        if "templates" in values:
            assert TemplateSettings(**values["templates"]) == TemplateSettings()
    assert seen == {"adapters", "stations", "templates"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        compile(block, "facility-adapter.md", "exec")


def test_templates_know_their_fields() -> None:
    with pytest.raises(ValueError, match=r"there is no field \{name\}"):
        TemplateSettings(esaf_name="{name}")


# --- csv -------------------------------------------------------------------------------------------------------


def test_csv_files_with_names_of_their_own_and_bad_lines(tmp_path: Path) -> None:
    (tmp_path / "esafs.csv").write_text(
        "form;headline;from;to;secret\n"
        '7;"a; b";2026-01-01;2026-01-02;x\n'
        "8;too few cells\n"
        '9;"never" closed;2026-01-01;2026-01-02;x\n'
        "10;too;2026-01-01;2026-01-02;x;many\n"
        "11;last;2026-01-01;2026-01-02;x\n"
    )
    (tmp_path / "esaf_people.csv").write_text("recordId;badge\n7;1\n0007;2\n99;3\n")
    (tmp_path / "beamlines.json").write_text('[{"name": "1-BM"}, "no record", {"name": "2-BM"}]')
    adapter = made(
        {
            "adapter": "csv",
            "directory": str(tmp_path),
            "delimiter": ";",
            "fields": {"esafs": {"esafId": "form", "esafTitle": "headline", "experimentStartDate": "from"}},
            "constants": {"esafs": {"sector": "01"}},
        }
    )
    assert adapter.provides == {"esafs", "beamlines"}
    bad = left_out(adapter)
    found = list(adapter.esafs(2026))
    assert [one["esafId"] for one in found] == ["7", "11"]
    assert found[0] == {
        "esafId": "7",
        "esafTitle": "a; b",
        "experimentStartDate": "2026-01-01",
        "sector": "01",
        "experimentUsers": [{"badge": "1"}, {"badge": "2"}],
    }
    assert [which for which, _ in bad] == ["line 3", "line 4", "line 5"]
    assert [one["name"] for one in adapter.beamlines()] == ["1-BM", "2-BM"]
    assert bad[3:] == [("record 2", "it is no record")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("runs.csv", b"", "no line of column names"),
        ("runs.csv", b"name,name\n", "a column twice"),
        ("runs.csv", b"name\n\xff\xfe\xff\n", "is no utf-8-sig text"),
        ("runs.json", b"{", "is no JSON"),
        ("runs.json", b'{"name": "1"}', "is no JSON list"),
        ("runs.json", b"[" * 100_000, "is no JSON"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    adapter = made({"adapter": "csv", "directory": str(tmp_path)})
    with pytest.raises(CommunicationError, match=message):
        list(adapter.runs())
    (tmp_path / name).unlink()
    with pytest.raises(CommunicationError, match="does not exist"):
        list(adapter.runs())


def test_people_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(
        "no,Badge,Vorname,Name,mail,hash,gone\n"
        "a1,00123,Ada,One,ada@example.org,{SSHA512}x,N\n"
        "a2,,Without,Badge,,,\n"
        "a1,124,Same,Key,,,\n"
        "a3,12x,Bad,Badge,,,\n"
        "a4,125,Left,Us,,,N\n"
    )
    names = {
        "key": "no", "badge": "Badge", "firstName": "Vorname", "lastName": "Name", "email": "mail",
        "passwordHash": "hash",
    }  # fmt: skip
    adapter = made({"adapter": "csv", "directory": str(tmp_path), "fields": {"users": names}})
    bad = left_out(adapter)
    assert list(adapter.users()) == [
        Person("a1", 123, "d123", "Ada", "", "One", "ada@example.org", "", "{SSHA512}x", True),
        Person("a4", 125, "d125", "Left", "", "Us"),
    ]
    assert [which for which, _ in bad] == ["user 'a2'", "user 'a1'", "user 'a3'"]
    assert "SSHA512" not in repr(next(adapter.users()))


# --- sql -------------------------------------------------------------------------------------------------------

TABLES = (
    "CREATE TABLE cycle (label TEXT, first TEXT, last TEXT)",
    "INSERT INTO cycle VALUES ('2026-1', '2026-01-01', '2026-04-30')",
    "CREATE TABLE beamtime (gup INTEGER, headline TEXT, label TEXT, starts TIMESTAMP, ends TIMESTAMP)",
    "INSERT INTO beamtime VALUES (1, 'one', '2026-1', '2026-02-01 08:00:00', '2026-02-02 08:00:00')",
    "INSERT INTO beamtime VALUES (2, 'two', '2025-3', '2025-10-01 08:00:00', '2025-10-02 08:00:00')",
    "CREATE TABLE team (gup INTEGER, badge INTEGER, name TEXT, leads TEXT)",
    "INSERT INTO team VALUES (1, 111111, 'Last', 'Y'), (1, 222222, 'Other', NULL), (2, 333333, 'Third', 'Y')",
)


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, new_postgres_database: Callable[[], str], tmp_path: Path) -> str:
    if request.param == "sqlite":
        with sqlite3.connect(tmp_path / "facility.db") as connection:
            for statement in TABLES:
                connection.execute(statement)
        connection.close()
        return f"sqlite:///{tmp_path}/facility.db"
    url = new_postgres_database()
    engine = create_engine(url)
    with engine.begin() as writing:
        for statement in TABLES:
            writing.execute(text(statement))
    engine.dispose()
    return url


QUERIES = {
    "runs": "SELECT label, first, last FROM cycle",
    "proposals": "SELECT gup, headline, label, starts, ends FROM beamtime WHERE label = :run",
    "proposal_people": "SELECT t.gup, badge, name, leads FROM team t JOIN beamtime b ON b.gup = t.gup"
    " WHERE b.label = :run ORDER BY badge",
}
FIELDS = {
    "runs": {"name": "label", "startTime": "first", "endTime": "last"},
    "proposals": {"id": "gup", "title": "headline", "run": "label", "startTime": "starts", "endTime": "ends"},
    "people": {"recordId": "gup", "lastName": "name", "piFlag": "leads"},
}


def test_queries_of_a_database(database: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{database}\n")
    adapter = made({"adapter": "sql", "url_file": str(tmp_path / "url"), "queries": QUERIES, "fields": FIELDS})
    adapter.check()
    assert adapter.provides == {"runs", "proposals"}
    assert list(adapter.runs()) == [{"name": "2026-1", "startTime": "2026-01-01", "endTime": "2026-04-30"}]
    (found,) = adapter.proposals("2026-1")
    assert (found["id"], found["title"], str(found["startTime"])[:16]) == (1, "one", "2026-02-01 08:00")
    assert found["experimenters"] == [
        {"badge": 111111, "lastName": "Last", "piFlag": "Y"},
        {"badge": 222222, "lastName": "Other", "piFlag": None},
    ]
    assert list(adapter.proposals("'; DROP TABLE beamtime; --")) == []
    adapter.close()


def test_a_query_can_only_read(database: str) -> None:
    queries = {"runs": "DELETE FROM cycle RETURNING label, first, last", "beamlines": "SELECT name FROM nowhere"}
    adapter = made({"adapter": "sql", "url": database, "queries": queries, "fields": FIELDS})
    with pytest.raises(CommunicationError, match="Database of adapter 'one': "):
        list(adapter.runs())
    engine = create_engine(database)
    with engine.connect() as reading:
        assert reading.execute(text("SELECT count(*) FROM cycle")).scalar() == 1
    engine.dispose()
    with pytest.raises(CommunicationError, match="nowhere"):
        list(adapter.beamlines())
    adapter.close()


def test_a_database_that_is_down_or_has_no_driver() -> None:
    down = "postgresql+psycopg2://reader:secret-word@127.0.0.1:1/facility"
    adapter = made({"adapter": "sql", "url": down, "queries": QUERIES})
    for ask in (adapter.check, lambda: list(adapter.runs())):
        with pytest.raises(CommunicationError, match="refused") as caught:
            ask()
        assert "secret-word" not in str(caught.value)
    adapter = made({"adapter": "sql", "url": "oracle://x", "queries": QUERIES})
    with pytest.raises(ConfigurationError, match="install its driver"):
        adapter.check()


# --- http ------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(certificates: Path) -> Iterator[Web]:
    with running_web(certificates) as server:
        yield server


@pytest.fixture
def asking(web: Web, certificates: Path) -> Iterator[Callable[..., FacilityAdapter]]:
    adapters: list[FacilityAdapter] = []

    def make(**more: Any) -> FacilityAdapter:
        adapters.append(made(http_settings(web, certificates, **more)))
        return adapters[-1]

    yield make
    for adapter in adapters:
        adapter.close()


def test_nested_answers_of_a_web_service(web: Web, asking: Callable[..., FacilityAdapter]) -> None:
    web.answers["/api/proposals?run=2026-1%2F%26"] = {
        "data": {
            "items": [
                {
                    "beamtime": {"proposal": {"gupId": "12", "people": [{"badgeNo": 1, "pi": True, "phone": "1"}]}},
                    "activity": [{"from": "2026-01-01T08:00:00-06:00"}],
                    "private": "x",
                },
                "no record",
            ]
        }
    }
    adapter = asking(
        fields={
            "proposals": {"id": "beamtime.proposal.gupId", "startTime": "activity.0.from", "endTime": "nowhere.0.x"},
            "people": {"badge": "badgeNo", "piFlag": "pi"},
        },
        people={"proposals": "beamtime.proposal.people"},
    )
    bad = left_out(adapter)
    assert list(adapter.proposals("2026-1/&")) == [
        {
            "id": "12",
            "startTime": "2026-01-01T08:00:00-06:00",
            "endTime": None,
            "experimenters": [{"badge": 1, "piFlag": True}],
        }
    ]
    assert len(bad) == 1


def test_pages(web: Web, asking: Callable[..., FacilityAdapter]) -> None:
    names = [{"name": str(number)} for number in range(5)]
    web.answers |= {"/api/beamlines?offset=0": names[:2], "/api/beamlines?offset=2": names[2:4]}
    web.answers |= {"/api/beamlines?offset=4": names[4:], "/api/beamlines?offset=6": []}
    adapter = asking(page_parameter="offset", first_page=0, page_step=2)
    assert list(adapter.beamlines()) == names
    for offset in range(0, 6, 2):  # the parameter is ignored: it ends all the same
        web.answers[f"/api/beamlines?offset={offset}"] = names
    assert list(adapter.beamlines()) == names

    web.answers |= {
        "/api/beamlines": {"rows": ["a"], "links": {"next": "/api/beamlines?cursor=x"}},
        "/api/beamlines?cursor=x": {"rows": ["b"], "links": {"next": None}},
    }
    adapter = asking(next_page="links.next", lists={"beamlines": "rows"})
    assert list(adapter.beamlines()) == [{"name": "a"}, {"name": "b"}]
    web.answers["/api/beamlines?cursor=x"] = {"rows": ["b"], "links": {"next": "https://elsewhere.example.org/"}}
    with pytest.raises(CommunicationError, match="is on another server"):
        list(adapter.beamlines())


def test_credentials(web: Web, asking: Callable[..., FacilityAdapter], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    (tmp_path / "login").write_text("reader|s3cret\n")
    (tmp_path / "login").chmod(0o600)
    web.authorization = "Bearer t0ken"
    asking(token_file=str(tmp_path / "token")).check()
    with pytest.raises(CommunicationError, match="answered 401"):
        asking().check()
    web.authorization = f"Basic {base64.b64encode(b'reader:s3cret').decode()}"
    asking(login_file=str(tmp_path / "login")).check()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        asking(token_file=str(tmp_path / "none")).check()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((302, b"https://elsewhere.example.org/"), "answered 302"),
        ((500, b"oops"), "answered 500"),
        ((200, b"<html>maintenance</html>"), "answers no JSON"),
        ((200, b"[" * 100_000), "answers no JSON"),
        ((200, b"\xff\xfe"), "answers no JSON"),
        ({"error": "none"}, "has no list of records"),
        ((200, json.dumps("text").encode()), "has no list of records"),
    ],
)
def test_answers_that_are_none(web: Web, asking: Callable[..., FacilityAdapter], answer: Any, message: str) -> None:
    web.answers["/api/runs"] = answer
    with pytest.raises(CommunicationError, match=message):
        list(asking().runs())


def test_certificates_are_verified(web: Web, asking: Callable[..., FacilityAdapter]) -> None:
    with pytest.raises(CommunicationError, match="CERTIFICATE_VERIFY_FAILED"):
        asking(ca_file=None).check()


def test_a_service_that_says_nothing(web: Web, asking: Callable[..., FacilityAdapter]) -> None:
    web.silence.clear()
    adapter = asking(timeout_seconds=0.2)
    try:
        with pytest.raises(CommunicationError, match="does not answer: ReadTimeout"):
            adapter.check()
    finally:
        web.silence.set()
