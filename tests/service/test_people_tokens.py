"""API tokens at a storage service and at a station's: what they open, what they never open, and how they end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from dm.common import environment, tls, tokens
from dm.common.client import RestClient
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    InvalidArgument,
    InvalidSession,
    ObjectNotFound,
    ServiceLimit,
)
from dm.common.health import Health
from dm.common.settings import StationSettings
from dm.common.web.application import Application
from dm.common.web.routes import Access, Arguments, NoArguments, Request, Route, Who
from dm.common.web.server import Server
from dm.common.web.sessions import MemorySessionStore
from dm.site.storage.api import TokenDsApi, UserDsApi
from dm.station.identity import SiteIdentity
from tests.service import storage_fixtures as fx


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site"), token_max_days=100) as running:
        running.experiments(fx.MANAGER).addExperiment("exp1", fx.STATION, usernameList=[fx.ALICE])
        running.experiments(fx.OTHER_MANAGER).addExperiment("exp2", fx.OTHER_STATION, usernameList=[fx.ALICE])
        yield running


def api(site: fx.Site, username: str, password: str | None = None) -> TokenDsApi:
    made = TokenDsApi(username, password or fx.password_of(username), site.url, ca_file=site.ca_file)
    site.clients.append(made)
    return made


def made(site: fx.Site, username: str, *scopes: str, **options: Any) -> str:
    return str(api(site, username).addToken("test", scopes, **options)["token"])


def bearer(site: fx.Site, token: str) -> RestClient:
    client = RestClient(site.url, token=token, ca_file=site.ca_file)
    site.clients.append(client)
    return client


def statuses(client: RestClient, *calls: tuple[str, str, dict[str, Any] | None]) -> list[int]:
    return [
        client.send(method, path, content=b"" if body is None else httpx.Request("POST", "http://x", json=body).content,
                    headers={"Content-Type": "application/json"}).status_code
        for method, path, body in calls
    ]  # fmt: skip


def test_a_token_is_shown_once_and_only_its_hash_is_kept(site: fx.Site) -> None:
    record = api(site, fx.ALICE).addToken("of a test", ["read"], days=3)
    token = tokens.parse(str(record["token"]))
    assert token is not None and token.id == record["id"] and token.text == record["token"]
    (listed,) = [one for one in api(site, fx.ALICE).getTokens() if one["id"] == token.id]
    assert "token" not in listed and listed["status"] == "active"
    assert (listed["username"], listed["createdBy"], listed["scopes"]) == (fx.ALICE, fx.ALICE, ["read"])
    with site.service.store.transaction() as connection:
        row = connection.execute(text("SELECT * FROM api_tokens WHERE id = :id"), {"id": token.id}).mappings().one()
    assert bytes(row["secret_hash"]) == hashlib.sha256(token.secret.encode()).digest()
    assert token.secret not in str(dict(row)) and (row["expires"] - row["created"]).days == 3


def test_a_token_needs_no_login_and_cookies_beside_it_are_not_looked_at(site: fx.Site) -> None:
    alice, manager = bearer(site, made(site, fx.ALICE, "read")), site.rest(fx.MANAGER)
    manager.login()
    described = alice.get("/session", headers={"Cookie": f"SESSIONID={manager.cookie}"})
    assert described == {"username": fx.ALICE, "systemRoles": [], "stationRoles": {}, "scopes": ["read"]}
    with httpx.Client(verify=tls.client_context(site.ca_file)) as http:
        for value in ("Bearer dmt_" + "0" * 32 + "_" + "x" * 43, "Bearer nonsense", "bearer", f"Bearer {'x' * 5000}"):
            headers = {"Authorization": value, "Cookie": f"SESSIONID={manager.cookie}"}
            reply = http.get(f"{site.url}/session", headers=headers)
            assert (reply.status_code, reply.json()["errorCode"]) == (401, 12), value
        reply = http.get(
            f"{site.url}/session", headers={"Authorization": "Basic eDp5", "Cookie": f"SESSIONID={manager.cookie}"}
        )
        assert reply.json()["username"] == fx.MANAGER


def test_scopes_say_which_routes_a_token_opens(site: fx.Site) -> None:
    get, put = ("GET", f"/experimentsByName/exp1/{fx.STATION}", None), "/experimentMetadata"
    change = ("PUT", put, {"experimentName": "exp1", "stationName": fx.STATION, "key": "k", "value": 1})
    grant = ("POST", "/grants", {"experimentName": "exp1", "stationName": fx.STATION, "purpose": "upload"})
    users = ("GET", "/users", None)
    expected = {
        "read": [200, 403, 403, 200],
        "storage": [200, 200, 200, 200],
        "all": [200, 200, 200, 200],
        "acquisition": [200, 403, 200, 403],
        "processing": [200, 403, 200, 403],
        "facility": [403, 403, 403, 403],
    }
    found = {
        scope: statuses(bearer(site, made(site, fx.MANAGER, scope)), get, change, grant, users) for scope in expected
    }
    assert found == expected
    with pytest.raises(AuthorizationError, match=r"API token is for facility; this takes scope .*storage"):
        bearer(site, made(site, fx.MANAGER, "facility")).get("/users")


def test_system_roles_go_with_scope_all_only(site: fx.Site) -> None:
    for scope, roles in (("storage", []), ("all", ["administrator"])):
        assert bearer(site, made(site, fx.ADMIN, scope)).get("/session")["systemRoles"] == roles
    bound = made(site, fx.ADMIN, "all", stationName=fx.STATION)
    assert bearer(site, bound).get("/session")["systemRoles"] == []


def test_a_token_for_a_station_is_good_for_nothing_at_others(site: fx.Site) -> None:
    here = f"/experimentsByName/exp1/{fx.STATION}"
    there = f"/experimentsByName/exp2/{fx.OTHER_STATION}"
    client = bearer(site, made(site, fx.ALICE, "read", stationName=fx.STATION))
    assert client.get(here)["name"] == "exp1"
    assert client.get("/session")["onlyStation"] == fx.STATION
    with pytest.raises(ObjectNotFound):
        client.get(there)
    assert client.get(f"/experimentsByStation/{fx.OTHER_STATION}") == []
    assert bearer(site, made(site, fx.ALICE, "read")).get(there)["name"] == "exp2"


def test_no_token_makes_tokens_or_changes_rights(site: fx.Site) -> None:
    client = bearer(site, made(site, fx.ADMIN, "all"))
    tried: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/tokens", {"name": "t", "scopes": ["all"]}),
        ("POST", "/users", {"username": "d987654"}),
        ("PUT", f"/usersByUsername/{fx.BOB}", {"password": "pass-word-9"}),
        ("PUT", f"/usersByUsername/{fx.ADMIN}/password", {"oldPassword": "x" * 9, "newPassword": "y" * 9}),
        ("POST", "/userSystemRoles", {"username": fx.BOB, "roleName": "administrator"}),
        ("POST", "/userStationRoles", {"username": fx.BOB, "roleName": "manager", "stationName": fx.STATION}),
        ("DELETE", "/sessions", {}),
    ]  # fmt: skip
    assert statuses(client, *tried) == [403] * len(tried)
    with pytest.raises(AuthorizationError, match="log in with a password"):
        client.post("/tokens", {"name": "t", "scopes": ["all"]})
    as_password = api(site, fx.ADMIN, made(site, fx.ADMIN, "all"))
    with pytest.raises(AuthorizationError, match="log in with a password"):
        as_password.addToken("t", ["all"])


def test_a_token_is_no_old_password_and_no_password_looks_like_one(site: fx.Site) -> None:
    token, users = made(site, fx.BOB, "all"), site.users(fx.BOB)
    with pytest.raises(InvalidArgument, match="old password is not right"):
        users.changePassword(token, "pass-word-9")
    with pytest.raises(InvalidArgument, match="API token"):
        users.changePassword(fx.password_of(fx.BOB), tokens.new().text)
    assert site.rest(fx.BOB).get("/session")["username"] == fx.BOB


def test_a_token_gives_what_its_owner_has_at_the_moment(site: fx.Site) -> None:
    administrator, client = site.users(fx.ADMIN), bearer(site, made(site, fx.BOB, "all"))
    path = f"/experimentsByName/exp1/{fx.STATION}"
    assert statuses(client, ("GET", path, None)) == [404]
    administrator.addUserExperimentRole(fx.BOB, "User", "exp1", fx.STATION)
    assert client.get(path)["name"] == "exp1"
    administrator.deleteUserExperimentRole(fx.BOB, "User", "exp1", fx.STATION)
    assert statuses(client, ("GET", path, None)) == [404]


def test_a_token_in_the_password_s_place_opens_a_session_that_is_bound_to_it(site: fx.Site) -> None:
    token = made(site, fx.MANAGER, "read")
    with httpx.Client(verify=tls.client_context(site.ca_file)) as http:  # as published clients do
        wrong = http.post(f"{site.url}/login", data={"username": fx.ALICE, "password": token})
        assert (wrong.status_code, wrong.json()["errorMessage"]) == (401, "Incorrect username or password.")
        login = http.post(f"{site.url}/login", data={"username": fx.MANAGER, "password": token})
        assert login.json()["scopes"] == ["read"]
        assert http.get(f"{site.url}/users").status_code == 200
        assert http.post(f"{site.url}/grants", json={}).status_code in (400, 403)
        grant = {"experimentName": "exp1", "stationName": fx.STATION, "purpose": "upload"}
        assert http.post(f"{site.url}/grants", json=grant).status_code == 403
        parsed = tokens.parse(token)
        assert parsed is not None
        assert api(site, fx.MANAGER).revokeToken(parsed.id)["status"] == "revoked"
        assert http.get(f"{site.url}/users").status_code == 401
        assert http.post(f"{site.url}/login", data={"username": fx.MANAGER, "password": token}).status_code == 401


def test_a_login_file_with_a_token(site: fx.Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.write_login_file(tmp_path / "login", fx.MANAGER, made(site, fx.MANAGER, "read"))
    monkeypatch.setenv(environment.LOGIN_FILE, str(tmp_path / "login"))
    client = UserDsApi(url=site.url, ca_file=site.ca_file, keep_session=True)
    site.clients.append(client)
    assert client.username == fx.MANAGER
    assert fx.ALICE in [user["username"] for user in client.getUsers()]
    assert client.client.cookie is None
    environment.write_login_file(tmp_path / "login", fx.MANAGER, "dmt_" + "0" * 32 + "_" + "x" * 43)
    stale = UserDsApi(url=site.url, ca_file=site.ca_file)
    site.clients.append(stale)
    with pytest.raises(InvalidSession, match="not valid"):
        stale.getUsers()
    environment.write_login_file(tmp_path / "login", fx.MANAGER, made(site, fx.MANAGER, "read"))
    assert stale.getUsers()  # the new token is picked up by a running program


def test_ends_of_a_token(site: fx.Site) -> None:
    for ending in ("revoked = now()", "expires = now()", "secret_hash = '\\x00'"):
        token = made(site, fx.ALICE, "read")
        parsed, client = tokens.parse(token), bearer(site, token)
        assert parsed is not None and client.get("/session")
        with site.service.store.transaction() as connection:
            connection.execute(text(f"UPDATE api_tokens SET {ending} WHERE id = :id"), {"id": parsed.id})
        with pytest.raises(InvalidSession, match="API token is not valid"):
            client.get("/session")


def test_whose_tokens_one_may_make_see_and_revoke(site: fx.Site) -> None:
    manager, administrator, other = api(site, fx.MANAGER), api(site, fx.ADMIN), api(site, fx.OTHER_MANAGER)
    at_station = {"stationName": fx.STATION, "username": fx.SERVICE}
    token = manager.addToken("for the services", ["acquisition", "catalog"], **at_station)
    assert (token["username"], token["createdBy"], token["stationName"]) == (fx.SERVICE, fx.MANAGER, fx.STATION)
    assert administrator.addToken("too", ["all"], username=fx.SERVICE)["stationName"] is None
    for who, options in (
        (fx.MANAGER, {"username": fx.SERVICE}),  # not bound to the station
        (fx.OTHER_MANAGER, at_station),
        (fx.MANAGER, {"stationName": fx.OTHER_STATION, "username": fx.OTHER_SERVICE}),
        (fx.MANAGER, {"stationName": fx.STATION, "username": fx.ALICE}),  # a person
        (fx.MANAGER, {"stationName": fx.STATION, "username": fx.ADMIN}),
        (fx.ADMIN, {"username": fx.ALICE}),
        (fx.ALICE, {"username": fx.BOB}),
        (fx.ALICE, {"username": "nobody-of-that-name"}),
    ):
        with pytest.raises(AuthorizationError, match="Tokens are made for oneself"):
            api(site, who).addToken("t", ["read"], **options)  # type: ignore[arg-type]
    ids = {one["id"] for one in manager.getTokens(fx.SERVICE)}
    assert token["id"] in ids
    assert token["id"] not in {one["id"] for one in other.getTokens()}
    for who in (fx.OTHER_MANAGER, fx.ALICE):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            api(site, who).revokeToken(str(token["id"]))
    assert manager.revokeToken(str(token["id"]))["status"] == "revoked"
    assert token["id"] not in {one["id"] for one in manager.getTokens()}
    assert token["id"] in {one["id"] for one in manager.getTokens(includeEnded=True)}


def test_a_station_s_account_does_not_become_its_manager_by_a_token(site: fx.Site) -> None:
    """It uses grants and gives none; by a manager's token it could."""
    body = {"name": "mine", "scopes": ["all"], "stationName": fx.STATION}
    own = site.rest(fx.SERVICE).post("/tokens", body)
    assert own["username"] == fx.SERVICE
    with pytest.raises(AuthorizationError, match="managers make them"):
        site.rest(fx.SERVICE).post("/tokens", body | {"username": fx.MANAGER})
    managers = site.rest(fx.MANAGER).post("/tokens", body)
    listed = [one["id"] for one in site.rest(fx.SERVICE).get("/tokens")]
    assert own["id"] in listed and managers["id"] not in listed
    with pytest.raises(ObjectNotFound):
        site.rest(fx.SERVICE).delete(f"/tokens/{managers['id']}")
    assert site.rest(fx.MANAGER).delete(f"/tokens/{own['id']}")["status"] == "revoked"


