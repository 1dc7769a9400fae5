"""A whole site and a station's catalog, over real HTTPS and real databases, for the catalog's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dm.common.settings import StationSettings
from dm.site.storage.api import ExperimentDsApi, UserDsApi
from dm.site.storage.bootstrap import Station, bootstrap
from dm.site.storage.service import build_from_settings as build_storage
from dm.site.storage.service import build_server
from dm.site.storage.settings import StorageSettings
from dm.station.catalog.service import CatalogService, build_from_settings
from dm.station.catalog.settings import CatalogSettings

STATION = "25IDC"
ADMIN, SERVICE, MANAGER = "dmadmin", "dm25idc", "s25idcuser"
MEMBER_1, MEMBER_10, INVESTIGATOR, STRANGER = "d111111", "d101010", "d121212", "d999999"
PASSWORD = "a long enough passphrase"


@dataclass
class World:
    """What the tests talk to.

    :param url: of the catalog. :param site_url: of the storage service. :param ids: experiment name -> id.
    """

    url: str
    site_url: str
    ca_file: Path
    service: CatalogService
    settings: CatalogSettings
    station: StationSettings
    ids: dict[str, int]

    def api(self, kind: type[Any], username: str = MANAGER) -> Any:
        """Return an API object of the catalog for a user."""
        return kind(username, PASSWORD, self.url, ca_file=self.ca_file)

    def site(self, kind: type[Any], username: str = MANAGER) -> Any:
        """Return an API object of the storage service for a user."""
        return kind(username, PASSWORD, self.site_url, ca_file=self.ca_file)


@contextmanager
def world(postgres_url: str, mongo_url: str, certificates: Path, directory: Path) -> Iterator[World]:
    """Run a storage service with users and the experiments exp1 and exp10, and a catalog beside it."""
    certificate, key, ca_file = certificates / "server.pem", certificates / "server.key", certificates / "ca.pem"
    storage_settings = StorageSettings(
        host="127.0.0.1", port=0, certificate=certificate, key=key, database_url=postgres_url, storage_host="localhost"
    )
    station = Station(STATION, SERVICE, PASSWORD, MANAGER, PASSWORD)
    bootstrap(
        storage_settings,
        admin_username=ADMIN,
        admin_password=PASSWORD,
        storage_name="TESTSTORE",
        storage_directory=directory / "storage",
        stations=[station],
    )
    storage = build_storage(storage_settings)
    storage.start()
    try:
        with build_server(storage, storage_settings) as storage_server:
            login_file = directory / "station.login"
            login_file.write_text(f"{SERVICE}|{PASSWORD}\n")
            login_file.chmod(0o600)
            station_settings = StationSettings(
                name=STATION,
                storage_service_url=f"https://127.0.0.1:{storage_server.port}",
                ca_file=ca_file,
                service_username=SERVICE,
                service_password_file=login_file,
                var_dir=directory,
            )
            settings = CatalogSettings(
                host="127.0.0.1", port=0, certificate=certificate, key=key, database_url=mongo_url, threads=8
            )
            ids = _people(storage_server.url, ca_file)
            service = build_from_settings(settings, station_settings)
            service.start()
            try:
                with service.server:
                    yield World(
                        service.server.url, storage_server.url, ca_file, service, settings, station_settings, ids
                    )
            finally:
                service.stop()
    finally:
        storage.stop()


def _people(url: str, ca_file: Path) -> dict[str, int]:
    users = UserDsApi(ADMIN, PASSWORD, url, ca_file=ca_file)
    experiments = ExperimentDsApi(MANAGER, PASSWORD, url, ca_file=ca_file)
    managers = UserDsApi(MANAGER, PASSWORD, url, ca_file=ca_file)
    ids = {}
    try:
        for username in (MEMBER_1, MEMBER_10, INVESTIGATOR, STRANGER):
            users.addUser(username, PASSWORD)
        for name in ("exp1", "exp10"):
            ids[name] = experiments.addExperiment(name, STATION, STATION)["id"]
        managers.addUserExperimentRole(MEMBER_1, "User", "exp1", STATION)
        managers.addUserExperimentRole(INVESTIGATOR, "PI", "exp1", STATION)
        managers.addUserExperimentRole(MEMBER_10, "User", "exp10", STATION)
    finally:
        for api in (users, experiments, managers):
            api.close()
    return ids
