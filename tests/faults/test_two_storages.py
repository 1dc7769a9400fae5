"""Two storage services behind nginx on one PostgreSQL, killed in turn while everything goes on.

Whatever fails is mended by asking again, nobody has to log in again, and nothing is lost or done twice.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dm.common.client import RestClient
from dm.common.errors import CommunicationError, DmException, ObjectAlreadyExists, ObjectNotFound, ServiceUnavailable
from dm.common.hosting import free_port
from dm.deploy import tomlwriter
from dm.site.database.store import Store
from dm.site.identity.users import Users
from dm.site.storage.api import ExperimentDsApi, StorageServiceApi
from dm.site.storage.bootstrap import Station, bootstrap
from dm.site.storage.settings import StorageSettings
from tests.service import storage_fixtures as fx
from tests.service.nginx_server import Nginx, running_nginx

PATIENCE = 60.0
PROGRAM = "from dm.site.storage.service import main; import sys; sys.exit(main())"


@dataclass
class Twin:
    """One of the two services, as a process."""

    port: int
    config: Path
    authority: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.config.with_suffix(".out").open("ab") as output:
            words = [sys.executable, "-c", PROGRAM, "--config", str(self.config)]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + PATIENCE
        with RestClient(f"https://localhost:{self.port}", ca_file=self.authority) as client:
            while True:
                try:
                    client.get("/status")
                    return
                except (CommunicationError, ServiceUnavailable):
                    assert self.process.poll() is None, self.config.with_suffix(".out").read_text()
                    assert time.monotonic() < deadline, "it does not come up"
                    time.sleep(0.05)

    def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)


@dataclass
class Twins:
    """Both, with nginx in front."""

    services: list[Twin]
    nginx: Nginx
    settings: StorageSettings
    authority: Path
    mended: int = 0
    errors: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def client(self, username: str, **options: Any) -> RestClient:
        return RestClient(self.nginx.url, username, fx.password_of(username), ca_file=self.authority, **options)

    def again(self, call: Callable[[], Any], *fine: type[DmException]) -> Any:
        """Call until it is answered; ``fine`` are answers that say a call before has done it, though not answered."""
        deadline, asked = time.monotonic() + PATIENCE, 0
        while True:
            try:
                return call()
            except (CommunicationError, ServiceUnavailable) as error:
                assert time.monotonic() < deadline, f"still after {PATIENCE:.0f} s: {error}"
                asked += 1
                self.mended += 1
                time.sleep(0.05)
            except fine:
                if not asked:
                    raise
                return None

    def loop(self, work: Callable[[int], None]) -> Callable[[], None]:
        """Return a thread's work: rounds until the end, with the first error kept."""

        def run() -> None:
            try:
                for number in itertools.count():
                    work(number)
                    if self.stop.is_set():
                        return
            except BaseException as error:
                self.errors.append(error)
                self.stop.set()

        return run


@pytest.fixture(scope="module")
def twins(
    new_postgres_database: Callable[[], str], certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Twins]:
    directory = tmp_path_factory.mktemp("twins")
    values = {
        "host": "127.0.0.1",
        "certificate": certificates / "server.pem",
        "key": certificates / "server.key",
        "database_url": new_postgres_database(),
        "storage_host": "localhost",
        "threads": 12,
        "database_connections": 4,
        "minimum_free_gigabytes": 0,
        "trusted_proxies": ["127.0.0.1"],
    }
    services = []
    for number in (1, 2):
        config = directory / f"twin{number}.toml"
        port = free_port()
        config.write_text(tomlwriter.dumps({"site": {"var_dir": directory}, "storage": values | {"port": port}}))
        services.append(Twin(port, config, certificates / "ca.pem"))
    settings = StorageSettings(**values)
    bootstrap(
        settings,
        admin_username=fx.ADMIN,
        admin_password=fx.password_of(fx.ADMIN),
        storage_name="VOYAGER",
        storage_directory=directory / "storage",
        stations=[Station(fx.STATION, fx.SERVICE, fx.password_of(fx.SERVICE), fx.MANAGER, fx.password_of(fx.MANAGER))],
    )
    store = Store(settings.database_url, 2)
    Users(store).add(fx.ALICE, fx.password_of(fx.ALICE))
    store.close()
    try:
        for service in services:
            service.start()
        with running_nginx([service.port for service in services], certificates, directory / "nginx") as nginx:
            yield Twins(services, nginx, settings, certificates / "ca.pem")
    finally:
        for service in services:
            if service.process is not None and service.process.poll() is None:
                service.end(signal.SIGTERM)


@contextmanager
def api(kind: type[Any], twins: Twins, username: str) -> Iterator[Any]:
    made = kind(username, fx.password_of(username), twins.nginx.url, ca_file=twins.authority)
    try:
        yield made
    finally:
        made.close()


def logins(twins: Twins) -> Callable[[int], None]:
    def work(_: int) -> None:
        with twins.client(fx.ALICE) as client:
            twins.again(client.login)
            assert twins.again(lambda: client.get("/session"))["username"] == fx.ALICE

    return work


def one_session(twins: Twins) -> Callable[[int], None]:
    """Somebody who logged in once, before all of it, and has no password to do it again."""
    with twins.client(fx.MANAGER) as client:
        client.login()
        session = client.cookie
    client = RestClient(twins.nginx.url, session=session, ca_file=twins.authority)

    def work(_: int) -> None:
        assert twins.again(lambda: client.get("/session"))["username"] == fx.MANAGER
        if twins.stop.is_set():
            client.close()

    return work


