"""The acquisition service killed, stopped and doubled in the middle of its work: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.client import RestClient
from dm.common.embedded import free_port
from dm.common.errors import DmException
from dm.station.acquisition.api import ExperimentDaqApi
from tests.service.acquisition_fixtures import MANAGER, QUICK, Site, tree, until


class Daemon:
    """The service as a process of its own."""

    def __init__(self, site: Site, directory: Path, database_url: str, **more: Any) -> None:
        self.port = free_port()
        self.config = directory / "dm.toml"
        self.log = directory / "acquisition.log"
        station = site.station_settings()
        values = {"host": "127.0.0.1", "port": self.port, "database_url": database_url, "log_file": str(self.log)}
        values |= {"certificate": str(site.certificates / "server.pem"), "key": str(site.certificates / "server.key")}
        values |= QUICK | more
        lines = ["[station]", f'name = "{station.name}"', f'storage_service_url = "{station.storage_service_url}"']
        lines += [f'ca_file = "{station.ca_file}"', f'service_password_file = "{station.service_password_file}"']
        lines += ["[acquisition]", *(f"{key} = {value!r}" for key, value in values.items())]
        self.config.write_text("\n".join(lines) + "\n")
        self.ca_file = site.certificates / "ca.pem"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "dm.station.acquisition.service", "--config", str(self.config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)

    def wait_until_up(self) -> None:
        with RestClient(f"https://localhost:{self.port}", *MANAGER, ca_file=self.ca_file) as client:

            def up() -> bool:
                assert self.process is not None and self.process.poll() is None, self.log.read_text()
                try:
                    return bool(client.get("/status"))
                except DmException:
                    return False

            until(up)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal and return the exit status and what was said on standard error."""
        assert self.process is not None
        self.process.send_signal(number)
        _out, err = self.process.communicate(timeout=20)
        return self.process.returncode, err.decode()


@pytest.fixture
def daemon(site: Site, tmp_path: Path, new_mongo_database: Callable[[], str]) -> Iterator[Daemon]:
    found = Daemon(site, tmp_path, new_mongo_database(), batch_files=7)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.end(signal.SIGKILL)


@pytest.fixture
def api(daemon: Daemon, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExperimentDaqApi]:
    monkeypatch.setenv("DM_CA_FILE", str(site.certificates / "ca.pem"))
    found = ExperimentDaqApi(*MANAGER, url=f"https://localhost:{daemon.port}")
    yield found
    found.client.close()


def published(site: Site, experiment: dict[str, Any]) -> dict[str, int]:
    """Return path -> version of what storage has on record."""
    answer = site.client().get("/files", experimentName=experiment["name"], limit=10_000)
    return {str(row["experimentFilePath"]): int(row["version"]) for row in answer["files"]}


def sent(experiment: dict[str, Any]) -> dict[str, int]:
    """Return path -> how often the manifest says it was published, replays of one batch counted once."""
    found: dict[str, set[str]] = {}
    for file in (Path(experiment["dataDirectory"]).parent / "system" / "manifest").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if "path" in entry:
                found.setdefault(entry["path"], set()).add(entry["batch"])
    return {path: len(batches) for path, batches in found.items()}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))])
def test_kill_and_start_again(seed: int, daemon: Daemon, api: ExperimentDaqApi, site: Site, tmp_path: Path) -> None:
    random_ = random.Random(seed)
    name = f"killed{seed}"
    experiment = site.experiment(name)
    source = tmp_path / "source"
    source.mkdir()
    daemon.start()
    daemon.wait_until_up()
    daq = api.startDaq(name, str(source))
    written = 0
    for _round in range(3):
        for _ in range(40):
            (source / f"f{written}").write_bytes(random_.randbytes(random_.randrange(20_000)))
            written += 1
        time.sleep(random_.random() * 0.5)
        daemon.end(signal.SIGKILL)
        for _ in range(5):  # written while nobody watches
            (source / f"f{written}").write_bytes(b"%d" % written)
            written += 1
        daemon.start()
    daemon.wait_until_up()
    until(lambda: api.getDaqInfo(daq["id"])["nCompletedFiles"] == written)
    api.stopDaq(name, str(source))
    record = api.waitDaq(daq["id"], 60)
    assert record["status"] == "done", record
    assert record["countFiles"] == record["nCompletedFiles"] == written
    assert tree(experiment["dataDirectory"]) == tree(source)
    versions = published(site, experiment)
    assert len(versions) == written
    assert set(versions.values()) == {1}  # nothing twice ...
    assert set(sent(experiment).values()) == {1}  # ... not even sent twice
    staging = Path(experiment["dataDirectory"]).parent / ".staging"
    until(lambda: not tree(staging))
    assert daemon.end(signal.SIGTERM)[0] == 0


def test_sigterm_in_the_middle(daemon: Daemon, api: ExperimentDaqApi, site: Site, tmp_path: Path) -> None:
    experiment = site.experiment("terminated")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / f"f{number}").write_bytes(os.urandom(5000))
    daemon.start()
    daemon.wait_until_up()
    upload = api.upload("terminated", str(source))
    until(lambda: api.getUploadInfo(upload["id"])["nCompletedFiles"] > 0)
    before = time.monotonic()
    assert daemon.end(signal.SIGTERM)[0] == 0
    assert time.monotonic() - before < 10
    daemon.start()
    daemon.wait_until_up()
    record = api.waitUpload(upload["id"], 60)
    assert (record["status"], record["nCompletedFiles"]) == ("done", 300)
    assert tree(experiment["dataDirectory"]) == tree(source)
    assert set(published(site, experiment).values()) == {1}


def test_what_lay_there_before_stays_untouched_after_a_crash(
    daemon: Daemon, api: ExperimentDaqApi, site: Site, tmp_path: Path
) -> None:
    experiment = site.experiment("baseline")
    source = tmp_path / "source"
    source.mkdir()
    (source / "before").write_bytes(b"old")
    daemon.start()
    daemon.wait_until_up()
    daq = api.startDaq("baseline", str(source))
    daemon.end(signal.SIGKILL)
    (source / "after").write_bytes(b"new")
    daemon.start()
    daemon.wait_until_up()
    api.stopDaq("baseline", str(source))
    assert api.waitDaq(daq["id"], 30)["countFiles"] == 1
    assert tree(experiment["dataDirectory"]).keys() == {b"after"}


def test_a_second_process_refuses(daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_until_up()
    command = [sys.executable, "-m", "dm.station.acquisition.service", "--config", str(daemon.config)]
    second = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert second.returncode == 4
    assert b"Another acquisition service" in second.stderr
    assert b"Traceback" not in second.stderr
    assert daemon.process is not None and daemon.process.poll() is None
