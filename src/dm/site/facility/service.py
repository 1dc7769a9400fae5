"""The Facility Service: put together from its parts, or from its settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dm.common import program
from dm.common.errors import ServiceUnavailable
from dm.common.health import Health, Level
from dm.common.web.application import Application
from dm.common.web.server import Server, serve
from dm.common.web.throttle import LoginThrottle
from dm.site.database.store import Store
from dm.site.facility.access import FacilityAuthorizer
from dm.site.facility.adapters.base import FacilityAdapter
from dm.site.facility.adapters.loading import load
from dm.site.facility.esafs import Esafs
from dm.site.facility.people import People
from dm.site.facility.plans import Plans
from dm.site.facility.proposals import Proposals
from dm.site.facility.reading import Readings
from dm.site.facility.refresher import Refresher
from dm.site.facility.routes import UseCases, routes
from dm.site.facility.runs import Runs
from dm.site.facility.selection import Selection
from dm.site.facility.settings import FacilitySettings
from dm.site.facility.viewer import Viewer
from dm.site.identity.ldap import parts as ldap_parts
from dm.site.identity.ldap import settings as ldap_settings
from dm.site.identity.ldap.parts import SiteDirectory
from dm.site.identity.ldap.settings import LdapSettings
from dm.site.identity.lockout import SqlTally
from dm.site.identity.sessions import SqlSessionStore
from dm.site.identity.synchronisation import Source, UserSynchronisation
from dm.site.identity.users import Users

NAME = "facility"


@dataclass
class FacilityService:
    """A service, ready to run: start it, serve :attr:`application`, stop it."""

    application: Application
    store: Store
    readings: Readings
    refresher: Refresher
    user_syncs: UserSynchronisation
    directory: SiteDirectory
    users: Users

    def start(self) -> None:
        """Bring the schema up to date and begin reading. :raises ServiceUnavailable: no database."""
        self.store.migrate()
        self.refresher.start()
        self.user_syncs.start()

    def stop(self) -> None:
        """End the background work and close the connections."""
        self.user_syncs.stop()
        self.refresher.stop()
        self.readings.close()
        self.directory.stop()
        with contextlib.suppress(ServiceUnavailable):  # then what was only counted is lost
            self.users.refusals.flush()
        self.store.close()


def build_app(
    store: Store,
    adapters: Mapping[str, FacilityAdapter],
    settings: FacilitySettings,
    directories: Mapping[str, Callable[[], Source]] | None = None,
    ldap: LdapSettings | None = None,
) -> FacilityService:
    """Put the service together from its database, its adapters and its settings; nothing is started.

    :param directories: user directory -> makes a new adapter that reads it. :param ldap: of the site.
    """
    health = Health(NAME)
    readings = Readings(store, adapters, settings)
    viewer = Viewer(store, readings, Selection(settings.stations))
    runs = Runs(viewer)
    proposals, esafs = Proposals(viewer, runs), Esafs(viewer)
    directory = ldap_parts.of_other_service(ldap, store)
    users = Users(store, directory.checks_passwords)
    user_syncs = UserSynchronisation(store, directories or {}, settings.user_sync, directory.push)
    use_cases = UseCases(
        runs,
        proposals,
        esafs,
        Plans(settings.templates, viewer, esafs, proposals, runs),
        readings,
        People(store),
        user_syncs,
        health,
    )
    user_syncs.watch(health)
    _checks(health, store, readings, settings)
    application = Application(
        NAME,
        routes(use_cases),
        users,
        FacilityAuthorizer(),
        SqlSessionStore(store, *settings.session_limits),
        health,
        throttle=LoginThrottle(SqlTally(store)),
    )
    return FacilityService(application, store, readings, Refresher(readings), user_syncs, directory, users)


def build_server(service: FacilityService, settings: FacilitySettings) -> Server:
    """Return the HTTPS server of a service, not started."""
    return Server.of(service.application, settings)


def build_from_settings(settings: FacilitySettings, file: Path | str = "settings") -> FacilityService:
    """Put the service together from its settings.

    :param file: the settings file. :raises ConfigurationError: an adapter that cannot be made.
    """
    store = Store(settings.database_url, settings.database_connections, "dm-facility")
    adapters = load(settings, file)

    def maker(name: str) -> Callable[[], Source]:
        return lambda: load(settings, file)[name]  # one of its own: an adapter serves one thread at a time

    directories = {name: maker(name) for name, adapter in adapters.items() if "users" in adapter.provides}
    ldap = ldap_settings.of_file(file) if Path(file).is_file() else None
    return build_app(store, adapters, settings, directories, ldap)


def _checks(health: Health, store: Store, readings: Readings, settings: FacilitySettings) -> None:
    ages = health.gauge("facility_age_seconds", "Age of what was read from the facility.", ("adapter", "kind"))
    counts = health.gauge("facility_records", "Records at the last reading.", ("adapter", "kind"))
    rejected = health.gauge("facility_rejected", "Records left out at the last reading.", ("adapter", "kind"))

    def database() -> tuple[Level, str]:
        store.ping()
        return "ok", "answers"

    def records() -> tuple[Level, str]:
        problems = []
        state = readings.state()
        for one in state:
            name = f"{one['adapter']}/{one['kind']}"
            age = one["ageSeconds"]
            ages.labels(one["adapter"], one["kind"]).set(float("nan") if age is None else age)
            counts.labels(one["adapter"], one["kind"]).set(one["countRecords"])
            rejected.labels(one["adapter"], one["kind"]).set(one["countRejected"])
            if age is None:
                if one["errorMessage"]:
                    problems.append(f"{name} has never been read{_because(one['errorMessage'])}")
            elif one["errorMessage"]:
                problems.append(f"{name} is {_ago(age)} old{_because(one['errorMessage'])}")
            elif age > settings.stale_hours * 3600:
                problems.append(f"{name} is {_ago(age)} old")
            elif one["countRejected"]:
                problems.append(f"{name}: {one['countRejected']} records left out")
        if problems:
            return "warning", "; ".join(problems)
        unread = sum(one["ageSeconds"] is None for one in state)
        if unread:
            return "ok", f"{unread} of {len(state)} lists are being read for the first time"
        return "ok", f"{len(state)} lists are up to date" if state else "no adapter is configured"

    health.check("database", database)
    health.check("facility", records)


def _because(problem: str) -> str:
    # Strangers may read this; addresses, directories and accounts of the facility's systems are not for them.
    return " (the last try failed, GET /facility/readings says why)" if problem else ""


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:.0f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM.

    :returns: see :func:`dm.common.program.run`.
    """
    return program.run(NAME, "Run the Facility Service.", FacilitySettings, _run, arguments)


def _run(settings: FacilitySettings, file: Path) -> None:
    service = build_from_settings(settings, file)
    service.start()
    try:
        serve(build_server(service, settings), NAME)
    finally:
        service.stop()
