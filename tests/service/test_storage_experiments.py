"""Experiments, people and roles over HTTPS."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    InvalidArgument,
    InvalidObjectState,
    InvalidRequest,
    InvalidSession,
    ObjectAlreadyExists,
    ObjectNotFound,
)
from dm.site.storage.api import AuthDsApi, ServiceMonitorDsApi, UserDsApi
from tests.service import route_walk
from tests.service import storage_fixtures as fx


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        yield running


def test_an_added_experiment_has_the_published_record_and_private_directories(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    old = os.umask(0)
    try:
        added = api.addExperiment(
            "full-record", fx.STATION, "TEST", "What it is", "2026-03", "VOYAGER", None, "05-Mar-26", "2026-03-08"
        )
    finally:
        os.umask(old)
    directory = site.root / fx.STATION / "2026-03" / "full-record"
    assert added["storageDirectory"] == str(directory)
    assert added["storageUrl"] == f"voyager://localhost{directory}"
    assert (added["dataDirectory"], added["analysisDirectory"], added["systemDirectory"]) == tuple(
        f"{directory}/{part}" for part in ("data", "analysis", "system")
    )
    assert added["experimentType"]["name"] == "TEST" and added["experimentTypeId"] == added["experimentType"]["id"]
    assert added["primaryStorage"]["name"] == "VOYAGER" and added["experimentStation"]["name"] == fx.STATION
    assert added["startDate"].startswith("2026-03-05 00:00:00") and added["endDate"].startswith("2026-03-08 00:00:00")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d", added["createDate"])
    assert re.fullmatch(r"fullrecord-25idc-[0-9a-f]{6}", added["authGroupName"])
    assert added["experimentUsernameList"] == [] and added["managedDirectoryStructure"] is True
    for key in ("startDate", "endDate", "createDate", "updateDate"):
        assert datetime.fromisoformat(added[key]).tzinfo
    assert directory.stat().st_mode & 0o7777 == 0o2750
    assert {name: mode for name, mode in fx.modes(directory).items() if "/" not in name} == {
        "data": 0o2750, "analysis": 0o2750, "system": 0o2750, ".staging": 0o2700,
    }  # fmt: skip
    assert all(mode & 0o007 == 0 for mode in fx.modes(directory).values())
    by_name = api.getExperimentByName("full-record", fx.STATION)
    assert by_name == added == api.getExperimentById(added["id"])
    short = api.getExperimentsByStation(fx.STATION)[-1]
    assert "storageDirectory" not in short and short["rootPath"] == "2026-03"
    assert set(short) <= set(added)


def test_lists_are_sorted_newest_last(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    for name in ("zz-first", "aa-second"):
        api.addExperiment(name, fx.STATION)
    names = [experiment["name"] for experiment in api.getExperimentsByStation(fx.STATION)]
    assert names.index("zz-first") < names.index("aa-second")


@pytest.mark.parametrize(
    "name",
    ["", "two words", "a/b", "..", ".hidden", "-rf", "a#b", "a%41", "a&b", "{x}", "a\\b", "<b>", "a*", "what?", "a$b",
     "a!", "a:b", "a@b", "it's", 'a"b', "new\nline", "a;b", "a|b", "a`b", "e\u0301" + "x", "x" * 129, "~root"],
)  # fmt: skip
def test_names_that_cannot_be_are_refused_and_nothing_is_made(site: fx.Site, name: str) -> None:
    before = sorted(path.name for path in (site.root / fx.STATION).glob("*"))
    with pytest.raises(InvalidRequest) as caught:
        site.rest(fx.MANAGER).post("/experiments", {"experimentName": name, "stationName": fx.STATION})
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(path.name for path in (site.root / fx.STATION).glob("*")) == before


def test_names_of_other_scripts_are_fine(site: fx.Site) -> None:
    added = site.experiments(fx.MANAGER).addExperiment("Größe-日本_v1.2+x", fx.STATION)
    assert Path(added["dataDirectory"]).is_dir()
    assert site.experiments(fx.MANAGER).getExperimentByName("Größe-日本_v1.2+x", fx.STATION)["id"] == added["id"]


@pytest.mark.parametrize("root", ["/abs", "../up", "a/../../b", "a b", "a//..", "x/" * 9])
def test_root_paths_that_escape_are_refused(site: fx.Site, root: str) -> None:
    with pytest.raises(InvalidArgument):
        site.experiments(fx.MANAGER).addExperiment("root-path", fx.STATION, rootPath=root)
    with pytest.raises(ObjectNotFound, match="does not exist"):
        site.experiments(fx.MANAGER).getExperimentByName("root-path", fx.STATION)


def test_bad_references_and_dates_are_named(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    with pytest.raises(ObjectNotFound, match="'NOPE' does not exist"):
        api.addExperiment("bad", fx.STATION, "NOPE")
    with pytest.raises(ObjectNotFound, match="'ELSEWHERE' does not exist"):
        api.addExperiment("bad", fx.STATION, storageName="ELSEWHERE")
    with pytest.raises(ObjectNotFound, match="User 'd999999' does not exist"):
        api.addExperiment("bad", fx.STATION, usernameList=["d999999"])
    with pytest.raises(InvalidArgument, match="31-Foo-26"):
        api.addExperiment("bad", fx.STATION, startDate="31-Foo-26")
    with pytest.raises(InvalidArgument, match="lies before"):
        api.addExperiment("bad", fx.STATION, startDate="05-Mar-26", endDate="04-Mar-26")
    assert not (site.root / fx.STATION / "bad").exists()


def test_a_duplicate_is_refused_and_the_first_one_stays(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    first = api.addExperiment("twice", fx.STATION, description="first")
    with pytest.raises(ObjectAlreadyExists, match="'twice'"):
        api.addExperiment("twice", fx.STATION, description="second")
    assert api.getExperimentByName("twice", fx.STATION) == first
    other = site.experiments(fx.OTHER_MANAGER).addExperiment("twice", fx.OTHER_STATION)
    assert other["id"] != first["id"]


def test_f48_fifty_at_once_make_exactly_one(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    api.client.login()
    results: list[str] = []

    def add() -> None:
        try:
            api.addExperiment("race", fx.STATION)
            results.append("made")
        except ObjectAlreadyExists:
            results.append("exists")

    threads = [threading.Thread(target=add) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["exists"] * 49 + ["made"]


def test_experiments_never_lie_within_each_other(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    api.addExperiment("outer", fx.STATION)
    with pytest.raises(InvalidArgument, match="within each other"):
        api.addExperiment("inner", fx.STATION, rootPath="outer/data")
    api.addExperiment("leaf", fx.STATION, rootPath="cycle")
    with pytest.raises(InvalidArgument, match="within each other"):
        api.addExperiment("cycle", fx.STATION)


def test_a_foreign_directory_is_not_taken_over(site: fx.Site) -> None:
    taken = site.root / fx.STATION / "foreign"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidObjectState, match="not empty"):
        site.experiments(fx.MANAGER).addExperiment("foreign", fx.STATION)
    assert (taken / "thesis.txt").read_text() == "mine"
    (site.root / fx.STATION / "linked").symlink_to("/tmp")
    with pytest.raises(InvalidObjectState, match="link"):
        site.experiments(fx.MANAGER).addExperiment("linked", fx.STATION)


def test_update_changes_what_is_given_and_takes_the_files_along(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    made = api.addExperiment("before", fx.STATION, startDate="2026-01-01", endDate="2026-02-01")
    changed = api.updateExperiment(made["id"], "after", typeName="TEST", description="new", rootPath="2026-04")
    assert (changed["name"], changed["rootPath"], changed["description"]) == ("after", "2026-04", "new")
    assert changed["startDate"] == made["startDate"] and changed["updateDate"] > made["updateDate"]
    assert Path(changed["dataDirectory"]).is_dir() and not Path(made["storageDirectory"]).exists()
    Path(changed["dataDirectory"], "byhand").write_text("x")
    again = api.updateExperiment(made["id"], "again")
    assert Path(again["dataDirectory"], "byhand").read_text() == "x" and not Path(changed["storageDirectory"]).exists()
    api.updateExperiment(made["id"], "after")
    assert api.updateExperiment(experimentName="after", stationName=fx.STATION, endDate="2026-03-01")["endDate"]
    with pytest.raises(InvalidRequest, match="nonsense"):
        api.updateExperiment(made["id"], nonsense=1)


def test_members_see_their_experiments_managers_their_station_and_nobody_else_anything(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    exp1 = api.addExperiment("exp1", fx.STATION, usernameList=[fx.ALICE])
    exp10 = api.addExperiment("exp10", fx.STATION, usernameList=[fx.BOB])
    alice, bob = site.experiments(fx.ALICE), site.experiments(fx.BOB)
    assert alice.getExperimentByName("exp1")["id"] == exp1["id"]
    assert alice.getExperimentByName("exp1", fx.STATION)["experimentUsernameList"] == [fx.ALICE]
    for call in (
        lambda: alice.getExperimentByName("exp10", fx.STATION),
        lambda: alice.getExperimentByName("exp10"),
        lambda: alice.getExperimentById(exp10["id"]),
        lambda: bob.getExperimentById(exp1["id"]),
        lambda: alice.deleteExperimentById(exp10["id"]),
        lambda: alice.updateExperiment(exp10["id"], description="x"),
        lambda: alice.upsertExperimentMetadata("k", 1, "exp10", fx.STATION),
        lambda: site.experiments(fx.OTHER_MANAGER).getExperimentById(exp1["id"]),
        lambda: site.users(fx.ALICE).addUserExperimentRole(fx.ALICE, "PI", "exp10", fx.STATION),
    ):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            call()
    for call in (
        lambda: alice.updateExperiment(exp1["id"], description="x"),
        lambda: alice.deleteExperimentById(exp1["id"]),
        lambda: alice.addExperiment("mine", fx.STATION),
        lambda: site.experiments(fx.OTHER_MANAGER).addExperiment("theirs", fx.STATION),
        lambda: site.users(fx.ALICE).addUserExperimentRole(fx.BOB, "User", "exp1", fx.STATION),
        lambda: site.users(fx.ALICE).getUsers(),
        lambda: site.users(fx.MANAGER).addUser("d444444"),
        lambda: site.users(fx.MANAGER).addUserSystemRole(fx.MANAGER),
    ):
        with pytest.raises(AuthorizationError):
            call()
    assert [e["name"] for e in alice.getExperimentsByStation(fx.STATION)] == ["exp1"]
    assert {"exp1", "exp10"} <= {e["name"] for e in api.getExperimentsByStation(fx.STATION)}
    assert {"exp1", "exp10"} <= {e["name"] for e in site.experiments(fx.ADMIN).getExperimentsByStation(fx.STATION)}
    assert site.experiments(fx.OTHER_MANAGER).getExperimentsByStation(fx.STATION) == []
    with pytest.raises(ObjectNotFound, match="User 'd222222' does not exist"):
        site.users(fx.ALICE).getUserByUsername(fx.BOB)
    assert site.users(fx.ALICE).getUserByUsername(fx.ALICE)["badge"] == 111111


def test_roles_are_given_once_and_taken_at_once(site: fx.Site) -> None:
    api, users = site.experiments(fx.MANAGER), site.users(fx.MANAGER)
    api.addExperiment("roles", fx.STATION)
    assert users.addUserExperimentRole(fx.ALICE, "User", "roles")["roleName"] == "User"
    with pytest.raises(ObjectAlreadyExists, match="already has role"):
        users.addUserExperimentRole(fx.ALICE, "User", "roles")
    users.addUserExperimentRole(fx.ALICE, "PI", "roles")
    assert api.getExperimentByName("roles")["experimentUsers"] == [{"username": fx.ALICE, "roles": ["PI", "User"]}]
    alice = site.experiments(fx.ALICE)
    assert alice.getExperimentByName("roles")
    users.deleteUserExperimentRole(fx.ALICE, "User", "roles")
    users.deleteUserExperimentRole(fx.ALICE, "PI", "roles")
    with pytest.raises(ObjectNotFound, match="does not exist"):
        alice.getExperimentByName("roles")
    with pytest.raises(ObjectNotFound, match="Role 'PI'"):
        users.deleteUserExperimentRole(fx.ALICE, "PI", "roles")
    with pytest.raises(InvalidArgument, match="choose one of User, PI"):
        users.addUserExperimentRole(fx.ALICE, "Emperor", "roles")


def test_system_and_station_roles_and_the_last_administrator(site: fx.Site) -> None:
    admin = site.users(fx.ADMIN)
    admin.addUserStationRole(fx.BOB, "manager", fx.OTHER_STATION)
    assert {"username": fx.BOB, "roleName": "manager", "stationName": fx.OTHER_STATION} in [
        dict(role) for role in site.users(fx.OTHER_MANAGER).getUserStationRoles(fx.OTHER_STATION)
    ]
    assert site.experiments(fx.BOB).getExperimentsByStation(fx.OTHER_STATION)
    with pytest.raises(ObjectAlreadyExists):
        admin.addUserStationRole(fx.BOB, "manager", fx.OTHER_STATION)
    admin.deleteUserStationRole(fx.BOB, "manager", fx.OTHER_STATION)
    assert site.experiments(fx.BOB).getExperimentsByStation(fx.OTHER_STATION) == []
    with pytest.raises(InvalidObjectState, match="last administrator"):
        admin.deleteUserSystemRole(fx.ADMIN)
    admin.addUserSystemRole(fx.BOB)
    admin.deleteUserSystemRole(fx.BOB)
    with pytest.raises(ObjectNotFound):
        admin.deleteUserSystemRole(fx.BOB)


def test_users_are_added_changed_and_log_in(site: fx.Site) -> None:
    admin = site.users(fx.ADMIN)
    added = admin.addUser("d555555", "first password", firstName="Mary", lastName="Muster", email="m@example.org")
    assert (added["badge"], added["isLocalUser"], added["lastName"]) == (555555, True, "Muster")
    assert not any("password" in key.lower() or "hash" in key.lower() for key in added)
    with pytest.raises(ObjectAlreadyExists, match="'d555555'"):
        admin.addUser("d555555")
    with pytest.raises(InvalidArgument, match="8 to 1000"):
        admin.addUser("d555556", "short")
    with pytest.raises(InvalidArgument, match="cannot hold"):
        admin.addUser("d555556", "with|bar--")
    with pytest.raises(InvalidArgument):
        admin.addUser("-d555556", "long enough")
    mary = UserDsApi("d555555", "first password", site.url, ca_file=site.ca_file)
    site.clients.append(mary)
    assert mary.getUserByUsername("d555555")["firstName"] == "Mary"
    with pytest.raises(InvalidArgument, match="old password"):
        mary.changePassword("wrong password", "second password")
    mary.changePassword("first password", "second password")
    with pytest.raises(AuthenticationError, match="Incorrect username or password"):
        mary.getUserByUsername("d555555")
    with pytest.raises(AuthorizationError, match="one's own"):
        site.rest(fx.MANAGER).put(
            "/usersByUsername/d555555/password", {"oldPassword": "second password", "newPassword": "third password"}
        )
    assert admin.updateUser("d555555", email="new@example.org")["email"] == "new@example.org"
    with pytest.raises(ObjectNotFound):
        admin.updateUser("d555999", email="x")


def test_metadata_is_kept_with_the_experiment(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    api.addExperiment("meta", fx.STATION)
    value = {"a.b": [1, 2.5, None, True, {"$x": "ü"}]}
    assert api.upsertExperimentMetadata("emailedUsers", ["d1", "d2"], "meta")["emailedUsers"] == ["d1", "d2"]
    api.upsertExperimentMetadata("nested", value, "meta")
    api.upsertExperimentMetadata("emailedUsers", "all", "meta")
    record = api.getExperimentByName("meta")
    assert (record["emailedUsers"], record["nested"]) == ("all", value)
    for key in ("id", "errorCode", "", "x" * 201):
        with pytest.raises(InvalidArgument):
            api.upsertExperimentMetadata(key, 1, "meta")
    with pytest.raises(InvalidRequest):
        api.upsertExperimentMetadata("nul", "a\0b", "meta")
    with pytest.raises(InvalidRequest, match="deep"):
        deep: list[object] = []
        for _ in range(60):
            deep = [deep]
        api.upsertExperimentMetadata("deep", deep, "meta")


def test_short_lists_of_the_site(site: fx.Site) -> None:
    admin, alice = site.experiments(fx.ADMIN), site.experiments(fx.ALICE)
    assert [s["name"] for s in alice.getStations()][:2] == [fx.STATION, fx.OTHER_STATION]
    assert admin.addStation("8IDI", "small angles")["description"] == "small angles"
    assert admin.addExperimentType("XPCS8")["name"] == "XPCS8"
    assert alice.getStorages()[0]["storageDirectory"] == str(site.root)
    assert "XPCS8" in [kind["name"] for kind in alice.getExperimentTypes()]
    with pytest.raises(ObjectAlreadyExists):
        admin.addStation("8IDI")
    with pytest.raises(InvalidArgument, match="not an existing"):
        admin.addStorage("SOJOURNER", "localhost", "/no/such/place")
    with pytest.raises(AuthorizationError):
        alice.addStation("9ID")


def test_no_route_is_open_by_accident(site: fx.Site) -> None:
    made = site.experiments(fx.MANAGER).addExperiment("walk", fx.STATION)
    stranger = site.rest(fx.STRANGER)
    stranger.login()
    arguments = {
        "experimentId": made["id"], "experimentName": "walk", "stationName": fx.STATION, "username": fx.ALICE,
        "batchId": "00000000-0000-4000-8000-000000000000", "purpose": "daq",
    }  # fmt: skip
    walked = route_walk.assert_refuses_strangers(
        site.url, site.service.application.routes, site.ca_file, stranger.cookie, arguments
    )
    assert walked > 40


def test_health_names_its_checks_and_no_secret(site: fx.Site) -> None:
    status = site.rest().get("/status")
    assert {check["name"] for check in status["checks"]} >= {"database", "storage", "publisher"}
    assert status["status"] == "ok", status
    assert "postgresql" not in str(status)
    assert site.rest(fx.ADMIN).delete("/status")["service"] == "storage"


def test_who_the_caller_is_and_how_the_service_is(site: fx.Site) -> None:
    auth = AuthDsApi(fx.MANAGER, fx.password_of(fx.MANAGER), site.url, ca_file=site.ca_file)
    monitor = ServiceMonitorDsApi(fx.ADMIN, fx.password_of(fx.ADMIN), site.url, ca_file=site.ca_file)
    site.clients += [auth, monitor]
    assert auth.authenticateUser()["stationRoles"] == {fx.STATION: ["manager"]}
    assert auth.authenticateUser(fx.ALICE, fx.password_of(fx.ALICE))["username"] == fx.ALICE
    assert auth.getAuthenticatedUser()["username"] == fx.MANAGER
    with pytest.raises(AuthenticationError, match="Incorrect username or password"):
        auth.authenticateUser(fx.ALICE, "wrong")
    auth.logout()
    assert monitor.getServiceStatus()["service"] == "storage"
    assert monitor.clearServiceStatus()["status"] in ("ok", "warning")


def test_sessions_outlive_the_service_and_end_with_the_role(site: fx.Site) -> None:
    client = site.rest(fx.ADMIN)
    client.login()
    cookie = client.cookie
    site.restart()
    again = site.rest()
    again.cookie = cookie
    assert again.get("/session")["systemRoles"] == ["administrator"]
    again.logout()
    again.cookie = cookie
    with pytest.raises(InvalidSession, match="log in again"):
        again.get("/session")
