"""The audit log, inactive users, and what principal investigators may do, at a running storage service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    InvalidArgument,
    InvalidObjectState,
    InvalidSession,
    ObjectNotFound,
)
from dm.common.web.routes import Principal
from dm.site.identity import audit, refusals
from dm.site.identity.audit_log import AuditLog, Question
from dm.site.storage.api import TokenDsApi
from tests.service import storage_fixtures as fx

NAME = f"exp1/{fx.STATION}"


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site"), pi_manages_users=True) as running:
        running.experiments(fx.MANAGER).addExperiment("exp1", fx.STATION, usernameList=[fx.ALICE])
        running.experiments(fx.OTHER_MANAGER).addExperiment("exp2", fx.OTHER_STATION)
        yield running


def api(site: fx.Site, username: str) -> TokenDsApi:
    made = TokenDsApi(username, fx.password_of(username), site.url, ca_file=site.ca_file)
    site.clients.append(made)
    return made


def events(site: fx.Site, username: str = fx.ADMIN, **question: Any) -> list[dict[str, Any]]:
    return [event.data for event in api(site, username).getAuditEvents(**question)]


# --- the audit log -----------------------------------------------------------------------------------------------


def test_changes_of_people_and_roles_are_noted_with_who_and_from_where(site: fx.Site) -> None:
    users = site.users(fx.ADMIN)
    users.addUser("d444444", "pass-word-1")
    users.updateUser("d444444", lastName="Now", password="pass-word-2")
    users.addUserStationRole("d444444", "manager", fx.STATION)
    users.deleteUserStationRole("d444444", "manager", fx.STATION)
    users.addUserSystemRole("d444444")
    users.deleteUserSystemRole("d444444")
    users.addUserExperimentRole("d444444", "PI", "exp1", fx.STATION)
    users.deleteUserExperimentRole("d444444", "PI", "exp1", fx.STATION)
    found = events(site, user="d444444")
    experiment = {"role": "PI", "experiment": NAME}
    expected = [
        ("user.added", {}),
        ("user.changed", {"changed": ["last_name"]}),
        ("password.changed", {}),
        ("role.given", {"role": "manager", "station": fx.STATION}),
        ("role.taken", {"role": "manager", "station": fx.STATION}),
        ("role.given", {"role": "administrator"}),
        ("role.taken", {"role": "administrator"}),
        ("role.given", experiment),
        ("role.taken", experiment),
    ]
    assert [(event["event"], event["details"].keys() - {"experimentId"}) for event in found] == [
        (name, details.keys()) for name, details in expected
    ]
    for event, (_, details) in zip(found, expected, strict=True):
        assert event["details"].items() >= details.items()
        assert (event["actor"], event["remote"], event["service"]) == (fx.ADMIN, "127.0.0.1", "storage")
        assert len(event["requestId"]) == 16
    assert "pass-word" not in str(found)


def test_logins_and_logouts_are_noted(site: fx.Site) -> None:
    client = site.rest(fx.BOB)
    client.login()
    client.logout()
    found = events(site, user=fx.BOB)
    assert [event["event"] for event in found][-2:] == ["login.ok", "logout"]
    assert found[-2]["remote"] == "127.0.0.1"


def test_what_is_rolled_back_was_never_noted(site: fx.Site) -> None:
    with pytest.raises(InvalidObjectState, match="last administrator"):
        site.users(fx.ADMIN).deleteUserSystemRole(fx.ADMIN)
    assert not [event for event in events(site, event="role.taken") if event["subject"] == fx.ADMIN]


def test_managers_see_what_concerns_their_station_only(site: fx.Site) -> None:
    site.users(fx.ADMIN).addUserStationRole(fx.STRANGER, "manager", fx.OTHER_STATION)
    site.users(fx.ADMIN).deleteUserStationRole(fx.STRANGER, "manager", fx.OTHER_STATION)
    here, there = events(site, fx.MANAGER), events(site, fx.OTHER_MANAGER)
    assert NAME in {event["subject"] for event in here} and NAME not in {event["subject"] for event in there}
    assert f"exp2/{fx.OTHER_STATION}" in {event["subject"] for event in there}
    assert fx.STRANGER in {event["subject"] for event in there}
    assert fx.STRANGER not in {event["subject"] for event in here}
    assert not [event for event in here if event["event"].startswith("login")]
    for username in (fx.ALICE, fx.STRANGER):
        with pytest.raises(AuthorizationError):
            events(site, username)


def test_questions_and_pages(site: fx.Site) -> None:
    every = events(site, limit=1000)
    assert [event["id"] for event in every] == sorted(event["id"] for event in every)
    assert {event["event"] for event in events(site, event="role")} <= {"role.given", "role.taken"}
    assert {event["subject"] for event in events(site, subject=NAME)} == {NAME}
    middle = every[len(every) // 2]["time"]
    assert all(event["time"] >= middle for event in events(site, since=middle))
    assert all(event["time"] < middle for event in events(site, until=middle))
    paged: list[int] = []
    page: dict[str, Any] = {"before": None}
    for _ in range(len(every)):
        query = {} if page["before"] is None else {"before": page["before"]}
        page = site.rest(fx.ADMIN).get("/auditEvents", limit=7, **query)
        paged = [event["id"] for event in page["events"]] + paged
        if page["before"] is None:
            break
    assert set(paged) >= {event["id"] for event in every} and paged == sorted(paged)
    for bad in ({"limit": 0}, {"limit": 1001}, {"since": "someday"}):
        with pytest.raises(InvalidArgument):
            site.rest(fx.ADMIN).get("/auditEvents", **bad)


def test_old_events_are_dropped_and_others_never_change(site: fx.Site) -> None:
    store = site.service.store
    with store.transaction() as connection, audit.acting("a test"):
        audit.record(
            connection, "test.old", "s\0\udcff", value=float("nan"), text="\udcff\0", deep=[{"a": None}], none=None
        )
        connection.execute(text("UPDATE audit_events SET time = now() - interval '3 years' WHERE event = 'test.old'"))
    (old,) = events(site, event="test.old")
    assert old["actor"] == "a test" and old["subject"] == "s\\x00\\udcff" and old["details"]["deep"] == [{"a": None}]
    before = [event["id"] for event in events(site, limit=1000) if event["event"] != "test.old"]
    assert AuditLog(store, 365).forget() == 1
    assert [event["id"] for event in events(site, limit=1000)][: len(before)] == before
    routes = [route for route in site.service.application.routes if route.path.startswith("/auditEvents")]
    assert [route.method for route in routes] == ["GET"]


# --- refused logins ----------------------------------------------------------------------------------------------


def test_refused_logins_do_not_keep_what_was_typed(site: fx.Site) -> None:
    typed = "MyPassw0rd-in-the-wrong-field"
    for username in (typed, "d987654", fx.ALICE):
        with pytest.raises(AuthenticationError):
            TokenDsApi(username, "wrong", site.url, ca_file=site.ca_file).client.login()
    found = events(site, event="login.refused")
    assert [(event["subject"], event["details"]["known"]) for event in found[-3:]] == [
        ("", False),
        ("d987654", False),
        (fx.ALICE, True),
    ]
    with site.service.store.transaction() as connection:
        rows = connection.execute(text("SELECT CAST(to_jsonb(a) AS text) FROM audit_events a")).scalars().all()
    assert not [row for row in rows if typed in row]


def test_refused_logins_cannot_fill_the_disk(site: fx.Site) -> None:
    now = [0.0]
    noted = refusals.Refusals(site.service.store, clock=lambda: now[0])

    def rows() -> list[dict[str, Any]]:
        return [event for event in events(site, event="login.refused", limit=5000) if event["id"] > first]

    first = max((event["id"] for event in events(site)), default=0)
    for _ in range(50):
        noted.note(fx.ALICE, known=True)
    for number in range(500):
        noted.note(f"guess-{number}", known=False)
    assert len(rows()) == refusals.MOST_ROWS
    now[0] += refusals.WINDOW_SECONDS
    noted.note(fx.BOB, known=True)
    found = rows()
    assert len(found) == refusals.MOST_ROWS + 3
    assert sum(event["details"]["count"] for event in found) == 551
    assert [event["details"]["count"] for event in found if event["subject"] == fx.ALICE] == [1, 49]
    noted.flush()
    assert len(rows()) == len(found)


# --- inactive users ----------------------------------------------------------------------------------------------


def test_an_inactive_user_is_out_by_every_way_at_once(site: fx.Site) -> None:
    users, path = site.users(fx.ADMIN), f"/experimentsByName/exp1/{fx.STATION}"
    token = str(api(site, fx.ALICE).addToken("t", ["all"])["token"])
    client = site.rest(fx.ALICE)
    assert client.get(path)["name"] == "exp1"
    assert users.updateUser(fx.ALICE, active=False)["active"] is False
    assert client.send("GET", path).status_code == 401
    assert client.send("GET", path, headers={"Authorization": f"Bearer {token}"}).status_code == 401
    for password in (fx.password_of(fx.ALICE), token):
        with pytest.raises((AuthenticationError, InvalidSession)):
            TokenDsApi(fx.ALICE, password, site.url, ca_file=site.ca_file).client.login()
    assert fx.ALICE in [
        user["username"] for user in site.experiments(fx.MANAGER).getExperimentByName("exp1")["experimentUsers"]
    ]
    assert users.updateUser(fx.ALICE, active=True)["active"] is True
    assert client.send("GET", path).status_code == 401  # that session is over
    assert site.rest(fx.ALICE).get(path)["name"] == "exp1"
    assert [event["event"] for event in events(site, user=fx.ALICE) if event["event"].endswith("activated")] == [
        "user.deactivated",
        "user.activated",
    ]


def test_grants_of_an_inactive_user_do_not_hold(site: fx.Site) -> None:
    users = site.users(fx.ADMIN)
    users.addUserStationRole(fx.BOB, "manager", fx.STATION)
    grant = site.station(fx.BOB).addGrant("exp1", "upload", fx.STATION)
    assert fx.publish(site.station(), grant, {"a": b"1"})
    users.updateUser(fx.BOB, active=False)
    with pytest.raises(AuthorizationError, match="does not hold"):
        fx.publish(site.station(), grant, {"b": b"1"})
    users.updateUser(fx.BOB, active=True)
    users.deleteUserStationRole(fx.BOB, "manager", fx.STATION)


def test_the_last_active_administrator_stays(site: fx.Site) -> None:
    users = site.users(fx.ADMIN)
    users.addUserSystemRole(fx.BOB)
    users.updateUser(fx.BOB, active=False)
    with pytest.raises(InvalidObjectState, match="last administrator"):
        users.updateUser(fx.ADMIN, active=False)
    with pytest.raises(InvalidObjectState, match="last administrator"):
        users.deleteUserSystemRole(fx.ADMIN)
    users.deleteUserSystemRole(fx.BOB)  # one who is not active may lose the role
    users.updateUser(fx.BOB, active=True)
    with pytest.raises(AuthorizationError):
        site.users(fx.MANAGER).updateUser(fx.BOB, active=False)


# --- principal investigators -------------------------------------------------------------------------------------


def test_a_pi_adds_and_removes_users_of_the_own_experiment_where_the_site_says_so(site: fx.Site) -> None:
    manager, pi, user = site.users(fx.MANAGER), site.users(fx.BOB), site.users(fx.ALICE)
    manager.addUserExperimentRole(fx.BOB, "PI", "exp1", fx.STATION)
    assert pi.addUserExperimentRole(fx.STRANGER, "User", "exp1", fx.STATION)["username"] == fx.STRANGER
    assert pi.deleteUserExperimentRole(fx.STRANGER, "User", "exp1", fx.STATION)
    with pytest.raises(AuthorizationError):
        pi.addUserExperimentRole(fx.STRANGER, "PI", "exp1", fx.STATION)
    with pytest.raises(AuthorizationError):
        pi.deleteUserExperimentRole(fx.BOB, "PI", "exp1", fx.STATION)
    with pytest.raises(AuthorizationError):
        user.addUserExperimentRole(fx.STRANGER, "User", "exp1", fx.STATION)
    with pytest.raises(ObjectNotFound):
        pi.addUserExperimentRole(fx.STRANGER, "User", "exp2", fx.OTHER_STATION)
    manager.deleteUserExperimentRole(fx.BOB, "PI", "exp1", fx.STATION)
    with pytest.raises(ObjectNotFound):
        pi.addUserExperimentRole(fx.STRANGER, "User", "exp1", fx.STATION)


def test_questions_of_managers_of_nothing(site: fx.Site) -> None:
    log = AuditLog(site.service.store, 1)
    assert log.page(Principal("d1"), Question())["events"] == []
