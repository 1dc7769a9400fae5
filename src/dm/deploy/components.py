"""What an installation consists of: services and embedded databases, in the order they are started."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dm.common.embedded import EmbeddedMongo, EmbeddedPostgres
from dm.common.errors import ConfigurationError, DmException, ServiceUnavailable
from dm.common.hosting import listens
from dm.common.pidfile import PidFile
from dm.common.settings import SiteSettings, StationSettings, load, read

START_SECONDS = 60.0
STOP_SECONDS = 10.0
_POLL = 0.1
_OUTPUT_LIMIT = 1 << 20

# name -> module, section of its settings, section of its side
SERVICES = {
    "storage": ("dm.site.storage.service", "storage", "site"),
    "facility": ("dm.site.facility.service", "facility", "site"),
    "catalog": ("dm.station.catalog.service", "catalog", "station"),
    "processing": ("dm.station.processing.service", "processing", "station"),
    "acquisition": ("dm.station.acquisition.service", "acquisition", "station"),
}
GROUPS = {
    "site": ("site-database", "storage", "facility"),
    "station": ("station-database", "catalog", "processing", "acquisition"),
}
GROUPS["all"] = GROUPS["site"] + GROUPS["station"]


class Component(ABC):
    """Something that can be started and stopped. ``start`` and ``stop`` are idempotent."""

    name: str
    pid_file: PidFile

    @abstractmethod
    def start(self) -> None:
        """Start unless running, and return when it answers. :raises ServiceUnavailable: it does not come up."""

    @abstractmethod
    def stop(self) -> None:
        """Stop if running."""

    def health(self) -> str:
        """Return what it says about itself, in a few words; empty when it says nothing."""
        return ""


class SiteDatabase(Component):
    """The embedded PostgreSQL."""

    name = "site-database"

    def __init__(self, directory: Path) -> None:
        self.server = EmbeddedPostgres(directory)
        self.pid_file = self.server.pid_file

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()


class StationDatabase(Component):
    """The embedded MongoDB-wire server."""

    name = "station-database"

    def __init__(self, directory: Path, port: int | None) -> None:
        self.server = EmbeddedMongo(directory, port)
        self.pid_file = self.server.pid_file

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()


class Service(Component):
    """One of the services, a process of its own session, followed by its pid file.

    :param name: a key of :data:`SERVICES`. :param config: the settings file. :param values: its section there.
    :param var: directory with ``run`` and ``log``.
    """

    def __init__(self, name: str, config: Path, values: dict[str, Any], var: Path) -> None:
        self.name = name
        self.config = config
        self.var = var
        self.pid_file = PidFile(var / "run" / f"{name}.pid")
        self.output = var / "log" / f"{name}.out"
        self.log = Path(values["log_file"]) if values.get("log_file") else self.output
        self.port = int(values.get("port", 0))
        host = str(values.get("host", ""))
        self.host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104

    def start(self) -> None:
        for directory in (self.var / "run", self.var / "log"):
            directory.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self.pid_file.alive() is not None and self._answers():
                return
            # Not there, or just dying: what was killed a moment ago can still be seen.
            self.pid_file.reap()
            self._launch()
            if not self._answers():
                self.pid_file.reap()
                self.pid_file.remove()
                raise ServiceUnavailable(f"{self.name} ended while starting: {self._said()}")

    def stop(self) -> None:
        if self.pid_file.path.parent.is_dir():
            with self._locked():
                self.pid_file.terminate(STOP_SECONDS)

    def health(self) -> str:
        try:
            return str(self.status().get("status", ""))
        except (OSError, http.client.HTTPException, ValueError):
            return "does not answer"

    def status(self) -> dict[str, Any]:
        """Return what the service says under ``/status``. :raises OSError: no answer."""
        # Whether the certificate fits this name is for clients to check: we ask our own process on our own host.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=10, context=context)
        try:
            connection.request("GET", "/status")
            found = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found if isinstance(found, dict) else {}

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.var / "run" / f".{self.name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _launch(self) -> None:
        if self.output.exists() and self.output.stat().st_size > _OUTPUT_LIMIT:
            self.output.replace(self.output.with_name(f"{self.output.name}.1"))
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                [*command(self.name), "--config", str(self.config)], stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, cwd="/", start_new_session=True,
            )  # fmt: skip
        self.pid_file.write(process.pid)
        process.returncode = 0  # followed by its pid file from here on

    def _answers(self) -> bool:
        """Wait until it answers; ``False`` when it ends instead. :raises ServiceUnavailable: it takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while (pid := self.pid_file.alive()) is not None:
            # The port must be its own: whoever else has it may answer as well.
            if not self.port or listens(pid, self.port):
                with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                    if not self.port or self.status():
                        return True
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"{self.name} (pid {pid}) does not answer on port {self.port}; {self._said()}")
            time.sleep(_POLL)
        return False

    def _said(self) -> str:
        """Return the last line of its output and log, whichever is newer."""
        files = [path for path in {self.output, self.log} if path.is_file() and path.stat().st_size]
        for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
            with path.open("rb") as stream:
                stream.seek(max(0, path.stat().st_size - 8192))
                lines = [line for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
            if lines:
                return f"{lines[-1].strip()} (log {path})"
        return f"it left no message (log {self.log})"


def command(name: str) -> list[str]:
    """Return the command line that runs a service: its installed command, or without one its module."""
    script = Path(sys.executable).parent / f"dm-{name}-service"
    if os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-P", "-c", f"from {SERVICES[name][0]} import main; main()"]


def components(config: Path) -> dict[str, Component]:
    """Return the components the settings file declares on this host, by name, in starting order.

    A service runs where its section is; an embedded database where ``database_directory`` names one.

    :raises ConfigurationError: a settings file that cannot be used.
    """
    sections = read(config)
    found: dict[str, Component] = {}
    sides: dict[str, SiteSettings | StationSettings] = {}
    if {"site", "storage", "facility"} & sections.keys():
        sides["site"] = load(SiteSettings, "site", config)
    if "station" in sections:
        sides["station"] = load(StationSettings, "station", config)
    for name in GROUPS["all"]:
        side = sides.get("site" if name in GROUPS["site"] else "station")
        if side is None:
            continue
        if name in SERVICES:
            if name in sections:
                values = {**sections[name], **_overrides(name)}
                found[name] = Service(name, config, _absolute(values, config), side.var_dir)
        elif side.database_directory is not None:
            port = urlsplit(str(sections.get("catalog", {}).get("database_url", ""))).port
            found[name] = (
                SiteDatabase(side.database_directory)
                if name == "site-database"
                else StationDatabase(side.database_directory, port)
            )
    if not found:
        raise ConfigurationError(f"Settings file {config} declares no service for this host.")
    return found


def _overrides(section: str) -> dict[str, str]:
    prefix = f"DM_{section.upper()}__"
    return {name.removeprefix(prefix).lower(): text for name, text in os.environ.items() if name.startswith(prefix)}


def _absolute(values: dict[str, Any], config: Path) -> dict[str, Any]:
    if values.get("log_file"):
        values["log_file"] = config.parent / Path(str(values["log_file"])).expanduser()
    return values


def chosen(name: str, config: Path) -> list[Component]:
    """Return the components a name stands for: one of them, ``site``, ``station`` or ``all``.

    :raises ConfigurationError: unknown, or not on this host.
    """
    known = components(config)
    if name in GROUPS:
        found = [known[member] for member in GROUPS[name] if member in known]
        if not found:
            raise ConfigurationError(f"Settings file {config} declares no {name} service for this host.")
        return found
    if name not in known:
        raise ConfigurationError(f"No component {name!r} here; choose one of {', '.join([*known, *GROUPS])}.")
    return [known[name]]


def start(parts: list[Component]) -> None:
    """Start components in order; on failure those already running stay up. :raises DmException: the first failure."""
    for part in parts:
        part.start()


def stop(parts: list[Component]) -> None:
    """Stop components in reverse order, all of them. :raises DmException: the first failure, after trying all."""
    failures: list[DmException] = []
    for part in reversed(parts):
        try:
            part.stop()
        except DmException as error:
            failures.append(error)
    if failures:
        raise failures[0]
