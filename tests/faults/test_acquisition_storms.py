"""Acquisition while its surroundings misbehave: services that go away, files that will not hold still, lost events."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dm.common.embedded import EmbeddedMongo, free_port
from dm.common.errors import InvalidArgument, ServiceUnavailable
from dm.station.acquisition.listing import listed_files
from dm.station.acquisition.office import Office
from dm.station.acquisition.plugins.base import Order, Plugin, PluginBatch, PluginContext
from dm.station.acquisition.transports.base import NoSettings
from tests.service.acquisition_fixtures import (
    PRINCIPAL,
    STATION,
    Site,
    finish,
    retried,
    running_office,
    tree,
    until,
)


def start(office: Office, kind: str, name: str, source: Path, **keys: Any) -> dict[str, Any]:
    return office.start(kind, PRINCIPAL, name, str(source), keys)


def stopped(office: Office, daq: dict[str, Any]) -> dict[str, Any]:
    office.stop("daq", daq["id"], abort=False)
    return finish(office, "daq", daq["id"], 90)


def test_storage_goes_away_and_comes_back(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("outage")
    with running_office(site, database, batch_files=10) as office:
        daq = start(office, "daq", "outage", tmp_path)
        for number in range(60):
            (tmp_path / f"a{number}").write_bytes(os.urandom(3000))
        until(lambda: office.info("daq", daq["id"])["nCompletedFiles"] > 0)
        site.stop()
        try:
            for number in range(60):
                (tmp_path / f"b{number}").write_bytes(os.urandom(3000))
            until(lambda: office.info("daq", daq["id"])["countFiles"] == 120)
            until(lambda: office.info("daq", daq["id"])["errorMessage"])
            record = office.info("daq", daq["id"])
            assert record["status"] == "running"
            assert record["nProcessingErrors"] == 0
        finally:
            site.start()
        record = stopped(office, daq)
        assert (record["status"], record["nCompletedFiles"], record["errorMessage"]) == ("done", 120, "")
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_the_database_goes_away_and_comes_back(site: Site, run_directory: Path, tmp_path: Path) -> None:
    experiment = site.experiment("nodatabase")
    server = EmbeddedMongo(run_directory / "storm-mongo", free_port())
    server.start()
    try:
        with running_office(site, server.url("storm"), batch_files=10) as office:
            daq = start(office, "daq", "nodatabase", tmp_path)
            for number in range(40):
                (tmp_path / f"a{number}").write_bytes(os.urandom(3000))
            until(lambda: office.info("daq", daq["id"])["nCompletedFiles"] > 0)
            pid = server.running()
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            for number in range(40):
                (tmp_path / f"b{number}").write_bytes(os.urandom(3000))
            time.sleep(0.5)
            server.start()
            record = stopped(office, daq)
            assert (record["status"], record["nCompletedFiles"]) == ("done", 80)
    finally:
        server.stop()
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_files_rewritten_all_the_time_end_up_whole(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("rewritten")
    ended = threading.Event()
    versions: set[bytes] = set()
    lock = threading.Lock()

    def write(number: int) -> None:
        counter = 0
        while not ended.wait(random.random() * 0.15):
            counter += 1
            content = (b"%d-%d " % (number, counter)) * random.randrange(1, 40_000)
            with lock:
                versions.add(content)
            with (tmp_path / f"f{number}").open("r+b" if counter % 2 and counter > 1 else "wb") as file:
                file.write(content)
                file.truncate()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    with running_office(site, database) as office:
        daq = start(office, "daq", "rewritten", tmp_path)
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 4
        try:
            while time.monotonic() < deadline:
                # Whatever has been published at any moment is one whole edition, never a mixture.
                for path in Path(experiment["dataDirectory"]).iterdir():
                    content = path.read_bytes()
                    with lock:
                        assert content in versions
                time.sleep(0.05)
        finally:
            ended.set()
            for writer in writers:
                writer.join()
        record = stopped(office, daq)
        assert record["status"] == "done", record
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_a_thousand_renames(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("renamed")
    names = [f"f{number}" for number in range(50)]
    chance = random.Random(7)
    with running_office(site, database) as office:
        daq = start(office, "daq", "renamed", tmp_path)
        for name in names:
            (tmp_path / name).write_bytes(name.encode() * 1000)
        for step in range(1000):
            index = chance.randrange(len(names))
            new = f"{'sub' if step % 3 else 'other'}{step % 5}/r{step}"
            (tmp_path / new).parent.mkdir(exist_ok=True)
            (tmp_path / names[index]).rename(tmp_path / new)
            names[index] = new
        record = stopped(office, daq)
        assert record["status"] == "done", record
        assert record["nProcessingErrors"] == 0
        total = record["nCompletedFiles"] + record["nSkippedFiles"]
        assert record["countFiles"] == total
    stored = tree(experiment["dataDirectory"])
    assert {name: stored[name] for name in tree(tmp_path)} == tree(tmp_path)


def test_files_deleted_before_their_turn_have_vanished(site: Site, database: str, tmp_path: Path) -> None:
    site.experiment("vanished")
    with running_office(site, database, batch_files=5) as office:
        daq = start(office, "daq", "vanished", tmp_path)
        site.stop()
        try:
            for number in range(20):
                (tmp_path / f"f{number}").write_bytes(b"1")
            until(lambda: office.info("daq", daq["id"])["countFiles"] == 20)
            for number in range(20):
                (tmp_path / f"f{number}").unlink()
        finally:
            site.start()
        record = stopped(office, daq)
        assert (record["status"], record["nSkippedFiles"], record["nProcessingErrors"]) == ("done", 20, 0)
        assert {row["state"] for row in listed_files(office, daq["id"], None, 0, 100)} == {"vanished"}


def test_lost_events_are_made_up_for(site: Site, database: str, tmp_path: Path) -> None:
    """The watching thread sleeps while the kernel's queue runs over."""
    experiment = site.experiment("overflow")
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with running_office(site, database, scan_seconds=3600) as office:
        daq = start(office, "daq", "overflow", tmp_path)
        until(lambda: office.info("daq", daq["id"])["status"] == "running")
        with office.pipeline.condition:  # the thread stops at its next look at the inbox
            time.sleep(1.2)
            (tmp_path / "churn").write_bytes(b"")
            for _ in range(limit // 2 + 10):
                os.rename(tmp_path / "churn", tmp_path / "churn2")
                os.rename(tmp_path / "churn2", tmp_path / "churn")
            for number in range(50):
                (tmp_path / f"late{number}").write_bytes(b"1")
        until(lambda: office.info("daq", daq["id"])["nCompletedFiles"] == 51)
        assert stopped(office, daq)["status"] == "done"
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_many_new_directories(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("directories")
    with running_office(site, database, scan_seconds=3600) as office:
        daq = start(office, "daq", "directories", tmp_path)
        until(lambda: office.info("daq", daq["id"])["status"] == "running")
        for number in range(1000):
            directory = tmp_path / f"d{number % 20}" / f"e{number}"
            directory.mkdir(parents=True)
            (directory / "a").write_bytes(b"%d" % number)
        until(lambda: office.info("daq", daq["id"])["nCompletedFiles"] == 1000)
        assert stopped(office, daq)["countFiles"] == 1000
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_a_bad_file_holds_nobody(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("badfile")
    (tmp_path / "taken").mkdir()
    target = Path(experiment["dataDirectory"]) / "blocked"
    target.mkdir()  # a directory is in the way of a file of that name
    (target / "x").write_bytes(b"1")
    for number in range(20):
        (tmp_path / f"f{number}").write_bytes(b"1")
    (tmp_path / "blocked").write_bytes(b"2")
    with running_office(site, database) as office:
        record = finish(office, "upload", start(office, "upload", "badfile", tmp_path)["id"])
        assert (record["status"], record["nCompletedFiles"], record["nProcessingErrors"]) == ("failed", 20, 1)
        [row] = listed_files(office, record["id"], "failed", 0, 10)
        assert row["path"] == "blocked"
        assert "blocked" in record["errorMessage"]


def test_two_tasks_share_the_pipeline(site: Site, database: str, tmp_path: Path) -> None:
    """A small upload does not wait for the end of a big one."""
    site.experiment("fair")
    for name, count in (("big", 1500), ("small", 5)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"f{number}").write_bytes(b"%d" % number)
    with running_office(site, database, batch_files=20) as office:
        big = start(office, "upload", "fair", tmp_path / "big", destDirectory="big")
        until(lambda: office.info("upload", big["id"])["nCompletedFiles"] > 0)
        small = start(office, "upload", "fair", tmp_path / "small", destDirectory="small")
        assert finish(office, "upload", small["id"])["status"] == "done"
        assert office.info("upload", big["id"])["status"] != "done"
        assert finish(office, "upload", big["id"])["nCompletedFiles"] == 1500


class Recorder(Plugin):
    """Remembers the keys it saw; can be told to fail."""

    name = "recorder"
    order = Order.CATALOG
    seen: ClassVar[list[str]] = []
    down: ClassVar[threading.Event] = threading.Event()

    def process(self, batch: PluginBatch) -> None:
        if self.down.is_set():
            raise ServiceUnavailable("The recorder is down.")
        for file in batch.files:
            if file.path.endswith(b"bad"):
                file.fail("The file is bad.")
            else:
                self.seen.append(file.key)


class Annotator(Plugin):
    """Adds metadata, optional: a failure is only noted."""

    name = "annotator"
    order = Order.METADATA
    required = False

    def process(self, batch: PluginBatch) -> None:
        for file in batch.files:
            file.metadata["length"] = file.size
            if file.path.endswith(b"odd"):
                file.fail("The file is odd.")


class Whole(Plugin):
    """Sees an upload as a whole."""

    name = "whole"
    order = Order.WORKFLOW
    once_per_directory = True
    calls: ClassVar[list[tuple[int, bool]]] = []

    def process(self, batch: PluginBatch) -> None:
        self.calls.append((len(batch.files), batch.last))

    def check(self, daq: dict[str, Any]) -> None:
        if daq.get("workflowName") == "missing":
            raise InvalidArgument("Workflow 'missing' does not exist.")


@pytest.fixture
def plugins() -> list[Plugin]:
    Recorder.seen.clear()
    Recorder.down.clear()
    Whole.calls.clear()
    context = PluginContext(STATION, "user", "password")
    return [found(NoSettings(), context) for found in (Annotator, Recorder, Whole)]


def test_a_plugin_that_is_down_is_waited_for_over_a_restart(
    site: Site, database: str, tmp_path: Path, plugins: list[Plugin]
) -> None:
    experiment = site.experiment("plugins")
    for number in range(30):
        (tmp_path / f"f{number}").write_bytes(b"%d" % number)
    Recorder.down.set()
    with running_office(site, database, plugins, batch_files=10) as office:
        upload = start(office, "upload", "plugins", tmp_path)
        until(lambda: len(listed_files(office, upload["id"], "stored", 0, 100)) == 30)
        assert tree(experiment["dataDirectory"]) == tree(tmp_path)
        record = office.info("upload", upload["id"])
        assert (record["status"], record["nWaitingFiles"]) == ("finalizing", 30)
        assert "recorder is down" in record["errorMessage"]
    with running_office(site, database, plugins) as office:
        until(lambda: "recorder is down" in office.info("upload", upload["id"])["errorMessage"])
        Recorder.down.clear()
        record = finish(office, "upload", upload["id"])
        assert (record["status"], record["nCompletedFiles"]) == ("done", 30)
        assert len(Recorder.seen) == len(set(Recorder.seen)) == 30


def test_permanent_plugin_failures_are_told_and_can_be_retried(
    site: Site, database: str, tmp_path: Path, plugins: list[Plugin]
) -> None:
    site.experiment("pluginfailure")
    for name in ("good", "bad", "odd"):
        (tmp_path / name).write_bytes(b"1")
    with running_office(site, database, plugins) as office:
        daq = start(office, "daq", "pluginfailure", tmp_path, processExistingFiles=1)
        until(lambda: office.info("daq", daq["id"])["nProcessedFiles"] == 3)
        [row] = listed_files(office, daq["id"], "failed", 0, 10)
        assert row["path"] == "bad"
        assert row["pendingPlugins"] == ["recorder", "whole"]
        assert "Plugin recorder: The file is bad." in row["lastError"]
        notes = {row["path"]: row.get("notes") for row in listed_files(office, daq["id"], "done", 0, 10)}
        assert notes == {"good": None, "odd": ["Plugin annotator: The file is odd."]}
        before = len(Recorder.seen)
        assert retried(office, "daq", daq["id"]) == 1
        until(lambda: len(listed_files(office, daq["id"], "failed", 0, 10)) == 1)
        assert len(Recorder.seen) == before
        record = stopped(office, daq)
        assert record["status"] == "failed"
        assert "1 of 3 files failed" in record["errorMessage"]


def test_directory_mode_calls_once_at_the_end(site: Site, database: str, tmp_path: Path, plugins: list[Plugin]) -> None:
    site.experiment("directorymode")
    for number in range(25):
        (tmp_path / f"f{number}").write_bytes(b"%d" % number)
    with running_office(site, database, plugins, batch_files=10) as office:
        record = finish(
            office, "upload", start(office, "upload", "directorymode", tmp_path, processingMode="Directory")["id"]
        )
        assert record["status"] == "done"
        assert Whole.calls == [(25, True)]
        record = finish(office, "upload", start(office, "upload", "directorymode", tmp_path, reprocessFiles=1)["id"])
        assert sum(count for count, last in Whole.calls[1:] if not last) == 25
        with pytest.raises(InvalidArgument, match="missing"):
            start(office, "daq", "directorymode", tmp_path, workflowName="missing", workflowOwner="o")


def test_a_revoked_grant_ends_the_daq_and_says_so(site: Site, database: str, tmp_path: Path) -> None:
    site.experiment("revoked")
    with running_office(site, database) as office:
        daq = start(office, "daq", "revoked", tmp_path)
        site.client().delete(f"/grants/{office.live[daq['id']].grant.id}")
        (tmp_path / "a").write_bytes(b"1")
        record = finish(office, "daq", daq["id"])
        assert (record["status"], record["nProcessingErrors"], record["nWaitingFiles"]) == ("failed", 1, 0)
        assert "rant" in record["errorMessage"]
