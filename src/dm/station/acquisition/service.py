"""The Data Acquisition Service: built from real objects or from settings, and run by ``dm-acquisition-service``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dm.common import environment, program, settings
from dm.common.client import RestClient
from dm.common.errors import ServiceUnavailable
from dm.common.health import Health, Level
from dm.common.settings import StationSettings
from dm.common.web.application import Application, Authenticator, Authorizer
from dm.common.web.routes import Principal
from dm.common.web.server import Server, serve
from dm.common.web.sessions import MemorySessionStore, SessionStore
from dm.station.acquisition.extensions import make_plugins, make_transports
from dm.station.acquisition.ledger import State
from dm.station.acquisition.office import Office, Parts
from dm.station.acquisition.plugins.base import PluginContext
from dm.station.acquisition.routes import routes
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.store import Store
from dm.station.identity import SiteIdentity

NAME = "acquisition"


def build_app(
    office: Office, authenticator: Authenticator, authorizer: Authorizer, sessions: SessionStore, health: Health
) -> Application:
    """Return the application for an office, with its health checks."""
    watch_over(office, health)
    application = Application(NAME, routes(office, health), authenticator, authorizer, sessions, health)
    office.stopping = application.stopping
    return application


def watch_over(office: Office, health: Health) -> None:
    """Add what there is to watch to the health model."""
    limits = office.parts.settings

    def database() -> tuple[Level, str]:
        try:
            office.store.ping()
        except ServiceUnavailable as error:
            return "critical", error.message
        return "ok", "The database answers."

    def lease() -> tuple[Level, str]:
        return ("critical", office.pipeline.paused) if office.pipeline.paused else ("ok", "The database is ours.")

    def progress() -> tuple[Level, str]:
        now = time.monotonic()
        stalled = [
            task
            for task in list(office.live.values())
            if task.ledger.count(State.READY, State.STORED) and now - task.progress > limits.stalled_minutes * 60
        ]
        if stalled:
            reason = stalled[0].trouble or "no reason known"
            return "warning", f"{len(stalled)} DAQs or uploads make no progress; {stalled[0].id}: {reason}"
        return "ok", f"{len(office.live)} DAQs and uploads are running."

    def backlog() -> tuple[Level, str]:
        waiting = sum(task.ledger.count(State.READY, State.STORED) for task in list(office.live.values()))
        level: Level = "warning" if waiting > limits.backlog_files else "ok"
        return level, f"{waiting} files are waiting."

    def disks() -> tuple[Level, str]:
        for task in list(office.live.values()):
            if not task.source.is_local:
                continue
            try:
                status = os.statvfs(task.source.root)
            except OSError as error:
                return "warning", f"Data directory {task.data_directory!a} cannot be seen: {error.strerror}."
            if status.f_blocks and status.f_bavail / status.f_blocks < 0.05:
                free = status.f_bavail * status.f_frsize / 1e9
                return "warning", f"The disk of {task.data_directory!a} is almost full: {free:.1f} GB are free."
        return "ok", "The data directories can be seen and their disks have room."

    for name, check in (
        ("database", database),
        ("lease", lease),
        ("progress", progress),
        ("backlog", backlog),
        ("sources", disks),
    ):
        health.check(name, check)
    files = health.gauge("files", "Files of running DAQs and uploads by state.", ("kind", "state"))
    for kind in ("daq", "upload"):
        for state in (State.READY, State.STORED, State.DONE, State.FAILED, State.SKIPPED, State.VANISHED):
            files.labels(kind, state.name.lower()).set_function(_counter(office, kind, state))
    stored = health.gauge("stored_bytes", "Bytes of running DAQs and uploads that arrived.")
    stored.set_function(lambda: float(sum(task.ledger.bytes_done for task in list(office.live.values()))))
    oldest = health.gauge("oldest_waiting_seconds", "Age of the oldest ready file that is not on its way.")
    oldest.set_function(lambda: _oldest(office))


def _counter(office: Office, kind: str, state: State) -> Callable[[], float]:
    return lambda: float(sum(task.ledger.count(state) for task in list(office.live.values()) if task.kind == kind))


def _oldest(office: Office) -> float:
    with office.pipeline.condition:
        moments = [since for task in office.live.values() if (since := task.oldest()) is not None]
    return max(0.0, time.monotonic() - min(moments)) if moments else 0.0


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
        cookie = principal.attributes.get("siteCookie")
        return RestClient(station.storage_service_url, session=str(cookie or ""), ca_file=ca_file)

    site = StorageSite(identity.service_client().client)
    store = Store(acquisition.database_url)
    secrets = [acquisition.key, station.service_password_file, station.var_dir]
    if isinstance(file, Path):  # it may hold the password of a database
        secrets.append(file)
    parts = Parts(store, site, identity, user_client, station.name, acquisition, [], [], tuple(secrets))
    office = Office(parts)
    context = PluginContext(station.name, username, password, ca_file, office.pipeline.stop_event)
    parts.transports.extend(make_transports(acquisition.transports, file))
    parts.plugins.extend(make_plugins(acquisition.plugins, context, file))
    return office


@dataclass
class AcquisitionService:
    """A service, ready to run: start it, run :attr:`server`, stop it."""

    office: Office
    server: Server
    identity: SiteIdentity

    def start(self) -> None:
        """Take the database and resume what was running.

        :raises ConfigurationError: another service has the database. :raises ServiceUnavailable: it does not answer.
        """
        self.office.open()

    def stop(self) -> None:
        """Stop the background work; DAQs and uploads go on at the next start."""
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
    application = build_app(office, identity, identity.authorizer(), sessions, health)
    server = Server(
        application,
        acquisition.host,
        acquisition.port,
        acquisition.certificate,
        acquisition.key,
        threads=acquisition.threads,
    )
    return AcquisitionService(office, server, identity)


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
