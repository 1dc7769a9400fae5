"""Reading: outages are survived, bad records cost only themselves, and losses beyond a limit are refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import ObjectNotFound
from dm.site.facility import store
from dm.site.facility.adapters.base import FacilityAdapter
from dm.site.facility.adapters.loading import load
from dm.site.facility.reading import Readings
from tests.service.facility_fixtures import (
    RUNS,
    Facility,
    Web,
    esaf,
    http_settings,
    person,
    proposal,
    running_facility,
    running_web,
)
from tests.service.storage_fixtures import ADMIN, password_of


class Broken(FacilityAdapter):
    """Somebody's code with a defect."""

    provides = frozenset({"beamlines"})

    def beamlines(self) -> Iterator[dict[str, Any]]:
        yield {"name": "1-BM"}
        raise ZeroDivisionError("division by zero")

    def check(self) -> None:
        """It always answers."""


class Garbled(Broken):
    """Fails with words that no database takes."""

    def beamlines(self) -> Iterator[dict[str, Any]]:
        self.rejected("beamlines", "1-\0BM", "its name is \udcff")
        raise ValueError("unexpected answer '\0\udcff'")


@pytest.fixture
def web(certificates: Path) -> Iterator[Web]:
    with running_web(certificates) as server:
        server.fill([proposal(number, person(1)) for number in range(1, 31)], [esaf(1, person(1))])
        yield server


@pytest.fixture
def database_url(new_postgres_database: Callable[[], str]) -> str:
    from dm.site.database.store import Store
    from dm.site.identity.users import Users

    url = new_postgres_database()
    store = Store(url, 2)
    store.migrate()
    users = Users(store)
    users.add(ADMIN, password_of(ADMIN), last_name=ADMIN)
    users.add_system_role(ADMIN, "administrator")
    store.close()
    return url


@pytest.fixture
def facility(database_url: str, web: Web, certificates: Path) -> Iterator[Facility]:
    with running_facility(database_url, certificates, {"web": http_settings(web, certificates)}) as found:
        yield found


def read(facility: Facility, kind: str, **more: Any) -> dict[str, Any]:
    (outcome,) = facility.monitor(ADMIN).refresh(kind=kind, **more)
    return outcome.data


def test_an_outage_is_survived(facility: Facility, web: Web, database_url: str, certificates: Path) -> None:
    bss = facility.bss(ADMIN)
    assert len(bss.listProposals()) == 30
    assert facility.check() == {"name": "facility", "status": "ok", "message": "4 lists are up to date"}
    web.answers.clear()  # 404 for everything
    assert [one["status"] for one in facility.monitor(ADMIN).refresh()] == ["failed"] * 4
    assert len(bss.listProposals()) == 30
    found = facility.check()
    assert found["status"] == "warning" and "web/proposals is 0 min old" in found["message"]
    assert "the last try failed" in found["message"] and "answered" not in found["message"]  # strangers read this
    assert web.url not in found["message"]
    assert all("answered 404" in one["errorMessage"] for one in facility.rest(ADMIN).get("/facility/readings"))
    settings = {"web": http_settings(web, certificates)}
    with running_facility(database_url, certificates, settings) as again:  # a restart during the outage
        assert len(again.bss(ADMIN).listProposals()) == 30
        assert again.check()["status"] == "warning"
    web.answers["/api/runs"] = RUNS
    web.fill([proposal(number, person(1)) for number in range(1, 32)], [])
    web.answers["/api/beamlines"] = ["25-ID-C"]
    assert [one["status"] for one in facility.monitor(ADMIN).refresh()] == ["done"] * 4
    assert len(bss.listProposals()) == 31
    assert facility.check()["status"] == "ok"
    with facility.service.store.transaction() as connection:  # nothing was read for a day
        store.note(connection, "web", "runs", time=time.time() - 90_000)
    assert facility.check() == {"name": "facility", "status": "warning", "message": "web/runs is 25 h old"}


def test_bad_records_cost_only_themselves(facility: Facility, web: Web) -> None:
    good = [proposal(number, person(1)) for number in range(1, 29)]
    bad: list[Any] = [
        proposal("abc", person(1)),
        proposal(-3),
        proposal(True),
        proposal(101, startTime="someday"),
        proposal(102, startTime="2026-01-02", endTime="2026-01-01"),
        proposal(103, experimenters="no list"),
        proposal(104, experimenters=[["1"]]),
        proposal(105, title={"a": 1}),
        proposal(106, startTime="9999-01-01", endTime="9999-01-02"),
        proposal(107, activities=[1]),
        proposal(108, people=[{}] * 10, title="x" * 10, experimenters=[person(n) for n in range(1001)]),
        None,
        "text",
        7,
        [],
        {},
    ]
    odd = [
        proposal(201, person(1), title="nul \0 and half \ud800 character", totalShiftsRequested="3"),
        proposal(202, person(1), title="y" * 100_000),
        proposal("0000203", person(1), title=None, mailInFlag=1, duration="7"),
        proposal(204, person(2), person(2, piFlag="Y"), startTime="", endTime=None),
        proposal(1, person(1), title="the same again"),
    ]
    web.fill([*good, *bad, *odd], [])
    found = read(facility, "proposals")
    assert (found["status"], found["countRecords"], found["countRejected"]) == ("done", 32, len(bad))
    assert (found["countDuplicates"], found["countRemoved"]) == (1, 2)
    assert "'abc'" in found["rejected"][0]
    bss = facility.bss(ADMIN)
    assert len(bss.listProposals()) == 32
    assert bss.getProposal(1)["title"] == "Proposal 1"
    assert bss.getProposal(201)["title"] == "nul \ufffd and half \ufffd character"
    assert len(bss.getProposal(202)["title"]) == 20_000
    assert (bss.getProposal(203)["mailInFlag"], bss.getProposal(203)["duration"]) == ("Y", 7)
    assert [(one["badge"], one["piFlag"]) for one in bss.getProposal(204)["experimenters"]] == [("2", "Y")]
    assert bss.getProposal(204)["startTime"].startswith(RUNS[1]["startTime"])  # it takes its run's
    assert "16 records left out" in facility.check()["message"]


