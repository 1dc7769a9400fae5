"""What storage survives: kill -9 at any instant of publishing, databases that go away, a full file system."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dm.common.digests import digest_stream
from dm.common.embedded import EmbeddedPostgres
from dm.common.errors import InvalidObjectState, ObjectNotFound, ServiceUnavailable
from dm.site.storage import acl
from dm.site.storage.api import Experiment
from dm.site.storage.manifest import read
from tests.service import storage_fixtures as fx

RUNNER = Path(__file__).with_name("storage_process.py")


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    """A service that does not publish itself and keeps nothing of what is deleted."""
    directory = tmp_path_factory.mktemp("site")
    settings = {"publisher_threads": 0, "deleted_keep_days": 0}
    with fx.running_site(postgres_url, certificates, directory, **settings) as running:
        yield running


def new_experiment(site: fx.Site) -> Experiment:
    return site.experiments(fx.MANAGER).addExperiment(f"exp-{uuid.uuid4().hex[:8]}", fx.STATION)


def run_publisher(site: fx.Site, batch: str, death: str = "") -> int:
    """Run a publisher process and return its exit status (-9: killed)."""
    settings = json.loads(site.settings.model_dump_json()) | {"publisher_threads": 1}
    command = [sys.executable, str(RUNNER), json.dumps(settings), batch, death]
    return subprocess.run(command, check=False, timeout=100).returncode


class Rounds:
    """Batches into one experiment, each published by processes that die."""

    def __init__(self, site: fx.Site) -> None:
        self.site = site
        self.experiment = new_experiment(site)
        self.grant = site.station(fx.MANAGER).addGrant(self.experiment["name"], "daq", fx.STATION)
        self.station = site.station()
        self.expected: dict[str, bytes] = {}
        self.number = 0

    def queue(self) -> tuple[str, dict[str, bytes]]:
        """Hand over new files, a rewrite of one of the round before, and an equal one."""
        self.number += 1
        contents = {f"r{self.number}/d{n}/f{n}": os.urandom(100) for n in range(3)}
        contents["rewritten"] = os.urandom(50)
        contents["equal"] = b"always the same"
        batch = str(uuid.uuid4())
        opened = self.station.openBatch(self.grant, batch, source="daq-1", onConflict="version")
        self.station.submitBatch(self.grant, batch, fx.staged(opened["stagingDirectory"], contents))
        return batch, contents

    def check(self, batch: str, contents: dict[str, bytes]) -> None:
        outcome = fx.outcome(self.station, batch)
        assert {found["status"] for found in outcome.values()} <= {"stored", "unchanged"}, outcome
        self.expected |= contents
        data = Path(self.experiment["dataDirectory"])
        on_disk = {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}
        assert on_disk == self.expected
        assert set(fx.modes(data).values()) <= {0o640, 0o2750}
        assert outcome["rewritten"]["version"] == self.number
        lines = [line for line in read(self.experiment["storageDirectory"]) if line["batch"] == batch]
        stored = {path for path, found in outcome.items() if found["status"] == "stored"}
        assert sorted(line["path"] for line in lines) == sorted(stored)
        kept = Path(self.experiment["systemDirectory"], "versions")
        assert len(list(kept.iterdir())) == self.number - 1


def death_rounds(site: fx.Site, step: int) -> int:
    """Die at every ``step``-th change of the file system until a publisher survives; return where that was."""
    rounds = Rounds(site)
    batch, contents = rounds.queue()
    assert run_publisher(site, batch) == 0
    rounds.check(batch, contents)
    death = 1
    while True:
        batch, contents = rounds.queue()
        status = run_publisher(site, batch, str(death))
        if status == -signal.SIGKILL:
            assert run_publisher(site, batch) == 0
        else:
            assert status == 0
        rounds.check(batch, contents)
        if status == 0:
            return death
        death += step


def test_f02_kill_9_at_changes_of_the_file_system_loses_and_doubles_nothing(site: fx.Site) -> None:
    assert death_rounds(site, 6) > 20


@pytest.mark.long
@pytest.mark.timeout(900)
def test_f02_kill_9_at_every_change_of_the_file_system(site: fx.Site) -> None:
    assert death_rounds(site, 1) > 20


def test_staging_of_dead_publishers_is_swept(site: fx.Site) -> None:
    rounds = Rounds(site)
    batch, contents = rounds.queue()
    assert run_publisher(site, batch, "3") == -signal.SIGKILL
    assert run_publisher(site, batch) == 0
    rounds.check(batch, contents)
    staging = Path(rounds.experiment["storageDirectory"], ".staging")
    (staging / batch).mkdir()
    (staging / batch / "late").write_bytes(b"the station did not know")
    young, old = staging / str(uuid.uuid4()), staging / str(uuid.uuid4())
    young.mkdir()
    old.mkdir()
    os.utime(old, (1, 1))
    (staging / "not-ours").mkdir()
    site.service.housekeeper.sweep()
    assert {path.name for path in staging.iterdir()} == {young.name, "not-ours"}


def test_batches_never_handed_over_are_given_up(site: fx.Site) -> None:
    rounds = Rounds(site)
    batch = str(uuid.uuid4())
    opened = rounds.station.openBatch(rounds.grant, batch, source="x")
    site.service.housekeeper.sweep()
    assert Path(opened["stagingDirectory"]).exists()
    with site.service.store.transaction() as connection:
        connection.execute(
            text("UPDATE batches SET created = now() - interval '10 days' WHERE id = :id"), {"id": batch}
        )
    site.service.housekeeper.sweep()
    assert not Path(opened["stagingDirectory"]).exists()
    assert rounds.station.getBatch(batch)["state"] == "abandoned"


def test_f06_a_full_file_system_is_named_and_nothing_half_is_left(site: fx.Site) -> None:
    rounds = Rounds(site)
    batch, _ = rounds.queue()
    assert run_publisher(site, batch, "fsize:60") == 0
    outcome = fx.outcome(rounds.station, batch)
    assert {(found["status"], found["errorCode"], found["transient"]) for found in outcome.values()} == {
        ("failed", 19, True)
    }
    assert all(
        "is full" in found["errorMessage"] and rounds.experiment["storageDirectory"] in found["errorMessage"]
        for found in outcome.values()
    )
    assert not [path for path in Path(rounds.experiment["dataDirectory"]).rglob("*") if path.is_file()]
    rounds.number -= 1
    batch, contents = rounds.queue()
    assert run_publisher(site, batch) == 0
    rounds.check(batch, contents)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_f20_sizes_beyond_32_bits(site: fx.Site) -> None:
    rounds, batch = Rounds(site), str(uuid.uuid4())
    opened = rounds.station.openBatch(rounds.grant, batch, source="daq-1")
    entries = []
    for number, size in enumerate(((1 << 31) - 1, 1 << 31, (1 << 32) + 1, 5 << 30)):
        with Path(opened["stagingDirectory"], str(number)).open("wb+", buffering=0) as stream:
            stream.truncate(size)
            found = digest_stream(stream, ["xxh3_128"])[1]
        sums = {"digests": found, "md5Sum": "0" * 32}
        entries.append({"path": f"f{size}", "stagedName": str(number), "size": size, "mtimeNs": 1} | sums)
    rounds.station.submitBatch(rounds.grant, batch, entries)
    assert run_publisher(site, batch) == 0
    for path, found in fx.outcome(rounds.station, batch).items():
        assert found["status"] == "stored" and path == f"f{found['size']}"
        record = site.files(fx.MANAGER).statFile(path, rounds.experiment["name"], fx.STATION)
        assert record["fileSize"] == found["size"] and record["readyForProcessing"]


def test_a_torn_manifest_line_spoils_nothing(site: fx.Site) -> None:
    rounds = Rounds(site)
    batch, contents = rounds.queue()
    assert run_publisher(site, batch) == 0
    rounds.check(batch, contents)
    manifest = next(Path(rounds.experiment["systemDirectory"], "manifest").iterdir())
    with manifest.open("ab") as stream:
        stream.write(b'{"event":"file","batch":"torn')
    batch, contents = rounds.queue()
    assert run_publisher(site, batch) == 0
    rounds.check(batch, contents)


def test_a_deleted_experiment_is_gone_and_its_name_free(site: fx.Site) -> None:
    rounds = Rounds(site)
    batch, contents = rounds.queue()
    assert run_publisher(site, batch) == 0
    rounds.check(batch, contents)
    name, api = rounds.experiment["name"], site.experiments(fx.MANAGER)
    directory = Path(rounds.experiment["storageDirectory"])
    victim = site.root / "victim"
    victim.write_text("stays")
    (directory / "data" / "link").symlink_to(site.root)
    with pytest.raises(InvalidObjectState, match="1 running"):
        api.deleteExperimentByName(name, fx.STATION)
    assert directory.is_dir()
    rounds.station.deleteGrant(rounds.grant["id"])
    operation = api.deleteExperimentByName(name, fx.STATION)
    assert (operation["name"], operation["experimentName"]) == ("deleteExperiment", name)
    assert operation["status"] in ("pending", "running")
    operation = wait_for(api, operation)
    assert operation["status"] == "done" and operation["endTime"] >= operation["submissionTime"]
    assert not directory.exists() and victim.read_text() == "stays"
    assert not list(directory.parent.glob(".deleted*"))
    with pytest.raises(ObjectNotFound, match="does not exist"):
        api.getExperimentByName(name, fx.STATION)
    again = api.addExperiment(name, fx.STATION)
    assert again["id"] > rounds.experiment["id"] and again["authGroupName"] != rounds.experiment["authGroupName"]
    with pytest.raises(ObjectNotFound):
        site.experiments(fx.OTHER_MANAGER).getOperation(operation["id"])


def wait_for(api: Any, operation: Any) -> Any:
    deadline = time.monotonic() + 30
    while operation["status"] in ("pending", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        operation = api.getOperation(operation["id"])
    return operation


def test_f49_forced_deletion_ends_what_runs(site: fx.Site) -> None:
    rounds = Rounds(site)
    batch, _ = rounds.queue()
    api = site.experiments(fx.MANAGER)
    operation = api.deleteExperimentById(rounds.experiment["id"], force=True)
    assert wait_for(api, operation)["status"] == "done"
    assert rounds.station.getBatch(batch)["state"] == "abandoned"
    with pytest.raises(Exception, match="does not hold"):
        rounds.station.openBatch(rounds.grant, str(uuid.uuid4()), source="x")
    assert not Path(rounds.experiment["storageDirectory"]).exists()


def test_only_the_experiments_own_directory_is_ever_removed(site: fx.Site, tmp_path: Path) -> None:
    experiment, api = new_experiment(site), site.experiments(fx.MANAGER)
    directory = Path(experiment["storageDirectory"])
    (directory / "data/precious").write_text("precious")
    (directory / "system/experiment.json").write_text('{"experimentId": 0}')
    operation = wait_for(api, api.deleteExperimentById(experiment["id"]))
    assert operation["status"] == "failed" and "does not bear the mark" in operation["errorMessage"]
    assert (directory / "data/precious").read_text() == "precious"
    assert "status" not in api.getExperimentById(experiment["id"])
    elsewhere = tmp_path / "elsewhere"
    directory.rename(elsewhere)
    directory.symlink_to(elsewhere)
    operation = wait_for(api, api.deleteExperimentById(experiment["id"]))
    assert operation["status"] == "failed"
    assert (elsewhere / "data/precious").read_text() == "precious"


def test_files_belong_to_the_configured_account(
    site: fx.Site, postgres_url: str, certificates: Path, tmp_path: Path
) -> None:
    account = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    entry = pwd.getpwnam(account)
    group = grp.getgrgid(entry.pw_gid).gr_name
    kept = site.settings
    site.restart(kept.model_copy(update={"publisher_threads": 1, "file_owner": account, "file_group": group}))
    try:
        rounds = Rounds(site)
        batch, contents = rounds.queue()
        rounds.check(batch, contents)
        directory = Path(rounds.experiment["storageDirectory"])
        found = [path.lstat() for path in [directory, *directory.rglob("*")] if ".staging/" not in f"{path}/"]
        assert {(status.st_uid, status.st_gid) for status in found} == {(entry.pw_uid, entry.pw_gid)}
    finally:
        site.restart(kept)


def test_an_account_of_movers_may_pass_to_its_batches_and_no_further(site: fx.Site) -> None:
    """``staging_owner`` alone is enough: the account need not be in the experiment's group."""
    kept = site.settings
    site.restart(kept.model_copy(update={"staging_owner": pwd.getpwuid(os.geteuid()).pw_name}))
    try:
        rounds = Rounds(site)
        opened = Path(rounds.station.openBatch(rounds.grant, str(uuid.uuid4()), source="x")["stagingDirectory"])
        assert opened.stat().st_mode & 0o7777 == 0o2700
        for way in (opened.parent, opened.parent.parent):
            entry = acl.Entry(acl.USER, acl.EXECUTE, os.geteuid())
            assert entry in (acl.get(str(way), acl.ACCESS) or ()) and way.stat().st_mode & 0o007 == 0
        data = Path(rounds.experiment["dataDirectory"])
        assert data.stat().st_mode & 0o007 == 0
    finally:
        site.restart(kept)


