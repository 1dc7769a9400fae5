"""A small suite on a test bench: each service a process of its own, to be killed, frozen, traced and started again.

The acquisition service runs without the right to read everything that root has, as an installation's does; published
files get another account's owner where the tests run as root.
"""

from __future__ import annotations

import grp
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pymongo import MongoClient

from dm.common import environment
from dm.common.client import RestClient
from dm.common.embedded import EmbeddedMongo, free_port
from dm.common.errors import CommunicationError, DmException
from dm.site.storage.bootstrap import Station, bootstrap
from dm.site.storage.settings import StorageSettings
from tests.service.acquisition_fixtures import ADMIN, MANAGER, QUICK, SERVICE, STATION, until

F = TypeVar("F", bound=Callable[..., Any])
ROOT = os.geteuid() == 0
OWNER = pwd.getpwnam("nobody") if ROOT else pwd.getpwuid(os.geteuid())
NAMES = ("storage", "catalog", "acquisition", "processing")
MODULES = {
    "storage": "dm.site.storage.service",
    "catalog": "dm.station.catalog.service",
    "acquisition": "dm.station.acquisition.service",
    "processing": "dm.station.processing.service",
}
OVER = ("done", "failed", "aborted")
# root without its right to read everything is, to files, an ordinary account
_ORDINARY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