def test_what_a_token_cannot_be(site: fx.Site) -> None:
    alice = api(site, fx.ALICE)
    for scopes, options in ((["root"], {}), ([], {}), (["read"], {"days": 0}), (["read"], {"days": 101})):
        with pytest.raises(InvalidArgument):
            alice.addToken("t", scopes, **options)
    with pytest.raises(InvalidArgument, match="name"):
        alice.addToken("", ["read"])
    with pytest.raises(ObjectNotFound):
        alice.addToken("t", ["read"], stationName="99ID")
    stranger = api(site, fx.STRANGER)
    with pytest.raises(ServiceLimit, match="50 tokens"):
        for _ in range(51):
            stranger.addToken("t", ["read"])


def test_tokens_in_use_that_end_soon_are_noted_once(site: fx.Site) -> None:
    token = tokens.parse(made(site, fx.ALICE, "read", days=2))
    assert token is not None and bearer(site, token.text).get("/session")
    use = site.service.use_cases.tokens
    assert use.warn() == use.warn() >= 1
    found = api(site, fx.ADMIN).getAuditEvents("token.ending", subject=token.id)
    assert [event["details"]["user"] for event in found] == [fx.ALICE]
    assert use.health()[0] == "ok"  # a person sees to their own
    station = api(site, fx.MANAGER).addToken("t", ["read"], fx.STATION, 3, fx.SERVICE)
    assert bearer(site, str(station["token"])).get("/session")
    assert use.health() == ("warning", "1 API tokens of stations in use end within 7 days")


