"""The whole suite: backed up while it works, destroyed, restored on another place, everything there again.

The round with all services on both sides is long; the short one looks into the restored databases.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from dm.common.errors import InvalidArgument, InvalidObjectState
from dm.deploy import backup_mongo, backup_postgres, components
from dm.deploy.backup import Installation, make
from dm.deploy.install import Plan, install
from dm.deploy.restore import restore
from tests import live
from tests.live import STATION, Suite

EXPERIMENT = "backed-up"
SBIN = Path(__file__).parents[2] / "sbin"


def control(side: str, *words: object, suite: Suite, status: int = 0) -> str:
    """Run dm-site or dm-station of sbin and return what it said."""
    command = [SBIN / f"dm-{side}", *words, "--config", suite.installed.layout.settings]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == status, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


def contents(suite: Suite) -> dict[str, object]:
    """What people would miss."""

    def listed(*words: str, user: str | None = None) -> list[dict[str, object]]:
        text = suite.dm(*words, "--display-format", "json", "--all", user=user)
        return [json.loads(line) for line in text.splitlines()]

    return {
        "users": listed("dm-list-users", user="dmadmin"),
        "experiments": listed("dm-get-experiment", "--experiment", EXPERIMENT),
        "files": listed("dm-list-experiment-files", "--experiment", EXPERIMENT),
        "uploads": [record["id"] for record in listed("dm-list-uploads")],
        "workflows": sorted(str(record["name"]) for record in listed("dm-list-workflows")),
    }


@pytest.fixture(scope="module")
def away(run_directory: Path) -> Iterator[Suite]:
    """A suite of its own, whose life ends in this module."""
    suite = live.start(run_directory / "backup-one")
    try:
        yield suite
    finally:
        live.stop(suite)


def test_a_running_suite_is_there_again(suite: Suite, run_directory: Path) -> None:
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--station", STATION, "--type", "TEST")
    source = run_directory / "small-source"
    source.mkdir()
    (source / "a.dat").write_bytes(b"a")
    suite.dm("dm-upload", "--experiment", EXPERIMENT, "--data-directory", source, "--wait", "sample:gold")
    suite.dm("dm-add-experiment", "--experiment", "backup-deleted", "--station", STATION, "--type", "TEST")
    suite.dm("dm-delete-experiment", "--experiment", "backup-deleted", "--yes", "--wait")
    file = run_directory / "all.dmbackup"
    mine = Installation.at("all", suite.installed.layout.settings)
    made, manifest = make("all", mine.config, file)
    assert made == file and file.stat().st_mode & 0o777 == 0o600
    assert {part.about["class"] for part in manifest.of("file")} == {"login", "key", "certificate", "settings"}
    with pytest.raises(InvalidArgument, match="exists"):
        make("all", mine.config, file)

    plan = Plan(run_directory / "small-second", STATION, host="localhost", listen="127.0.0.1", free_ports=True)
    layout = install(plan).layout
    with pytest.raises(InvalidArgument, match="is of xyz, not of all"):
        restore("all", layout.settings, _renamed(file, run_directory / "other.dmbackup"))
    done = restore("all", layout.settings, file)
    assert str(layout.settings) in done.kept
    assert {path.read_text() for path in layout.etc.glob(".*.login")} == {
        path.read_text() for path in suite.installed.layout.etc.glob(".*.login")
    }
    with pytest.raises(InvalidObjectState, match="not empty"):
        restore("all", layout.settings, file)
    theirs = Installation.at("all", layout.settings)
    with theirs.databases():
        engine = create_engine(theirs.postgres_urls["storage"])
        with engine.connect() as connection:  # numbers given since the backup are not given again
            assert connection.execute(text("SELECT last_value FROM experiments_id_seq")).scalar_one() > 1000
            soonest = "SELECT min(purge_after) > now() + interval '13 days' FROM experiments WHERE state = 'deleted'"
            assert connection.execute(text(soonest)).scalar_one()
        engine.dispose()
        assert backup_postgres.described(theirs.postgres_urls["storage"])["experiments"] == next(
            part.about["experiments"] for part in manifest.of("postgres")
        )
        for section, url in theirs.mongo_urls.items():
            with backup_mongo.opened(url) as database:
                counts = {name: database[name].count_documents({}) for name in database.list_collection_names()}
            found = {name: count for name, count in counts.items() if count}
            wanted = {
                part.about["collection"]: part.about["count"]
                for part in manifest.of("mongo")
                if part.about["section"] == section and part.about["count"]
            }
            assert found == wanted and (found or section == "processing")


def _renamed(file: Path, target: Path) -> Path:
    """Return a copy of a backup that says it is of the site."""
    with tarfile.open(file) as old, tarfile.open(target, "w") as new:
        for member in old:
            data = old.extractfile(member).read()  # type: ignore[union-attr]
            if member.name == "manifest.json":
                data = data.replace(b'"what": "all"', b'"what": "xyz"')
            new.addfile(member, io.BytesIO(data))
    return target


@pytest.mark.long
@pytest.mark.timeout(400)
def test_backup_destroy_restore(away: Suite, run_directory: Path) -> None:
    source = run_directory / "backup-source"
    source.mkdir()
    password = run_directory / "backup-password"
    password.write_text("secret-of-ann")
    password.chmod(0o600)
    for number in range(20):
        (source / f"f{number:02d}.dat").write_bytes(b"x" * number)
    away.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--station", STATION, "--type", "TEST")
    away.dm("dm-add-user", "--username", "d123456", "--first-name", "Ann", "--password-file", password, user="dmadmin")
    away.dm("dm-upload", "--experiment", EXPERIMENT, "--data-directory", source, "--wait", "sample:gold")
    before = contents(away)
    assert len(before["files"]) == 20  # type: ignore[arg-type]

    backups = run_directory / "backups"
    backups.mkdir()
    said = control("site", "backup", backups, suite=away)
    assert "written and read back" in said and "1 experiments" in said and "mode 0600" in said and "not in it" in said
    others = backups / f"dm-station-{socket.gethostname()}-2-20250101T000000.dmbackup"
    others.write_text("of another host")
    control("station", "backup", backups, "--keep", "1", suite=away)
    control("station", "backup", backups, "--keep", "1", "--quiet", suite=away)
    others.unlink()
    (site,) = backups.glob("dm-site-*.dmbackup")
    (station,) = backups.glob("dm-station-*.dmbackup")
    assert {path.stat().st_mode & 0o777 for path in (site, station)} == {0o600}
    assert sorted(path.name for path in backups.iterdir()) == sorted([site.name, station.name])

    # what runs, and what has experiments, is not replaced
    assert "runs; stop it first" in control("site", "restore", site, suite=away, status=3)
    live.stop(away)
    assert "not empty" in control("site", "restore", site, suite=away, status=3)
    assert "not empty" in control("station", "restore", station, suite=away, status=3)
    assert "is of site, not of station" in control("station", "restore", site, suite=away, status=2)

    # another installation, as on another host: other ports, certificates and passwords
    layout = away.installed.layout
    storage = away.installed.plan.storage or layout.root / "storage"
    plan = Plan(
        run_directory / "backup-two",
        STATION,
        host="localhost",
        listen="127.0.0.1",
        free_ports=True,
        storage=storage,
        settings={"facility": {"user_sync": {"every_hours": 0}}},
    )
    second = Suite(install(plan))
    passwords = second.manager, second.administrator
    assert passwords != (away.manager, away.administrator)
    shutil.rmtree(layout.var)  # the first host's disk is gone; the storage is not
    said = control("site", "restore", site, suite=second)
    assert "1 experiments" in said and "file " in said
    kept = control("station", "restore", station, suite=second)
    assert f"kept {second.installed.layout.settings}" in kept
    assert (second.manager, second.administrator) == (away.manager, away.administrator)
    try:
        components.start(components.chosen("all", second.installed.layout.settings))
        after = contents(second)
        assert after == before
        again = run_directory / "backup-again"
        again.mkdir()
        (again / "later.dat").write_bytes(b"later")
        second.dm("dm-upload", "--experiment", EXPERIMENT, "--data-directory", again, "--wait")
        assert len(contents(second)["files"]) == 21  # type: ignore[arg-type]
        # a running, full installation goes back to the backup when told so
        control("station", "restore", station, "--force", suite=second)
        assert "not running" in subprocess.run(
            [SBIN / "dm-catalog", "status", "--config", second.installed.layout.settings],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        control("station", "start", suite=second)
        assert contents(second) == before
        assert '"nAdded": 1' in second.dm("dm-rebuild-catalog", "--experiment", EXPERIMENT, "--display-format", "json")
    finally:
        live.stop(second)


@pytest.mark.long
def test_settings_come_back_to_where_they_were(away: Suite, run_directory: Path) -> None:
    """The same directories on a new disk: etc is gone too."""
    (site,) = (run_directory / "backups").glob("dm-site-*.dmbackup")
    layout = away.installed.layout
    login = layout.login_file("dmadmin").read_text()
    shutil.rmtree(layout.etc)
    shutil.rmtree(layout.var, ignore_errors=True)
    layout.make()
    elsewhere = run_directory / "nowhere" / "dm.toml"
    done = subprocess.run(
        [SBIN / "dm-site", "restore", site, "--config", elsewhere], capture_output=True, text=True, check=False
    )
    assert done.returncode == 6 and "install DM there first" in done.stderr
    control("site", "restore", site, suite=away)
    assert layout.login_file("dmadmin").read_text() == login
    assert layout.login_file("dmadmin").stat().st_mode & 0o777 == 0o600
    control("site", "start", suite=away)
    assert EXPERIMENT in away.dm("dm-list-experiments")


@pytest.mark.long
def test_a_damaged_backup_is_noticed(away: Suite, run_directory: Path) -> None:
    (site,) = (run_directory / "backups").glob("dm-site-*.dmbackup")
    whole = site.read_bytes()
    damaged = run_directory / "damaged.dmbackup"
    for bad in (whole[: len(whole) // 2], whole.replace(b"PGDMP", b"PGDNP", 1), whole[:-4096], b"not a tar" * 500, b""):
        damaged.write_bytes(bad)
        if bad == whole[:-4096]:
            continue  # only padding of the tar's end is gone
        said = control("site", "restore", damaged, "--force", suite=away, status=1)
        assert "backup" in said or "damaged" in said
    assert EXPERIMENT in away.dm("dm-list-experiments")  # nothing was touched


@pytest.mark.long
def test_a_backup_that_leads_out_of_the_installation_is_refused(away: Suite, run_directory: Path) -> None:
    (site,) = (run_directory / "backups").glob("dm-site-*.dmbackup")
    evil = run_directory / "evil.dmbackup"
    with tarfile.open(site) as old, tarfile.open(evil, "w") as new:
        manifest = json.loads(old.extractfile("manifest.json").read())  # type: ignore[union-attr]
        part = next(one for one in manifest["parts"] if one["about"].get("class") == "login")
        part["about"]["path"] = "../../evil.login"
        text = json.dumps(manifest).encode()
        for member in old:
            data = text if member.name == "manifest.json" else old.extractfile(member).read()  # type: ignore[union-attr]
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    said = control("site", "restore", evil, "--force", suite=away, status=2)
    assert "lies nowhere in an installation" in said
    assert not list(run_directory.rglob("evil.login"))


@pytest.mark.long
def test_wrong_use(away: Suite, run_directory: Path) -> None:
    nothing = control("site", "backup", run_directory / "no" / "such", suite=away, status=2)
    assert "make it first" in nothing
    assert "TARGET" in control("site", "backup", suite=away, status=2)
    assert "TARGET" in control("site", "status", run_directory, suite=away, status=2)
    assert "--keep is for backup" in control("site", "restore", run_directory, "--keep", 3, suite=away, status=2)
    assert "name the file" in control("site", "restore", run_directory / "none", suite=away, status=2)
    assert os.listdir(run_directory / "backups")