def test_a_loss_beyond_the_limit_is_refused(facility: Facility, web: Web) -> None:
    bss = facility.bss(ADMIN)
    web.fill([proposal(number) for number in range(1, 21)], [])
    found = read(facility, "proposals")
    assert (found["status"], found["countRemoved"]) == ("done", 10)  # so few may go whatever their share
    web.fill([proposal(number) for number in range(1, 10)], [])
    found = read(facility, "proposals")
    assert found["status"] == "failed" and "11 of 20 proposals" in found["errorMessage"]
    assert len(bss.listProposals()) == 20
    assert "dm-refresh-facility --force" in found["errorMessage"]
    assert "the last try failed" in facility.check()["message"]
    found = read(facility, "proposals", force=True)
    assert (found["status"], found["countRemoved"]) == ("done", 11)
    assert len(bss.listProposals()) == 9
    with pytest.raises(ObjectNotFound):
        bss.getProposal(20)
    assert facility.check()["status"] == "ok"


def test_somebodys_defect_is_an_outage(database_url: str, certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("name,startTime,endTime\n2026-1,2026-01-01,2026-04-30\n")
    adapters = {
        "files": {"adapter": "csv", "directory": str(tmp_path)},
        "own": {"adapter": f"{__name__}:Broken"},
    }
    with running_facility(database_url, certificates, adapters) as facility:
        assert [one["name"] for one in facility.bss(ADMIN).listRuns()] == ["2026-1"]
        assert facility.bss(ADMIN).listBeamlines() == []
        assert "own/beamlines has never been read (the last try failed" in facility.check()["message"]


def test_what_an_adapter_says_is_kept_whatever_it_is(database_url: str, certificates: Path) -> None:
    with running_facility(database_url, certificates, {"own": {"adapter": f"{__name__}:Garbled"}}) as facility:
        (outcome,) = facility.monitor(ADMIN).refresh(kind="beamlines")
        assert outcome["errorMessage"] == "ValueError: unexpected answer '\\x00\\udcff'"
        assert outcome["rejected"] == ["1-\\x00BM: its name is \\udcff"]


def test_two_services_read_each_list_once(facility: Facility, web: Web, certificates: Path) -> None:
    """They share the database: what is due is read by whoever is first, and the other goes on."""
    settings = facility.settings.model_copy(update={"refresh_minutes": 0.0001})
    readings = [Readings(facility.service.store, load(settings, "settings"), settings) for _ in range(3)]
    web.asked.clear()
    web.silence.clear()
    done: list[Any] = []
    threads = [
        threading.Thread(target=lambda one=one: done.extend(one.read(kind="runs", due=True))) for one in readings
    ]
    for thread in threads:
        thread.start()
    while len(done) < 2:  # two of them found it taken
        time.sleep(0.01)
    web.silence.set()
    for thread in threads:
        thread.join()
    assert [one.skipped for one in done] == [True, True, False]
    assert web.asked == ["/api/runs"]
    slow = Readings(facility.service.store, load(facility.settings, "settings"), facility.settings)
    assert [one.skipped for one in slow.read(due=True)] == [True] * 4  # nothing is due for hours
    for one in [*readings, slow]:
        one.close()


def test_the_first_of_two_adapters_wins(database_url: str, web: Web, certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text('[{"name": "extra", "startTime": "1999-01-01", "endTime": "1999-02-01"}]')
    (tmp_path / "beamlines.json").write_text('[{"name": "25-ID-C", "station": "25IDC"}, {"name": "1-BM"}]')
    adapters = {"files": {"adapter": "csv", "directory": str(tmp_path)}, "web": http_settings(web, certificates)}
    with running_facility(database_url, certificates, adapters) as facility:
        bss = facility.bss(ADMIN)
        assert next(one["name"] for one in bss.listRuns()) == "extra"
        assert [(one["name"], one.get("station")) for one in bss.listBeamlines()] == [
            ("1-BM", None),
            ("25-ID-C", "25IDC"),
        ]


def test_many_records(facility: Facility, web: Web) -> None:
    people = [person(number) for number in range(1, 21)]
    web.fill([proposal(number, *people) for number in range(1, 301)], [])
    assert read(facility, "proposals")["countRecords"] == 300
    assert len(facility.bss(ADMIN).listProposals()) == 300
    assert read(facility, "proposals")["countRecords"] == 300