def uploads(twins: Twins, experiment: str, sent: dict[str, bytes]) -> Callable[[int], None]:
    def work(number: int) -> None:
        contents = {f"run{number}/f{part}.dat": os.urandom(20_000) for part in range(10)}
        with api(StorageServiceApi, twins, fx.MANAGER) as manager, api(StorageServiceApi, twins, fx.SERVICE) as station:
            grant = twins.again(lambda: manager.addGrant(experiment, "upload", fx.STATION))
            batch = str(uuid.uuid4())
            opened = twins.again(lambda: station.openBatch(grant, batch, source="daq-1"))
            entries = fx.staged(opened["stagingDirectory"], contents)
            twins.again(lambda: station.submitBatch(grant, batch, entries))
            deadline = time.monotonic() + PATIENCE
            while (result := twins.again(lambda: station.getBatch(batch, waitTime=5)))["state"] != "committed":
                assert time.monotonic() < deadline, result.data
                time.sleep(0.02)
        outcome = {file["path"]: file["status"] for file in result["files"]}
        assert outcome == dict.fromkeys(contents, "stored")
        sent.update(contents)

    return work


def downloads(twins: Twins, experiment: str, content: bytes, directory: Path) -> Callable[[int], None]:
    md5 = hashlib.md5(content).hexdigest()

    def work(number: int) -> None:
        with twins.client(fx.MANAGER) as client:
            target = directory / f"{number}.dat"
            twins.again(
                lambda: client.download("/files/download", target, digests={"md5": md5}, path="big.dat",
                                        experimentName=experiment, stationName=fx.STATION)
            )  # fmt: skip
            assert target.read_bytes() == content
            target.unlink()

    return work


def experiments(twins: Twins, deleted: list[str]) -> Callable[[int], None]:
    def work(number: int) -> None:
        name = f"short-{number}-{uuid.uuid4().hex[:6]}"
        with api(ExperimentDsApi, twins, fx.ADMIN) as administrator:
            twins.again(
                lambda: administrator.addExperiment(name, stationName=fx.STATION, typeName="TEST"), ObjectAlreadyExists
            )
            assert twins.again(lambda: administrator.getExperimentByName(name, fx.STATION))["name"] == name
            twins.again(lambda: administrator.deleteExperimentByName(name, fx.STATION), ObjectNotFound)
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    twins.again(lambda: administrator.getExperimentByName(name, fx.STATION))
                except ObjectNotFound:
                    break
                assert time.monotonic() < deadline, f"{name} is still there"
                time.sleep(0.2)
        deleted.append(name)

    return work


def under_load(twins: Twins, rounds: int, experiment: str, directory: Path) -> None:
    """Kill each service in turn, so many rounds, while clients of every kind are at work; then look at all of it."""
    twins.stop.clear()
    twins.errors.clear()
    sent: dict[str, bytes] = {}
    deleted: list[str] = []
    with api(ExperimentDsApi, twins, fx.MANAGER) as manager:
        manager.addExperiment(experiment, stationName=fx.STATION, typeName="TEST")
        big = {"big.dat": os.urandom(3_000_000)}
        with api(StorageServiceApi, twins, fx.SERVICE) as station:
            with api(StorageServiceApi, twins, fx.MANAGER) as giver:
                grant = giver.addGrant(experiment, "upload", fx.STATION)
            assert fx.publish(station, grant, big)["big.dat"]["status"] == "stored"
    works = [
        logins(twins),
        one_session(twins),
        uploads(twins, experiment, sent),
        downloads(twins, experiment, big["big.dat"], directory),
        experiments(twins, deleted),
    ]
    threads = [threading.Thread(target=twins.loop(work), name=f"client {n}") for n, work in enumerate(works)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(rounds):
            for service in twins.services:
                twins.stop.wait(0.3)
                service.end(signal.SIGKILL)
                twins.stop.wait(0.2)  # the other one alone
                service.start()
                if twins.stop.is_set():
                    break
    finally:
        twins.stop.set()
        for thread in threads:
            thread.join(2 * PATIENCE)
    if twins.errors:
        raise twins.errors[0]
    assert not [thread for thread in threads if thread.is_alive()]
    assert sent and deleted
    _check(twins, experiment, sent | big)


def _check(twins: Twins, experiment: str, sent: dict[str, bytes]) -> None:
    with twins.client(fx.MANAGER) as client:
        listed, after = [], 0
        while True:
            page = client.get("/files", experimentName=experiment, stationName=fx.STATION, after=after)
            listed += page["files"]
            after = page["nextAfter"]
            if not after:
                break
        record = client.get(f"/experimentsByName/{experiment}/{fx.STATION}")
    assert sorted(one["experimentFilePath"] for one in listed) == sorted(sent)
    assert all(one["version"] == 1 for one in listed), "nothing was published twice"
    data = Path(record["dataDirectory"])
    assert {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()} == set(sent)
    for path, content in sent.items():
        assert (data / path).read_bytes() == content
    for service in twins.services:
        assert "Traceback" not in service.config.with_suffix(".out").read_text()


@pytest.mark.timeout(400)
def test_each_is_killed_while_everything_goes_on(twins: Twins, tmp_path: Path) -> None:
    under_load(twins, 1, "twins", tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_each_is_killed_many_times(twins: Twins, tmp_path: Path) -> None:
    under_load(twins, 25, "twins-long", tmp_path)