def test_by_default_a_pi_adds_nobody(site: fx.Site) -> None:
    site.users(fx.MANAGER).addUserExperimentRole(fx.BOB, "PI", "exp1", fx.STATION)
    with pytest.raises(AuthorizationError):
        site.users(fx.BOB).addUserExperimentRole(fx.STRANGER, "User", "exp1", fx.STATION)
    site.users(fx.MANAGER).deleteUserExperimentRole(fx.BOB, "PI", "exp1", fx.STATION)


# --- at a station ------------------------------------------------------------------------------------------------


def _ok(request: Request, arguments: Arguments) -> dict[str, str]:
    return {"username": request.principal.username}


class OfExperiment(Arguments):
    experiment_name: str


ROUTES = [
    Route("GET", "/user", _ok, Access(Who.USER), "Any user."),
    Route("POST", "/user", _ok, Access(Who.USER), "Any user."),
    Route("GET", "/experiment", _ok, Access(Who.EXPERIMENT, "experiment_name"), "A member.", OfExperiment),
    Route("POST", "/manager", _ok, Access(Who.MANAGER), "A manager.", NoArguments),
]


@dataclass
class StationService:
    identity: SiteIdentity
    server: Server

    def statuses(self, *calls: tuple[str, str], **headers: str) -> list[int]:
        with httpx.Client(verify=tls.client_context(self.ca_file)) as http:
            return [
                http.request(method, f"{self.server.url}{path}", headers=headers).status_code for method, path in calls
            ]

    ca_file: Path


