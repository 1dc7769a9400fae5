"""A processing service over real HTTPS, database and site, within the test process or as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dm.common.client import RestClient
from dm.common.settings import StationSettings
from dm.common.web.server import Server
from dm.station.processing.api import ProcessingJob, WorkflowProcApi
from dm.station.processing.service import Processing, build_from_settings
from dm.station.processing.settings import ProcessingSettings
from tests.service import storage_fixtures as storage

STAGE_ACCOUNT = "nobody" if os.geteuid() == 0 else None
OWNER = storage.MANAGER
PATIENCE = 60.0


def station_settings(site: storage.Site, directory: Path) -> StationSettings:
    """Return the settings of the station, with its service account's login file."""
    login = directory / "service.login"
    login.write_text(f"{storage.SERVICE}|{storage.password_of(storage.SERVICE)}\n")
    login.chmod(0o600)
    return StationSettings(
        name=storage.STATION,
        storage_service_url=site.url,
        ca_file=site.ca_file,
        service_username=storage.SERVICE,
        service_password_file=login,
        var_dir=directory / "var",
    )


def processing_values(database_url: str, certificates: Path, **changes: Any) -> dict[str, Any]:
    """Return settings of the service as plain values."""
    return {
        "host": "127.0.0.1",
        "port": 0,
        "certificate": str(certificates / "server.pem"),
        "key": str(certificates / "server.key"),
        "database_url": database_url,
        "threads": 12,
        "zeromq_port": 0,
        "zeromq_events_port": 0,
        "stop_grace": 1.0,
        "executors": {"local": {"output_grace": 1.0}},
        **({"stage_account": STAGE_ACCOUNT} if STAGE_ACCOUNT else {}),
        **changes,
    }


def lines(file: Path) -> list[str]:
    """Return the words that stages have written into a file; none where there is no file yet."""
    return file.read_text().split() if file.exists() else []


@dataclass
class Running:
    """A service and ways to talk to it."""

    site: storage.Site
    url: str
    clients: list[Any] = field(default_factory=list)
    processing: Processing | None = None
    server: Server | None = None

    def api(self, username: str = OWNER) -> WorkflowProcApi:
        """Return the published API of a user."""
        for client in self.clients:
            if isinstance(client, WorkflowProcApi) and client.username == username:
                return client
        password = storage.password_of(username)
        self.clients.append(WorkflowProcApi(username, password, self.url, ca_file=self.site.ca_file))
        return self.clients[-1]

    def rest(self, username: str | None = OWNER) -> RestClient:
        """Return a REST client of a user, or of nobody."""
        password = storage.password_of(username) if username else None
        self.clients.append(RestClient(self.url, username, password, ca_file=self.site.ca_file))
        return self.clients[-1]

    def workflow(self, stages: dict[str, Any], name: str = "w", owner: str = OWNER, **keys: Any) -> str:
        """Store a workflow and return its name."""
        self.api().upsertWorkflow({"name": name, "owner": owner, "stages": stages, **keys})
        return name

    def start(self, name: str = "w", username: str = OWNER, **arguments: Any) -> ProcessingJob:
        """Start a job, of /dev/null unless told otherwise."""
        return self.api(username).startProcessingJob(OWNER, name, {"filePath": "/dev/null", **arguments})

    def finished(self, job: Any, username: str = OWNER) -> ProcessingJob:
        """Wait for a job's end."""
        return self.api(username).waitProcessingJob(None, job["id"], PATIENCE)

    def run(self, stages: dict[str, Any], **arguments: Any) -> ProcessingJob:
        """Store a workflow, run a job of it and return the ended job."""
        return self.finished(self.start(self.workflow(stages), **arguments))

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.server is not None:
            self.server.stop()
        if self.processing is not None:
            self.processing.stop()


@contextmanager
def running_processing(
    site: storage.Site, database_url: str, certificates: Path, directory: Path, **changes: Any
) -> Iterator[Running]:
    """Run the service in this process until the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = ProcessingSettings(**processing_values(database_url, certificates, **changes))
    processing, server = build_from_settings(settings, station_settings(site, directory))
    processing.start()
    server.start()
    running = Running(site, server.url, processing=processing, server=server)
    try:
        yield running
    finally:
        running.close()


class Process:
    """The service as a process that can be killed and started again, always on the same port."""

    def __init__(
        self, site: storage.Site, database_url: str, certificates: Path, directory: Path, port: int, **changes: Any
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.url = f"https://localhost:{port}"
        self.site = site
        station = station_settings(site, directory)
        sections = {
            "station": {name: str(value) for name, value in station.model_dump(exclude_none=True).items()},
            "processing": processing_values(database_url, certificates, port=port, **changes),
        }
        lines = []
        for name, values in sections.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        self.config = directory / "dm.toml"
        self.config.write_text("\n".join(lines) + "\n")
        self.log = directory / "service.log"
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dm.station.processing.service", "--config", str(self.config), "--foreground"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Start and wait until it answers."""
        self.launch()
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        with RestClient(self.url, ca_file=self.site.ca_file, timeout=5) as client:
            while time.monotonic() < deadline:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                try:
                    client.get("/status")
                except Exception as error:
                    if "refused" not in str(error):
                        raise
                    time.sleep(0.02)
                else:
                    return
        raise AssertionError(f"the service does not answer: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop as an administrator does; return the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else f'"{value}"'
