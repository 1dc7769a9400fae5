"""A storage service over real HTTPS, PostgreSQL and file system, with people in it."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from dm.common.client import RestClient
from dm.common.web.server import Server
from dm.site.storage.api import ExperimentDsApi, FileDsApi, StorageServiceApi, UserDsApi
from dm.site.storage.bootstrap import Station, bootstrap
from dm.site.storage.service import StorageService, build_from_settings, build_server
from dm.site.storage.settings import StorageSettings

STATION, OTHER_STATION = "25IDC", "2BM"
ADMIN, MANAGER, SERVICE = "dmadmin", "s25iduser", "s25iddm"
OTHER_MANAGER, OTHER_SERVICE = "s2bmuser", "s2bmdm"
ALICE, BOB, STRANGER = "d111111", "d222222", "d333333"
PEOPLE = (ALICE, BOB, STRANGER)


def password_of(username: str) -> str:
    """Return the password of a test user."""
    return f"secret-of-{username}"


@dataclass
class Running:
    """A running service of the site and ways to talk to it.

    :param clients: what was made to talk to it, closed with it.
    """

    settings: Any
    ca_file: Path
    service: Any
    server: Server
    clients: list[Any] = field(default_factory=list, kw_only=True)

    @property
    def url(self) -> str:
        return self.server.url

    def _made(self, client: Any) -> Any:
        self.clients.append(client)
        return client

    def rest(self, username: str | None = None) -> RestClient:
        """Return a REST client of a user, or of nobody."""
        password = password_of(username) if username else None
        return self._made(RestClient(self.url, username, password, ca_file=self.ca_file))

    def stop(self) -> None:
        self.server.stop()
        self.service.stop()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.stop()


@dataclass
class Site(Running):
    """A running storage service."""

    settings: StorageSettings
    service: StorageService
    root: Path

    def experiments(self, username: str) -> ExperimentDsApi:
        return self._made(ExperimentDsApi(username, password_of(username), self.url, ca_file=self.ca_file))

    def users(self, username: str) -> UserDsApi:
        return self._made(UserDsApi(username, password_of(username), self.url, ca_file=self.ca_file))

    def files(self, username: str) -> FileDsApi:
        return self._made(FileDsApi(username, password_of(username), self.url, ca_file=self.ca_file))

    def station(self, username: str = SERVICE) -> StorageServiceApi:
        return self._made(StorageServiceApi(username, password_of(username), self.url, ca_file=self.ca_file))

    def restart(self, settings: StorageSettings | None = None) -> None:
        """Stop the service and start another one, on another port, on the same database."""
        self.stop()
        self.settings = settings or self.settings
        self.service, self.server = start(self.settings)


def start(settings: StorageSettings) -> tuple[StorageService, Server]:
    service = build_from_settings(settings)
    try:
        service.start()
        server = build_server(service, settings)
        server.start()
    except BaseException:
        service.stop()
        raise
    return service, server


@contextmanager
def running_site(database_url: str, certificates: Path, directory: Path, **changes: Any) -> Iterator[Site]:
    """Run a storage service with two stations and some people until the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = StorageSettings(
        **{
            "host": "127.0.0.1",
            "port": 0,
            "certificate": certificates / "server.pem",
            "key": certificates / "server.key",
            "database_url": database_url,
            "storage_host": "localhost",
            "threads": 12,
            "database_connections": 4,
            "minimum_free_gigabytes": 0,
            **changes,
        }
    )
    bootstrap(
        settings,
        admin_username=ADMIN,
        admin_password=password_of(ADMIN),
        storage_name="VOYAGER",
        storage_directory=directory / "storage",
        stations=[
            Station(STATION, SERVICE, password_of(SERVICE), MANAGER, password_of(MANAGER)),
            Station(
                OTHER_STATION, OTHER_SERVICE, password_of(OTHER_SERVICE), OTHER_MANAGER, password_of(OTHER_MANAGER)
            ),
        ],
    )
    service, server = start(settings)
    site = Site(settings, certificates / "ca.pem", service, server, directory / "storage")
    try:
        for username in PEOPLE:
            service.use_cases.users.add(username, password_of(username), first_name="Test", last_name=username)
        yield site
    finally:
        site.close()


def staged(directory: str | Path, contents: dict[str, bytes], **extra: Any) -> list[dict[str, Any]]:
    """Write files into a staging directory under opaque names and return the list to hand over."""
    entries = []
    for number, (path, content) in enumerate(contents.items()):
        name = f"{number:06d}"
        (Path(directory) / name).write_bytes(content)
        entries.append(entry(path, name, content, **extra))
    return entries


def entry(path: str, name: str, content: bytes, **extra: Any) -> dict[str, Any]:
    """Return the list entry of one staged file."""
    return {
        "path": path,
        "stagedName": name,
        "size": len(content),
        "mtimeNs": 1_700_000_000_123_456_789,
        "mode": 0o644,
        "digests": {"xxh3_128": xxhash.xxh3_128_hexdigest(content)},
        "md5Sum": hashlib.md5(content).hexdigest(),
        **extra,
    }


def publish(
    station: StorageServiceApi, grant: Any, contents: dict[str, bytes], source: str = "daq-1", **options: Any
) -> dict[str, dict[str, Any]]:
    """Publish files and return the outcome of each by path."""
    extra = options.pop("extra", {})
    batch = str(uuid.uuid4())
    opened = station.openBatch(grant, batch, source=source, **options)
    station.submitBatch(grant, batch, staged(opened["stagingDirectory"], contents, **extra))
    return outcome(station, batch)


def outcome(station: StorageServiceApi, batch: str, seconds: float = 60.0) -> dict[str, dict[str, Any]]:
    """Wait for a batch and return the outcome of each file by path."""
    deadline = time.monotonic() + seconds
    while (result := station.getBatch(batch, waitTime=5.0))["state"] != "committed":
        assert time.monotonic() < deadline, result.data
        time.sleep(0.02)  # the service lets only so many callers wait; others are answered at once
    return {file["path"]: file for file in result["files"]}


def modes(root: Path) -> dict[str, int]:
    """Return the permission bits of everything beneath a directory, by relative path."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = path.lstat().st_mode & 0o7777
    return found
