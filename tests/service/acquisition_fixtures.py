"""A real site for tests of acquisition: the storage service over HTTPS on PostgreSQL, with a station and people."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dm.common import environment
from dm.common.client import RestClient, segment
from dm.common.embedded import free_port
from dm.common.settings import StationSettings
from dm.common.web.routes import Principal
from dm.common.web.server import Server
from dm.site.storage.bootstrap import Station, bootstrap
from dm.site.storage.service import StorageService, build_from_settings
from dm.site.storage.settings import StorageSettings
from dm.station.acquisition.amends import Choice, retry
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.office import Office
from dm.station.acquisition.parts import Parts
from dm.station.acquisition.plugins.base import Plugin
from dm.station.acquisition.service import build_from_settings as build_acquisition
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.store import Store
from dm.station.acquisition.transports.base import Transport
from dm.station.acquisition.transports.local import Local, LocalSettings
from dm.station.catalog.service import build_from_settings as build_catalog
from dm.station.catalog.settings import CatalogSettings

STATION = "25IDC"
SERVICE = ("s25idcdm", "station service password")
MANAGER = ("s25idcuser", "station manager password")
ADMIN = ("dmadmin", "administrator password")
OVER = ("done", "failed", "aborted")

QUICK: dict[str, Any] = {
    "settle_closed_seconds": 0.05,
    "settle_scanned_seconds": 0.2,
    "settle_upload_seconds": 0.05,
    "settle_temporary_seconds": 0.6,
    "scan_seconds": 1,
    "polling_seconds": 0.2,
    "finalize_seconds": 3,
    "retry_first_seconds": 0.05,
    "retry_most_seconds": 0.3,
    "lease_seconds": 4,
}


@dataclass
class Site:
    """A running storage service and what belongs to it."""

    directory: Path
    settings: StorageSettings
    certificates: Path
    port: int = 0
    service: StorageService | None = None
    server: Server | None = None
    clients: list[RestClient] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def start(self) -> None:
        """Start, or start again on the same port."""
        self.service = build_from_settings(self.settings)
        self.service.start()
        self.server = Server(
            self.service.application, "127.0.0.1", self.port, self.settings.certificate, self.settings.key, threads=8
        )
        self.server.start()
        self.port = self.server.port

    def stop(self) -> None:
        if self.server is not None and self.service is not None:
            self.server.stop()
            self.service.stop()
        self.server = self.service = None

    def close(self) -> None:
        self.stop()
        for client in self.clients:
            client.close()

    def client(self, who: tuple[str, str] = MANAGER) -> RestClient:
        client = RestClient(self.url, *who, ca_file=self.certificates / "ca.pem")
        self.clients.append(client)
        return client

    def experiment(self, name: str) -> dict[str, Any]:
        """Add an experiment and return its record."""
        return dict(self.client().post("/experiments", {"experimentName": name, "stationName": STATION}))

    def station_settings(self) -> StationSettings:
        login = self.directory / "station.login"
        if not login.exists():
            environment.write_login_file(login, *SERVICE)
        return StationSettings(
            name=STATION,
            storage_service_url=self.url,
            ca_file=self.certificates / "ca.pem",
            service_password_file=login,
            var_dir=self.directory / "var",
        )

    def acquisition_settings(self, database_url: str, **more: Any) -> AcquisitionSettings:
        return AcquisitionSettings.model_validate(
            {
                "host": "127.0.0.1",
                "port": 0,
                "certificate": self.certificates / "server.pem",
                "key": self.certificates / "server.key",
                "database_url": database_url,
                **QUICK,
                **more,
            }
        )


@contextmanager
def running_site(directory: Path, database_url: str, certificates: Path) -> Iterator[Site]:
    """Set up and run a site below a directory."""
    settings = StorageSettings(
        host="127.0.0.1",
        port=0,
        certificate=certificates / "server.pem",
        key=certificates / "server.key",
        database_url=database_url,
        storage_host="localhost",
        minimum_free_gigabytes=0,
    )
    bootstrap(
        settings,
        admin_username=ADMIN[0],
        admin_password=ADMIN[1],
        storage_name="voyager",
        storage_directory=directory / "storage",
        stations=[Station(STATION, *SERVICE, *MANAGER)],
    )
    # A port of its own from the beginning: one the kernel chose could not be listened on again at once.
    site = Site(directory, settings, certificates, free_port())
    site.start()
    try:
        yield site
    finally:
        site.close()


@contextmanager
def running_catalog(site: Site, database_url: str) -> Iterator[Server]:
    """Run the catalog of the site's station."""
    settings = CatalogSettings(
        host="127.0.0.1",
        port=0,
        certificate=site.certificates / "server.pem",
        key=site.certificates / "server.key",
        database_url=database_url,
    )
    service = build_catalog(settings, site.station_settings())
    service.start()
    service.server.start()
    yield service.server
    service.server.stop()
    service.stop()