@pytest.fixture
def station(site: fx.Site, certificates: Path, tmp_path: Path) -> Iterator[StationService]:
    login = tmp_path / "service.login"
    environment.write_login_file(login, fx.SERVICE, made(site, fx.SERVICE, "storage"))
    identity = SiteIdentity(
        StationSettings(
            name=fx.STATION, storage_service_url=site.url, ca_file=site.ca_file, service_username=fx.SERVICE,
            service_password_file=login,
        )
    )  # fmt: skip
    application = Application(
        "acquisition", ROUTES, identity, identity.authorizer(), MemorySessionStore(), Health("acquisition")
    )
    server = Server(application, "127.0.0.1", 0, certificates / "server.pem", certificates / "server.key", threads=6)
    server.start()
    yield StationService(identity, server, site.ca_file)
    server.stop()
    identity.close()


CALLS = (("GET", "/user"), ("POST", "/user"), ("POST", "/manager"), ("GET", "/experiment?experimentName=exp1"))


def test_stations_ask_the_site_with_the_caller_s_token(station: StationService, site: fx.Site) -> None:
    for username, scopes, expected in (
        (fx.MANAGER, ["acquisition"], [200, 200, 200, 200]),
        (fx.MANAGER, ["read"], [200, 403, 403, 200]),
        (fx.MANAGER, ["catalog"], [403, 403, 403, 403]),
        (fx.ALICE, ["acquisition"], [200, 200, 403, 200]),
        (fx.BOB, ["all"], [200, 200, 403, 404]),
    ):
        token = made(site, username, *scopes)
        assert station.statuses(*CALLS, Authorization=f"Bearer {token}") == expected, (username, scopes)
    bound = made(site, fx.MANAGER, "all", stationName=fx.STATION)
    assert station.statuses(*CALLS, Authorization=f"Bearer {bound}") == [200, 200, 200, 200]
    assert station.statuses(*CALLS, Authorization="Bearer dmt_x") == [401] * 4
    unknown = "dmt_" + "0" * 32 + "_" + "x" * 43
    assert station.statuses(*CALLS, Authorization=f"Bearer {unknown}") == [401] * 4


