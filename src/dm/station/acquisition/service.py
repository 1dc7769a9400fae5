"""The Data Acquisition Service: built from real objects or from settings, and run by ``dm-acquisition-service``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dm.common import environment, program, settings
from dm.common.client import RestClient
from dm.common.health import Health
from dm.common.settings import StationSettings
from dm.common.web.application import Application, Authenticator, Authorizer
from dm.common.web.routes import Principal
from dm.common.web.server import Server, serve
from dm.common.web.sessions import MemorySessionStore, SessionStore
from dm.station.acquisition import metrics
from dm.station.acquisition.alarms import Alarms
from dm.station.acquisition.extensions import make_plugins, make_transports
from dm.station.acquisition.office import Office
from dm.station.acquisition.parts import Parts
from dm.station.acquisition.plugins.base import PluginContext
from dm.station.acquisition.routes import routes
from dm.station.acquisition.rules import choice
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.store import Store
from dm.station.identity import SiteIdentity, site_client

NAME = "acquisition"


def build_app(
    office: Office, authenticator: Authenticator, authorizer: Authorizer, sessions: SessionStore, health: Health
) -> Application:
    """Return the application for an office."""
    application = Application(NAME, routes(office, health), authenticator, authorizer, sessions, health)
    office.stopping = application.stopping
    return application


def build_office(
    acquisition: AcquisitionSettings, station: StationSettings, identity: SiteIdentity, file: str | Path
) -> Office:
    """Make an office from settings; it is not opened yet.

    :param file: the settings file, for errors.
    :raises ConfigurationError: a plugin, transport or login file that cannot be used.
    """
    username, password = environment.read_login_file(station.service_password_file)
    username = station.service_username or username
    ca_file = str(station.ca_file) if station.ca_file else None

    def user_client(principal: Principal) -> RestClient:
        return site_client(principal, station)

    site = StorageSite(identity.service_client().client)
    store = Store(acquisition.database_url)
    secrets = [acquisition.key, station.service_password_file, station.var_dir]
    if isinstance(file, Path):  # it may hold the password of a database
        secrets.append(file)
    transports = make_transports(acquisition.transports, file)
    secrets += [secret for transport in transports for secret in transport.secrets]
    parts = Parts(store, site, identity, user_client, station.name, acquisition, transports, [], tuple(secrets))
    office = Office(parts)
    context = PluginContext(station.name, username, password, ca_file, office.pipeline.stop_event)
    choice.check(acquisition.completion_rule, acquisition.completion, file)
    parts.plugins.extend(make_plugins(acquisition.plugins, context, file))
    return office


@dataclass
class AcquisitionService:
    """A service, ready to run: start it, run :attr:`server`, stop it."""

    office: Office
    server: Server
    identity: SiteIdentity
    alarms: Alarms

    def start(self) -> None:
        """Take the database and resume what was running.

        :raises ConfigurationError: another service has the database. :raises ServiceUnavailable: it does not answer.
        """
        self.office.open()
        self.alarms.start()

    def stop(self) -> None:
        """Stop the background work; DAQs and uploads go on at the next start."""
        self.alarms.stop()
        self.office.close()
        self.identity.close()


def build_from_settings(
    acquisition: AcquisitionSettings, station: StationSettings, file: str | Path = "settings"
) -> AcquisitionService:
    """Return the service, nothing started.

    :param file: the settings file, for errors. :raises ConfigurationError: settings that do not fit.
    """
    identity = SiteIdentity(station)
    office = build_office(acquisition, station, identity, file)
    health = Health(NAME, station.name)
    sessions = MemorySessionStore(*acquisition.session_limits)
    alarms = Alarms(office, health)
    metrics.publish(office, health)
    application = build_app(office, identity, identity.authorizer(), sessions, health)
    server = Server.of(application, acquisition)
    return AcquisitionService(office, server, identity, alarms)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM.

    :returns: see :func:`dm.common.program.run`.
    """
    return program.run(NAME, "Run the Data Acquisition Service of a station.", AcquisitionSettings, _run, arguments)


def _run(acquisition: AcquisitionSettings, file: Path) -> None:
    service = build_from_settings(acquisition, settings.load(StationSettings, "station", file), file)
    try:
        service.start()
        serve(service.server, NAME)
    finally:
        service.stop()


if __name__ == "__main__":
    sys.exit(main())