@contextmanager
def running_service(site: Site, database_url: str, **more: Any) -> Iterator[Server]:
    """Run the acquisition service.

    :param more: its settings.
    """
    service = build_acquisition(site.acquisition_settings(database_url, **more), site.station_settings())
    try:
        service.start()
        service.server.start()
        yield service.server
    finally:
        service.server.stop()
        service.stop()


@contextmanager
def running_api(site: Site, database_url: str, **more: Any) -> Iterator[ExperimentDaqApi]:
    """Run the acquisition service and yield what its manager asks it with.

    :param more: settings of the service.
    """
    with running_service(site, database_url, **more) as server:
        api = ExperimentDaqApi(*MANAGER, url=f"https://localhost:{server.port}", ca_file=site.certificates / "ca.pem")
        try:
            yield api
        finally:
            api.close()


class AskingIdentity:
    """Asks the site for the experiment as its manager, for tests that need no HTTP of their own."""

    def __init__(self, site: Site) -> None:
        self.client = site.client()

    def experiment(self, principal: Principal, name: str) -> dict[str, Any]:
        return dict(self.client.get(f"/experimentsByName/{segment(name)}/{STATION}"))


@contextmanager
def running_office(
    site: Site,
    database_url: str,
    plugins: list[Plugin] | None = None,
    transports: list[Transport] | None = None,
    **more: Any,
) -> Iterator[Office]:
    """Run the acquisition service's inside, without its HTTP."""
    settings = site.acquisition_settings(database_url, **more)
    service = site.client(SERVICE)
    manager = site.client()
    parts = Parts(
        Store(settings.database_url, timeout=5),
        StorageSite(service),
        AskingIdentity(site),
        lambda _principal: manager,
        STATION,
        settings,
        transports or [Local(LocalSettings())],
        plugins or [],
    )
    office = Office(parts)
    office.open()
    try:
        yield office
    finally:
        office.close()


PRINCIPAL = Principal(MANAGER[0], station_roles={STATION: frozenset({"manager"})})


def retried(office: Office, kind: str, task: str) -> int:
    """Have all failed files tried again; return how many."""
    choice = Choice(PRINCIPAL.username)
    return office.decide(kind, task, PRINCIPAL, lambda found: retry(found, office.pipeline, choice))


def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "the condition") -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s"
        time.sleep(0.02)


def finish(office: Office, kind: str, task: str, seconds: float = 60.0) -> dict[str, Any]:
    """Wait for the end of a DAQ or upload and return its record."""
    deadline = time.monotonic() + seconds
    while True:
        record = office.info(kind, task, 2)
        if record["status"] in OVER:
            return record
        assert time.monotonic() < deadline, f"{kind} did not end within {seconds:g} s: {record}"


def tree(directory: str | Path) -> dict[bytes, str]:
    """Return relative path -> SHA-256 of all files below a directory."""
    root = os.fsencode(directory)
    found = {}
    for place, _directories, names in os.walk(root):
        for name in names:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = hashlib.sha256(file.read()).hexdigest()
    return found