class Witness(RestClient):
    """A client that keeps what should never be seen in an answer."""

    seen: list[str]

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send; see :meth:`RestClient.send`."""
        response = super().send(*args, **kwargs)
        if not kwargs.get("stream") and b"Traceback (most recent call last)" in response.content:
            self.seen.append(f"{args}: {response.text[:2000]}")
        return response


class Service:
    """One service of a bench, as a process.

    :param prefix: words before the command, such as ``setpriv``; they must replace themselves by what follows.
    """

    def __init__(self, bench: Bench, name: str, prefix: Sequence[str] = ()) -> None:
        self.bench = bench
        self.name = name
        self.prefix = tuple(prefix)
        self.log = bench.directory / f"{name}.log"
        self.said = bench.directory / f"{name}.stderr"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process. :raises AssertionError: there is none."""
        assert self.process is not None, f"{self.name} was not started"
        return self.process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def start(
        self, *, wait: bool = True, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it; with ``wait``, return when it answers.

        :param prefix: further words before the command. :param environment: further variables.
        """
        assert not self.alive(), f"{self.name} runs already"
        command = [*self.bench.prefix, *prefix, *self.prefix]
        program = f"import sys; from {MODULES[self.name]} import main; sys.exit(main())"
        command += [sys.executable, "-c", program, "--config", str(self.bench.config)]
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, **(environment or {})},
            )
        if wait:
            self.wait_until_up()

    def wait_until_up(self, seconds: float = 90) -> None:
        """Return when it answers. :raises AssertionError: it ended, or does not."""

        def answers() -> bool:
            assert self.alive(), f"{self.name} ended with {self.process and self.process.returncode}: {self.tail()}"
            try:
                return bool(self.status())
            except CommunicationError:
                return False

        until(answers, seconds, f"an answer of {self.name}")

    def status(self) -> dict[str, Any]:
        """Return its ``/status``."""
        return dict(self.bench.rest(self.name, None).get("/status", timeout=30))

    def tail(self) -> str:
        """Return the end of what it said."""
        return "\n".join(file.read_text("utf-8", "replace")[-3000:] for file in (self.log, self.said) if file.exists())

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def stop(self) -> int:
        """Stop as an administrator does; return the exit status."""
        assert self.process is not None
        if self.alive():
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(60)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It neither works nor answers, nor are its connections closed, until the block ends."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


class Bench:
    """See the module.

    :param directory: other accounts may pass it. :param postgres_url: an empty database.
    :param prefix: words before the command of every service. :param view: how the test sees a path of the services.
    """

    def __init__(
        self,
        directory: Path,
        postgres_url: str,
        certificates: Path,
        *,
        prefix: Sequence[str] = (),
        view: Callable[[str | Path], Path] = Path,
    ) -> None:
        self.directory = directory
        self.certificates = certificates
        self.prefix = tuple(prefix)
        self.view = view
        self.config = directory / "dm.toml"
        self.storage_root = directory / "storage"
        self.mongo = EmbeddedMongo(directory / "mongo", free_port())
        self.ports = {name: free_port() for name in NAMES}
        self.database = "station"
        self.tracebacks: list[str] = []
        self.clients: dict[tuple[str, str | None], Witness] = {}
        self.last_settings: dict[str, Any] = {}
        self.read_logs: dict[Path, int] = {}
        self.experiment_number = 0
        self._postgres_url = postgres_url
        self.login = directory / "station.login"
        environment.write_login_file(self.login, *SERVICE)
        self.storage = Service(self, "storage")
        self.catalog = Service(self, "catalog")
        self.acquisition = Service(self, "acquisition", _ORDINARY if ROOT else ())
        self.processing = Service(self, "processing")
        self.services = (self.storage, self.catalog, self.acquisition, self.processing)

    # --- life -------------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Make the databases and start everything but processing."""
        self.mongo.start()
        self.configure()
        bootstrap(
            StorageSettings(**self._section("storage")),
            admin_username=ADMIN[0],
            admin_password=ADMIN[1],
            storage_name="voyager",
            storage_directory=self.storage_root,
            stations=[Station(STATION, *SERVICE, *MANAGER)],
        )
        for service in self.services[:3]:
            service.start(wait=False)
        for service in self.services[:3]:
            service.wait_until_up()

    def close(self) -> None:
        """Stop everything."""
        for client in self.clients.values():
            client.close()
        running = [service for service in self.services[::-1] if service.alive()]
        for service in running:
            os.kill(service.pid, signal.SIGCONT)
            os.kill(service.pid, signal.SIGTERM)
        for service in running:
            assert service.process is not None
            try:
                service.process.wait(30)
            except subprocess.TimeoutExpired:
                service.kill()
                raise
        self.mongo.stop()

    def sibling(self, directory: Path) -> Bench:
        """Return a bench with an acquisition service of its own, which is started, on the other services of this."""
        directory.mkdir()
        other = Bench(directory, self._postgres_url, self.certificates)
        other.mongo = self.mongo
        other.database = "sibling"
        other.ports = self.ports | {"acquisition": other.ports["acquisition"]}
        other.configure()
        other.acquisition.start()
        return other

    def _section(self, name: str) -> dict[str, Any]:
        common = {
            "host": "127.0.0.1",
            "port": self.ports[name],
            "certificate": str(self.certificates / "server.pem"),
            "key": str(self.certificates / "server.key"),
            "log_file": str(self.directory / f"{name}.log"),
            "threads": 12,
        }
        if name == "storage":
            owners = {"file_owner": OWNER.pw_name, "staging_owner": "root", "staging_group": "root"} if ROOT else {}
            owners["file_group"] = grp.getgrgid(OWNER.pw_gid).gr_name
            return common | owners | {
                "database_url": self._postgres_url,
                "storage_host": "localhost",
                "minimum_free_gigabytes": 0,
                "database_connections": 6,
            }  # fmt: skip
        common["database_url"] = self.mongo.url(self.database)
        if name == "processing":
            ports = {"zeromq_port": 0, "zeromq_events_port": 0}
            return common | ports | {"stop_grace": 1.0} | ({"stage_account": OWNER.pw_name} if ROOT else {})
        return common

    def configure(self, **acquisition: Any) -> None:
        """Write the settings file; ``acquisition`` are further settings of that service, for its next start."""
        plugins: dict[str, Any] = {
            "catalog": {"url": self.url("catalog"), "timeout": 5},
            "workflow": {"url": self.url("processing"), "timeout": 5},
        }
        sections: dict[str, dict[str, Any]] = {name: self._section(name) for name in NAMES}
        sections["acquisition"] |= QUICK | {"plugins": plugins} | acquisition
        sections["station"] = {
            "name": STATION,
            "storage_service_url": self.url("storage"),
            "ca_file": str(self.certificates / "ca.pem"),
            "service_password_file": str(self.login),
            "var_dir": str(self.directory / "var"),
        }
        lines: list[str] = []
        for name, values in sections.items():
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
        self.config.write_text("\n".join(lines) + "\n")
        self.last_settings = acquisition

    def reconfigure(self, **acquisition: Any) -> None:
        """Restart the acquisition service with other settings, unless it has these."""
        if acquisition == self.last_settings and self.acquisition.alive():
            return
        self.acquisition.stop()
        self.configure(**acquisition)
        self.acquisition.start()

    def restore(self, **acquisition: Any) -> None:
        """Put everything back for the next test: services running, acquisition with these settings."""
        self.mongo.start()
        for service in self.services[:3]:
            if not service.alive():
                service.start()
        self.reconfigure(**acquisition)

    def grant_secrets(self) -> list[bytes]:
        """Return the secrets of all grants the acquisition service holds."""
        client: MongoClient[dict[str, Any]] = MongoClient(self.mongo.url(self.database))
        try:
            tasks = client.get_default_database()["acquisitionTasks"].find({}, ["grant"])
            return [str(task["grant"]["secret"]).encode() for task in tasks if (task.get("grant") or {}).get("secret")]
        finally:
            client.close()

    # --- doors ------------------------------------------------------------------------------------------------------
    def url(self, name: str) -> str:
        """Return the URL of a service."""
        return f"https://localhost:{self.ports[name]}"

    def rest(self, name: str = "acquisition", who: tuple[str, str] | None = MANAGER) -> Witness:
        """Return a client of a service."""
        key = (name, who and who[0])
        if key not in self.clients:
            made = Witness(self.url(name), *(who or (None, None)), ca_file=self.certificates / "ca.pem")
            made.seen = self.tracebacks
            self.clients[key] = made
        return self.clients[key]

    def patiently(self, call: Callable[[], Any], seconds: float = 60) -> Any:
        """Call until a service that is down, or hangs, has answered."""

        def tried() -> Any:
            try:
                return (call(),)
            except CommunicationError:
                return None

        return until(tried, seconds)[0]

    def experiment(self) -> dict[str, Any]:
        """Make an experiment of a new name."""
        self.experiment_number += 1
        body = {"experimentName": f"fault{self.experiment_number}", "stationName": STATION}
        return dict(self.rest("storage").post("/experiments", body))

    def begin(self, kind: str, experiment: Mapping[str, Any], source: str | Path, **keys: Any) -> dict[str, Any]:
        """Start a DAQ or upload."""
        body = {"experimentName": experiment["name"], "dataDirectory": str(source), "taskInfo": keys}
        return dict(self.rest().post(f"/{kind}s", body))

    def info(self, kind: str, task: str, wait: float = 0) -> dict[str, Any]:
        """Return the record of a DAQ or upload."""
        return dict(self.rest().get(f"/{kind}s/{task}", waitTime=wait))

    def completed(self, kind: str, task: str) -> int:
        """Return how many files are done, -1 while the service does not answer."""
        try:
            return int(self.rest().get(f"/{kind}s/{task}", timeout=5)["nCompletedFiles"])
        except CommunicationError:
            return -1

    def running(self, experiment: Mapping[str, Any]) -> list[str]:
        """Return the ids of an experiment's DAQs that run, none while the service does not answer."""
        try:
            found = self.rest().get("/daqs", experimentName=experiment["name"], timeout=5)
        except CommunicationError:
            return []
        return [str(daq["id"]) for daq in found if daq["status"] not in OVER]

    def stop_daq(self, task: str) -> None:
        """Ask a DAQ to end."""
        self.rest().post(f"/daqs/{task}/stop")

    def finish(self, kind: str, task: str, seconds: float = 100) -> dict[str, Any]:
        """Wait for the end of a DAQ or upload, over restarts of its service too, and return its record."""
        deadline = time.monotonic() + seconds
        record: dict[str, Any] = {}
        while time.monotonic() < deadline:
            try:
                record = self.info(kind, task, 2)
            except CommunicationError:
                time.sleep(0.05)
                continue
            if record["status"] in OVER:
                return record
        raise AssertionError(f"{kind} {task} did not end within {seconds:g} s: {record}\n{self.acquisition.tail()}")

    def files(self, kind: str, task: str, state: str | None = None) -> list[dict[str, Any]]:
        """Return all ledger records of a DAQ or upload."""
        found: list[dict[str, Any]] = []
        while True:
            chosen = {} if state is None else {"state": state}
            page = self.rest().get(f"/{kind}s/{task}/files", skip=len(found), limit=1000, **chosen)
            found += page
            if len(page) < 1000:
                return found

    def upload(self, experiment: Mapping[str, Any], source: str | Path, **keys: Any) -> dict[str, Any]:
        """Upload a directory and return the record at its end."""
        return self.finish("upload", str(self.begin("upload", experiment, source, **keys)["id"]))

    def data(self, experiment: Mapping[str, Any], *parts: str) -> Path:
        """Return the data directory of an experiment, or something in it, as the test sees it."""
        return self.view(experiment["dataDirectory"]).joinpath(*parts)

    def arrived(self, experiment: Mapping[str, Any]) -> int:
        """Return how many files lie at final names (no request: services may be down)."""
        return sum(len(files) for _place, _names, files in os.walk(self.data(experiment)))


def settings(**acquisition: Any) -> Callable[[F], F]:
    """Say with which settings of the acquisition service a test wants its bench."""

    def say(test: F) -> F:
        test.bench_settings = acquisition  # type: ignore[attr-defined]
        return test

    return say


def fill(source: Path, count: int, size: int = 3000, prefix: str = "f", seed: int = 0) -> None:
    """Write files of random contents."""
    import random

    chance = random.Random(f"{prefix}{seed}")
    source.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (source / f"{prefix}{number}").write_bytes(chance.randbytes(chance.randrange(1, 2 * size)))


def quiet(call: Callable[[], Any]) -> None:
    """Call; whatever DM says against it does not matter."""
    try:
        call()
    except DmException:
        return


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return str(value) if isinstance(value, int | float) else f'"{value}"'
