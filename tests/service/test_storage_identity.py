"""A station service that asks a real storage service who its callers are."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dm.common import environment
from dm.common.caller import Caller, calling
from dm.common.client import RestClient
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    ConfigurationError,
    InvalidSession,
    ObjectNotFound,
    ServiceLimit,
    ServiceUnavailable,
)
from dm.common.health import Health
from dm.common.settings import StationSettings
from dm.common.web.application import Application
from dm.common.web.routes import Access, Arguments, NoArguments, Principal, Request, Route, Who
from dm.common.web.server import Server
from dm.common.web.sessions import MemorySessionStore
from dm.station.identity import SITE_COOKIE, SiteIdentity
from tests.service import storage_fixtures as fx


class OfOwner(Arguments):
    owner: str


class OfExperiment(Arguments):
    experiment_name: str | None = None


def _ok(request: Request, arguments: Arguments) -> dict[str, str]:
    return {"username": request.principal.username}


ROUTES = [
    Route("GET", "/user", _ok, Access(Who.USER), "Any user."),
    Route("GET", "/owner/{owner}", _ok, Access(Who.OWNER, "owner"), "The owner.", OfOwner),
    Route("GET", "/experiment", _ok, Access(Who.EXPERIMENT, "experiment_name"), "A member.", OfExperiment),
    Route("GET", "/manager", _ok, Access(Who.MANAGER), "A manager.", NoArguments),
    Route("GET", "/admin", _ok, Access(Who.ADMIN), "An administrator.", NoArguments),
    Route("GET", "/service", _ok, Access(Who.SERVICE), "The service account.", NoArguments),
]


@dataclass
class StationService:
    identity: SiteIdentity
    server: Server
    site: fx.Site

    def rest(self, username: str) -> RestClient:
        client = RestClient(self.server.url, username, fx.password_of(username), ca_file=self.site.ca_file)
        self.site.clients.append(client)
        return client


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        experiments = running.experiments(fx.MANAGER)
        experiments.addExperiment("exp1", fx.STATION, usernameList=[fx.ALICE])
        experiments.addExperiment("exp10", fx.STATION, usernameList=[fx.BOB])
        yield running


@pytest.fixture
def station(site: fx.Site, certificates: Path, tmp_path: Path) -> Iterator[StationService]:
    login = tmp_path / "service.login"
    environment.write_login_file(login, fx.SERVICE, fx.password_of(fx.SERVICE))
    identity = SiteIdentity(
        StationSettings(
            name=fx.STATION, storage_service_url=site.url, ca_file=site.ca_file, service_username=fx.SERVICE,
            service_password_file=login,
        )
    )  # fmt: skip
    sessions = MemorySessionStore()
    application = Application("probe", ROUTES, identity, identity.authorizer(), sessions, Health("probe"))
    server = Server(application, "127.0.0.1", 0, certificates / "server.pem", certificates / "server.key", threads=6)
    server.start()
    yield StationService(identity, server, site)
    server.stop()
    identity.close()


def allowed(client: RestClient, path: str) -> bool:
    try:
        return bool(client.get(path))
    except (AuthorizationError, ObjectNotFound):
        return False


def test_logins_are_checked_by_the_site_and_its_session_is_never_shown(station: StationService) -> None:
    principal = station.identity.login(fx.MANAGER, fx.password_of(fx.MANAGER))
    assert principal.manages(fx.STATION) and not principal.is_admin
    assert principal.attributes[SITE_COOKIE] and principal.attributes[SITE_COOKIE] not in repr(principal)
    with pytest.raises(AuthenticationError, match="Incorrect username or password"):
        station.identity.login(fx.MANAGER, "wrong")
    with pytest.raises(AuthenticationError, match="Incorrect username or password"):
        station.identity.login("d999999", "wrong")
    client = station.rest(fx.MANAGER)
    assert set(client.get("/session")) == {"username", "systemRoles", "stationRoles"}


def test_f41_who_guesses_at_a_station_locks_out_nobody_else_there(
    site: fx.Site, station: StationService, certificates: Path
) -> None:
    """The site believes its stations where their callers are; it would else count them all as one."""
    proxied, server = fx.start(site.settings.model_copy(update={"trusted_proxies": ["127.0.0.1"]}))
    identity = SiteIdentity(station.identity._settings.model_copy(update={"storage_service_url": server.url}))
    try:
        for _ in range(12):
            with calling(Caller("", "192.0.2.66", "1", "probe")), pytest.raises((AuthenticationError, ServiceLimit)):
                identity.login(fx.STRANGER, "wrong")
        with calling(Caller("", "192.0.2.66", "1", "probe")), pytest.raises(ServiceLimit):
            identity.login(fx.STRANGER, fx.password_of(fx.STRANGER))
        with calling(Caller("", "192.0.2.7", "1", "probe")):
            assert identity.login(fx.STRANGER, fx.password_of(fx.STRANGER)).username == fx.STRANGER
    finally:
        identity.close()
        server.stop()
        proxied.stop()


@pytest.mark.parametrize(
    ("username", "paths"),
    [
        (fx.ALICE, {"/user", f"/owner/{fx.ALICE}", "/experiment?experimentName=exp1"}),
        (fx.STRANGER, {"/user"}),
        (fx.OTHER_MANAGER, {"/user"}),
        (fx.OTHER_SERVICE, {"/user"}),
        (fx.MANAGER, {"/user", f"/owner/{fx.ALICE}", "/experiment?experimentName=exp1",
                      "/experiment?experimentName=exp10", "/experiment", "/manager"}),
        (fx.SERVICE, {"/user", f"/owner/{fx.ALICE}", "/experiment?experimentName=exp1",
                      "/experiment?experimentName=exp10", "/experiment", "/manager", "/service"}),
        (fx.ADMIN, {"/user", f"/owner/{fx.ALICE}", "/experiment?experimentName=exp1",
                    "/experiment?experimentName=exp10", "/experiment", "/manager", "/admin"}),
    ],
)  # fmt: skip
def test_who_may_call_what(station: StationService, username: str, paths: set[str]) -> None:
    client = station.rest(username)
    every = {"/user", f"/owner/{fx.ALICE}", "/experiment?experimentName=exp1", "/experiment?experimentName=exp10",
             "/experiment?experimentName=nothing", "/experiment", "/manager", "/admin", "/service"}  # fmt: skip
    assert {path for path in every if allowed(client, path)} == paths


def test_experiments_are_seen_as_the_caller_sees_them_and_remembered(station: StationService) -> None:
    alice = station.identity.login(fx.ALICE, fx.password_of(fx.ALICE))
    record = station.identity.experiment(alice, "exp1")
    assert record["stationName"] == fx.STATION
    record["name"] = "changed by the caller"
    assert station.identity.experiment(alice, "exp1")["name"] == "exp1"
    with pytest.raises(ObjectNotFound, match="does not exist"):
        station.identity.experiment(alice, "exp10")
    with pytest.raises(InvalidSession):
        station.identity.experiment(Principal(fx.ALICE), "exp1")


def test_changed_roles_ask_for_a_new_login_which_brings_them(station: StationService, site: fx.Site) -> None:
    bob = station.rest(fx.BOB)
    assert not allowed(bob, "/manager")
    admin = site.users(fx.ADMIN)
    admin.addUserStationRole(fx.BOB, "manager", fx.STATION)
    try:
        station.identity.forget()
        assert allowed(bob, "/manager")
    finally:
        admin.deleteUserStationRole(fx.BOB, "manager", fx.STATION)
    station.identity.forget()
    assert not allowed(bob, "/manager")


def test_a_session_that_ended_at_the_site_ends_at_the_station(station: StationService) -> None:
    alice = station.identity.login(fx.ALICE, fx.password_of(fx.ALICE))
    other = station.site.rest()
    other.cookie = str(alice.attributes[SITE_COOKIE])
    other.logout()
    with pytest.raises(InvalidSession, match="log in again"):
        station.identity.experiment(alice, "exp1")
    with pytest.raises(InvalidSession, match="log in again"):
        station.identity.current(alice)


def test_the_service_account_publishes_with_a_grant_of_a_manager(station: StationService, site: fx.Site) -> None:
    grant = site.station(fx.MANAGER).addGrant("exp1", "daq", fx.STATION)
    client = station.identity.service_client()
    assert client is station.identity.service_client()
    assert fx.publish(client, grant, {uuid.uuid4().hex: b"x"})
    login = station.identity._settings.service_password_file
    environment.write_login_file(login, fx.ALICE, fx.password_of(fx.ALICE))
    client.client.cookie = None
    with pytest.raises(ConfigurationError, match=fx.ALICE):
        client.getBatch(str(uuid.uuid4()))


def test_while_the_site_is_away_known_callers_go_on_and_new_access_is_refused(
    station: StationService, site: fx.Site
) -> None:
    manager, alice = station.rest(fx.MANAGER), station.rest(fx.ALICE)
    assert allowed(manager, "/manager") and allowed(alice, "/experiment?experimentName=exp1")
    site.server.stop()
    try:
        station.identity.forget()
        assert allowed(manager, "/manager") and not allowed(alice, "/manager")
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            alice.get("/experiment?experimentName=exp1")
        with pytest.raises(ServiceUnavailable, match="cannot check the password"):
            station.identity.login(fx.ALICE, fx.password_of(fx.ALICE))
    finally:
        site.restart()
