"""Proposals and safety forms over HTTPS: who sees which, in what shape, and experiments made for them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from dm.common import tls
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    InvalidRequest,
    InvalidSession,
    ObjectAlreadyExists,
    ObjectNotFound,
)
from dm.common.web.routes import Who
from dm.site.facility.selection import Selection
from dm.site.facility.viewer import Viewer
from tests.service.facility_fixtures import (
    BEGIN,
    RUN,
    TODAY,
    Facility,
    Web,
    esaf,
    http_settings,
    person,
    proposal,
    running_facility,
    running_web,
)
from tests.service.route_walk import assert_refuses_strangers, call
from tests.service.storage_fixtures import (
    ADMIN,
    ALICE,
    BOB,
    MANAGER,
    OTHER_MANAGER,
    SERVICE,
    STATION,
    STRANGER,
    Site,
    running_site,
)

SCRIPT = "<script>alert('x')</script> \u202e O'Neil; DROP TABLE users"
ADA = person(111111, piFlag="Y", institution="Institute", instId=7)
BEN = person("0222222", piFlag=None)
NOBODY = person("999999", firstName="Not", lastName="Here")

PROPOSALS = [
    proposal("0158394", ADA, BEN, title=SCRIPT, mailInFlag="", proprietaryFlag="yes"),
    proposal(100002, BEN, beamline="2-BM-A,B"),
]
ESAFS = [
    esaf(200001, person(111111, piFlag="Yes"), BEN, NOBODY, esafTitle="M\u00fcller's / test: 50% \u00fcber $HOME"),
    esaf(200002, BEN, sector=2, beamlineStation="02-BM-A"),
    esaf(200004, person(444444), person("", lastName="Badgeless"), sector="02"),
    esaf(200003, BEN, experimentStartDate=f"{TODAY.year}-01-01", experimentEndDate=f"{TODAY.year}-01-03"),
]


@pytest.fixture(scope="module")
def site(
    new_postgres_database: Callable[[], str], certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with running_site(new_postgres_database(), certificates, tmp_path_factory.mktemp("site")) as found:
        yield found


@pytest.fixture(scope="module")
def web(certificates: Path) -> Iterator[Web]:
    with running_web(certificates) as server:
        server.fill(PROPOSALS, ESAFS)
        yield server


@pytest.fixture(scope="module")
def facility(site: Site, web: Web, certificates: Path) -> Iterator[Facility]:
    adapters = {"web": http_settings(web, certificates)}
    with running_facility(site.settings.database_url, certificates, adapters) as found:
        yield found


def test_runs_and_beamlines_are_for_every_user(facility: Facility) -> None:
    bss = facility.bss(STRANGER)
    assert [run["name"] for run in bss.listRuns()][1] == bss.getCurrentRun()["name"] == RUN
    assert [one["name"] for one in bss.listBeamlines()] == ["25-ID-C"]
    with pytest.raises(AuthenticationError):
        facility.rest().get("/bss/runs")


@pytest.mark.parametrize(
    ("username", "proposals", "forms"),
    [
        (ADMIN, [100002, 158394], [200003, 200001, 200002, 200004]),
        (MANAGER, [158394], [200003, 200001]),
        (SERVICE, [158394], [200003, 200001]),
        (OTHER_MANAGER, [], [200004]),
        (ALICE, [158394], [200001]),
        (BOB, [100002, 158394], [200003, 200001, 200002]),
        (STRANGER, [], []),
    ],
)
def test_everybody_sees_what_concerns_them(
    facility: Facility, username: str, proposals: list[int], forms: list[int]
) -> None:
    bss, esafs = facility.bss(username), facility.esafs(username)
    assert [one["id"] for one in bss.listProposals()] == proposals
    for number in (158394, 100002):
        if number in proposals:
            assert bss.getProposal(number)["id"] == number
        else:
            with pytest.raises(ObjectNotFound, match=f"Proposal {number} does not exist"):
                bss.getProposal(number)
    found = {one["esafId"] for sector in ("25", 2) for one in esafs.listEsafs(sector)}
    assert found == set(forms)
    for number in (200001, 200002):
        if number in forms:
            assert esafs.getEsaf(number)["esafId"] == number
        else:
            with pytest.raises(ObjectNotFound, match=f"ESAF {number} does not exist"):
                esafs.getEsaf(number)
    at_station = [number for number in forms if number not in (200002, 200004)]
    assert [one["esafId"] for one in esafs.listStationEsafs(STATION)] == at_station
    assert [one["id"] for one in bss.listStationProposals(STATION)] == [one for one in proposals if one == 158394]


def test_all_published_keys_are_there_whatever_the_facility_leaves_out(facility: Facility) -> None:
    found = facility.bss(MANAGER).getStationProposalById(STATION, "0158394", RUN)
    assert found["title"] == SCRIPT
    assert found["duration"] == 2 * 86400
    assert (found["mailInFlag"], found["proprietaryFlag"]) == ("N", "Y")
    assert found["experimenters"] == [
        {
            "id": 0, "badge": "111111", "firstName": "First", "lastName": "Last", "email": "one@example.org",
            "institution": "Institute", "instId": 7, "piFlag": "Y",
        },
        {
            "id": 0, "badge": "222222", "firstName": "First", "lastName": "Last", "email": "one@example.org",
            "institution": "", "instId": 0, "piFlag": "N",
        },
    ]  # fmt: skip
    form = facility.esafs(MANAGER).getStationEsafById(STATION, 200001)
    assert {"esafTitle", "description", "sector", "esafStatus", "beamlineStation"} <= form.data.keys()
    assert form["experimentStartDate"] == BEGIN
    assert [(one["badge"], one["badgeNumber"], one["piFlag"]) for one in form["experimentUsers"]] == [
        ("111111", "111111", "Yes"),
        ("222222", "222222", "No"),
        ("999999", "999999", "No"),
    ]


def test_both_dialects_of_arguments(facility: Facility) -> None:
    def coded(text: str, wrap: bool) -> str:
        inner = base64.encodebytes(text.encode()) if wrap else base64.b64encode(text.encode())
        return str(base64.b64encode(inner))

    rest = facility.rest(MANAGER)
    for station, beamline in (
        (STATION, "25-ID-C"),
        (coded(STATION, True), coded("25-ID-C", True)),
        (coded(STATION, False), coded("25-ID-C", False)),
        (coded(STATION, False), "b''"),
    ):
        found = rest.get(f"/bss/stationProposals/{station}/{beamline}", runName=RUN)
        assert [one["id"] for one in found] == [158394]
        assert len(rest.get(f"/esaf/stationEsafs/{station}/{beamline}", year=TODAY.year)) == 2
    assert rest.get(f"/esaf/stationEsafsById/{coded(STATION, True)}/0200001")["esafId"] == 200001


def test_no_route_is_open_and_strangers_get_nothing(facility: Facility) -> None:
    routes = facility.service.application.routes
    arguments = {
        "stationName": STATION, "id": "158394", "sector": "25", "year": TODAY.year, "kind": "runs",
        "startDate": "1999-01-01", "endDate": "2261-01-01", "beamlineName": "25-ID-C", "runName": RUN,
    }  # fmt: skip
    walked = assert_refuses_strangers(facility.url, routes, facility.ca_file, None, arguments)
    assert walked >= 20
    stranger = facility.rest(STRANGER)
    stranger.login()
    concerned = [route for route in routes if route.access.who is Who.CONCERNED]
    assert len(concerned) == 11
    with httpx.Client(verify=tls.client_context(facility.ca_file)) as client:
        for route in concerned:
            for known in (arguments, arguments | {"id": "200001"}):
                reply = call(client, facility.url, route, known, stranger.cookie)
                assert reply.status_code == 404 or (reply.status_code, reply.json()) == (200, []), route.path


def test_selection_by_beamline_run_year_and_days(facility: Facility) -> None:
    bss, esafs = facility.bss(ADMIN), facility.esafs(ADMIN)
    assert [one["id"] for one in bss.listProposals("2-BM-A,B", RUN)] == [100002]
    assert bss.listProposals("7-ID-A", RUN) == []
    assert bss.listProposals("2-BM-A,B", "1999-1") == []
    assert bss.listStationProposals("NOWHERE") == []
    with pytest.raises(ObjectNotFound, match=f"Proposal 158394 at beamline '2-BM-A,B' in run '{RUN}' does not exist"):
        bss.getProposal(158394, RUN, "2-BM-A,B")
    for id in ("abc", "-1", "158394 OR 1=1", "9" * 40):
        with pytest.raises(ObjectNotFound):
            bss.getProposal(id)
    assert esafs.listStationEsafs(STATION, year=1999) == []
    assert [one["esafId"] for one in esafs.listStationEsafsByDateRange(STATION, f"{TODAY}", f"{TODAY}")] == [200001]
    january = f"{TODAY.year}-01-03", f"{TODAY.year}-01-31"
    assert 200003 in [one["esafId"] for one in esafs.listStationEsafsByDateRange(STATION, *january)]
    with pytest.raises(InvalidRequest, match="is before start date"):
        esafs.listStationEsafsByDateRange(STATION, *reversed(january))
    with pytest.raises(InvalidRequest, match="not understood"):
        esafs.listStationEsafsByDateRange(STATION, "yesterday", "today")


def test_reading_is_for_administrators_and_its_state_for_managers(facility: Facility) -> None:
    for username in (MANAGER, ALICE):
        with pytest.raises(AuthorizationError):
            facility.monitor(username).refresh()
    with pytest.raises(AuthorizationError):
        facility.monitor(ALICE).getReadings()
    assert [one["kind"] for one in facility.monitor(MANAGER).getReadings()] == [
        "runs", "beamlines", "proposals", "esafs",
    ]  # fmt: skip
    done = facility.monitor(ADMIN).refresh(kind="esafs")
    assert [(one["status"], one["countRecords"]) for one in done] == [("done", 4)]
    with pytest.raises(InvalidRequest, match="No adapter 'other'"):
        facility.monitor(ADMIN).refresh(adapter="other")


def test_experiment_for_a_safety_form(facility: Facility, site: Site) -> None:
    plan = facility.esafs(MANAGER).getExperimentPlan(STATION, 200001)
    assert plan["experimentName"] == f"Last-{TODAY:%Y%m}-200001"
    experiments = site.experiments(MANAGER)
    made = experiments.addExperimentByPlan(plan)
    assert sorted(made["addedUsernames"]) == [ALICE, BOB]
    assert made["missingUsers"] == [{"username": "d999999", "firstName": "Not", "lastName": "Here"}]
    record = made["experiment"]
    assert record["description"] == ESAFS[0]["esafTitle"]
    assert (record["esafId"], record["run"], record["rootPath"]) == (200001, RUN, f"{TODAY:%Y-%m}")
    assert record["startDate"].startswith(BEGIN)
    roles = {one["username"]: one["roles"] for one in record["experimentUsers"]}
    assert roles == {ALICE: ["PI"], BOB: ["User"]}
    site.service.use_cases.users.add("d999999", "secret-of-d999999")
    again = experiments.addExperimentByPlan(plan)
    assert (again["addedUsernames"], again["missingUsers"]) == (["d999999"], [])
    assert again["experiment"]["id"] == record["id"]
    assert site.experiments(ALICE).getExperimentByName(plan["experimentName"], STATION)["id"] == record["id"]


def test_people_are_found_by_their_badge_whatever_they_are_called(facility: Facility, site: Site) -> None:
    site.service.use_cases.users.add("carol", "secret-of-carol")
    with facility.service.store.transaction() as connection:
        connection.execute(text("UPDATE users SET badge = 444444 WHERE username = 'carol'"))
    plan = facility.esafs("carol").getExperimentPlan("2BM", 200004)
    assert [(one["username"], one["lastName"]) for one in plan["users"]] == [("carol", "Last"), ("", "Badgeless")]


def test_a_name_that_looks_like_a_badge_of_somebody_else_lets_nobody_in(facility: Facility, site: Site) -> None:
    for name, badge in (("d888888", 5), ("d777777", 777777)):
        site.service.use_cases.users.add(name, f"secret-of-{name}")
        with facility.service.store.transaction() as connection:
            connection.execute(text("UPDATE users SET badge = :b WHERE username = :n"), {"b": badge, "n": name})
    viewer = Viewer(facility.service.store, facility.service.readings, Selection({}))
    assert viewer.usernames(["888888", "777777", "5", "6"]) == {"777777": "d777777", "5": "d888888", "6": "d6"}


def test_experiment_for_a_proposal_that_was_cut_off(facility: Facility, site: Site) -> None:
    plan = facility.bss(MANAGER).getExperimentPlan(STATION, "0158394")
    experiments = site.experiments(MANAGER)
    experiments.addExperiment(
        plan["experimentName"],
        STATION,
        description=plan["description"],
        rootPath=plan["rootPath"],
        startDate=plan["startDate"],
        endDate=plan["endDate"],
    )
    made = experiments.addExperimentByPlan(plan)
    assert (made["experiment"]["proposalId"], made["experiment"]["description"]) == (158394, SCRIPT)
    assert sorted(made["addedUsernames"]) == [ALICE, BOB]


def test_experiment_of_that_name_for_something_else(facility: Facility, site: Site) -> None:
    plan = facility.bss(MANAGER).getExperimentPlan(STATION, 158394)
    plan["experimentName"] = "taken"
    experiments = site.experiments(MANAGER)
    experiments.addExperiment("taken", STATION, description="of others")
    with pytest.raises(ObjectAlreadyExists, match="is not of proposalId 158394"):
        experiments.addExperimentByPlan(plan)
    assert experiments.getExperimentByName("taken", STATION)["experimentUsernameList"] == []


def test_who_may_not_see_a_record_gets_no_plan_and_who_manages_no_station_no_experiment(
    facility: Facility, site: Site
) -> None:
    with pytest.raises(ObjectNotFound):
        facility.esafs(OTHER_MANAGER).getExperimentPlan(STATION, 200001)
    plan = facility.esafs(ALICE).getExperimentPlan(STATION, 200001)
    plan["experimentName"] = "mine"
    with pytest.raises(AuthorizationError):
        site.experiments(ALICE).addExperimentByPlan(plan)


def test_one_session_for_both_services(facility: Facility, site: Site) -> None:
    """They share the table of sessions; logging out of one ends it at the other."""
    storage = site.rest(MANAGER)
    storage.login()
    other = facility.rest()
    other.cookie = storage.cookie
    assert other.get("/session")["username"] == MANAGER
    storage.logout()
    with pytest.raises(InvalidSession):
        other.get("/session")