def test_a_station_takes_a_token_at_the_login(station: StationService, site: fx.Site) -> None:
    token = made(site, fx.MANAGER, "acquisition")
    parsed = tokens.parse(token)
    with httpx.Client(verify=tls.client_context(site.ca_file)) as http:
        login = {"username": fx.ALICE, "password": token}
        assert http.post(f"{station.server.url}/login", data=login).status_code == 401
        login = {"username": fx.MANAGER, "password": token}
        assert http.post(f"{station.server.url}/login", data=login).json()["scopes"] == ["acquisition"]
        assert http.post(f"{station.server.url}/manager").status_code == 200
        assert parsed is not None
        api(site, fx.MANAGER).revokeToken(parsed.id)
        station.identity.forget()  # what it knew for up to 5 s
        assert http.post(f"{station.server.url}/manager").status_code == 401
    assert station.statuses(*CALLS, Authorization=f"Bearer {token}") == [401] * 4


def test_the_station_s_own_account_may_use_a_token(station: StationService, site: fx.Site) -> None:
    grant = site.station(fx.MANAGER).addGrant("exp1", "upload", fx.STATION)
    client = station.identity.service_client()
    assert fx.publish(client, grant, {"f": b"1"})["f"]["status"]
    assert client.client.cookie is None


def test_while_the_site_is_away_known_tokens_go_on(postgres_url: str, station: StationService, site: fx.Site) -> None:
    token, stranger = made(site, fx.MANAGER, "acquisition"), made(site, fx.ALICE, "all")
    assert station.statuses(*CALLS[:3], Authorization=f"Bearer {token}") == [200, 200, 200]
    site.server.stop()
    try:
        station.identity._roles.clear()  # five seconds later
        assert station.statuses(*CALLS[:3], Authorization=f"Bearer {token}") == [200, 200, 200]
        assert station.statuses(*CALLS[:3], Authorization=f"Bearer {stranger}") == [503, 503, 503]
    finally:
        site.restart()


def test_guessing_tokens_touches_nothing(site: fx.Site) -> None:
    client = bearer(site, made(site, fx.ALICE, "read"))
    assert client.get("/session")
    for _ in range(30):
        with pytest.raises((AuthenticationError, InvalidSession)):
            bearer(site, tokens.new().text).get("/session")
    assert client.get("/session")


def test_guesses_with_large_bodies_lock_nobody_out_elsewhere(site: fx.Site) -> None:
    token = made(site, fx.ALICE, "storage")
    wrong = token[:37] + "A" * 43
    number = site.experiments(fx.ALICE).getExperimentByName("exp1", fx.STATION)["id"]
    body = {"root": "data", "paths": ["x" * 200] * 500}

    def ask(text: str, address: str) -> int:
        transport = httpx.HTTPTransport(verify=tls.client_context(site.ca_file), local_address=address)
        with httpx.Client(transport=transport) as client:
            url = f"{site.url}/experimentsById/{number}/files/check"
            return client.post(url, json=body, headers={"Authorization": f"Bearer {text}"}).status_code

    assert [ask(wrong, "127.0.0.2") for _ in range(11)] == [401] * 10 + [429]
    assert ask(token, "127.0.0.1") == 200