def test_f03_a_service_that_stops_gives_back_what_it_is_digesting(site: fx.Site) -> None:
    kept, rounds, batch = site.settings, Rounds(site), str(uuid.uuid4())
    opened = rounds.station.openBatch(rounds.grant, batch, source="daq-1")
    size = 40 << 30  # sparse; without a digest from the source its md5 takes more than a minute
    with Path(opened["stagingDirectory"], "0").open("wb") as stream:
        stream.truncate(size)
    entry = {"path": "huge", "stagedName": "0", "size": size, "mtimeNs": 1}
    rounds.station.submitBatch(rounds.grant, batch, [entry])
    site.restart(kept.model_copy(update={"publisher_threads": 1}))
    station = site.station()
    deadline = time.monotonic() + 30
    while station.getBatch(batch)["state"] != "publishing":
        assert time.monotonic() < deadline
    site.restart(kept)
    station = site.station()
    assert station.getBatch(batch)["state"] == "queued"
    assert station.deleteBatch(batch)["state"] == "abandoned"
    assert not list(Path(rounds.experiment["storageDirectory"], ".staging").iterdir())


def test_f26_requests_fail_clearly_while_the_database_is_away_and_recover(
    certificates: Path, run_directory: Path, tmp_path: Path
) -> None:
    postgres = EmbeddedPostgres(run_directory / "own-postgres", durable=False)
    try:
        with fx.running_site(postgres.start(), certificates, tmp_path / "site") as own:
            rounds = Rounds(own)
            batch, contents = rounds.queue()
            rounds.check(batch, contents)
            with own.service.store.transaction() as connection:
                connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                         " WHERE datname = current_database() AND pid <> pg_backend_pid()")
                )  # fmt: skip
            assert rounds.station.getBatch(batch)["state"] == "committed"
            postgres.stop()
            with pytest.raises(ServiceUnavailable, match="database does not answer"):
                rounds.station.getBatch(batch)
            postgres.start()
            batch, contents = rounds.queue()
            rounds.check(batch, contents)
    finally:
        postgres.stop()
