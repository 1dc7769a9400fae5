"""The replica plugin: real rsync to a directory and over a real ssh, and a real catalog that hears of it."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import CommunicationError, ConfigurationError, TransferError
from dm.station.acquisition.extensions import make_plugins
from dm.station.acquisition.plugins.base import PluginContext
from dm.station.acquisition.plugins.catalog import Catalog, CatalogSettings
from dm.station.acquisition.plugins.replica import Replica
from dm.station.catalog.api import FileCatApi
from tests.service import catalog_fixtures
from tests.service.acquisition_fixtures import PRINCIPAL, finish, running_office, running_site, tree, until
from tests.service.acquisition_hosts import running_sshd
from tests.service.plugin_fixtures import NAMES, context, errors, plugin, stored


def replica(destination: Path | str, **more: Any) -> Replica:
    made = plugin("replica", destination=str(destination), **{"record": False, **more})
    assert isinstance(made, Replica)
    return made


@pytest.fixture(scope="module")
def ssh(run_directory: Path) -> Iterator[list[str]]:
    with running_sshd(run_directory / "replica-sshd") as command:
        yield command


@pytest.mark.parametrize("where", ["here", "ssh"])
def test_every_name_arrives_byte_exact(where: str, ssh: list[str], tmp_path: Path) -> None:
    target = tmp_path / "hpc"
    target.mkdir()
    if where == "here":
        made = replica(target)
    else:
        made = replica(f"@{getpass.getuser()}@localhost:{target}", rsync={"ssh": ssh})
    files = {b"deep/" * depth + name: name * 50 for depth, name in enumerate(NAMES)} | {b"empty": b""}
    batch = stored(tmp_path, files)
    made.process(batch)
    assert errors(batch) == {}
    assert tree(target) == {b"exp1/data/" + path: digest for path, digest in tree(tmp_path / "source").items()}
    assert len(tree(target)) == len(files)
    plain = target / "exp1" / "data" / "plain.h5"
    assert (plain.stat().st_mode & 0o777, plain.parent.stat().st_mode & 0o777) == (0o640, 0o750)
    assert plain.stat().st_mtime_ns == (tmp_path / "source" / "plain.h5").stat().st_mtime_ns
    before = plain.stat().st_ino, plain.stat().st_ctime_ns
    made.process(batch)  # as after a restart: nothing is sent again
    assert errors(batch) == {} and (plain.stat().st_ino, plain.stat().st_ctime_ns) == before


def test_a_copy_that_is_wrong_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "hpc"
    target.mkdir()
    made = replica(target)
    batch = stored(tmp_path, {b"a": b"right", b"b": b"other"})
    made.process(batch)
    copy = target / "exp1" / "data" / "a"
    status = copy.stat()
    copy.chmod(0o600)
    copy.write_bytes(b"wrong")  # the same size and time: only its digest tells
    os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
    made.process(batch)
    assert errors(batch) == {} and copy.read_bytes() == b"right"


def test_bytes_that_storage_did_not_verify_never_leave(tmp_path: Path) -> None:
    target = tmp_path / "hpc"
    target.mkdir()
    made = replica(target)
    batch = stored(tmp_path, {b"gone": b"1111", b"changed": b"2222", b"both": b"3333", b"link": b"4444"})
    source, storage = tmp_path / "source", tmp_path / "storage"
    (source / "gone").unlink()
    (source / "changed").write_bytes(b"XXXX")
    (source / "both").write_bytes(b"XXXX")
    (storage / "both").write_bytes(b"XXXX")
    (source / "link").unlink()
    (storage / "link").unlink()
    (source / "link").symlink_to("/etc/passwd")
    made.process(batch)
    found = errors(batch)
    assert set(found) == {b"both", b"link"}
    assert all(transient and "as it was stored" in error for error, transient in found.values())
    assert {path.name: path.read_bytes() for path in (target / "exp1" / "data").iterdir()} == {
        "gone": b"1111",
        "changed": b"2222",
    }


def test_a_new_version_replaces_the_old(tmp_path: Path) -> None:
    target = tmp_path / "hpc"
    target.mkdir()
    made = replica(target)
    made.process(stored(tmp_path, {b"a": b"first"}))
    batch = stored(tmp_path, {b"a": b"second"}, version=2)
    made.process(batch)
    assert errors(batch) == {} and (target / "exp1" / "data" / "a").read_bytes() == b"second"


def test_a_place_that_is_away_or_full_of_obstacles(ssh: list[str], tmp_path: Path) -> None:
    batch = stored(tmp_path, {b"a": b"1", b"b": b"2"})
    with pytest.raises(TransferError, match="does not exist"):
        replica(tmp_path / "not mounted").process(batch)
    away = [word if word != "-p" else "-p1" for word in ssh]
    away = ["ssh", "-F", "none", "-p", "9", *away[5:]]
    with pytest.raises(CommunicationError, match="cannot be reached"):
        replica(f"@localhost:{tmp_path}", rsync={"ssh": away}).process(batch)
    target = tmp_path / "hpc"
    (target / "exp1" / "data" / "a" / "something").mkdir(parents=True)  # a directory where a file should be
    made = replica(target)
    made.process(batch)
    [(path, (error, transient))] = errors(batch).items()
    assert path == b"a" and transient and "No replica" in error
    assert (target / "exp1" / "data" / "b").read_bytes() == b"2"


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for destination in ("relative", "host:/path", "@ho st:/x", "@:/x", "@-oProxyCommand=x", "@host:relative"):
        with pytest.raises(ConfigurationError, match="neither an absolute directory"):
            make_plugins({"replica": {"destination": destination}}, context())
    with pytest.raises(ConfigurationError, match="file_mode"):
        replica(tmp_path, file_mode="rwx")


def test_the_catalog_hears_of_it_after_it_is_true(
    new_postgres_database: Callable[[], str],
    new_mongo_database: Callable[[], str],
    certificates: Path,
    open_directory: Path,
) -> None:
    site = open_directory / "site"
    site.mkdir(mode=0o755)
    with catalog_fixtures.world(new_postgres_database(), new_mongo_database(), certificates, site) as world:
        station = PluginContext(
            "25IDC", catalog_fixtures.SERVICE, catalog_fixtures.PASSWORD, str(certificates / "ca.pem")
        )
        target = open_directory / "hpc"
        target.mkdir()
        [made] = make_plugins(
            {"polaris": {"class": "replica", "destination": str(target), "catalog_url": world.url}}, station
        )
        known = Catalog(CatalogSettings(url=world.url), station)
        files = world.api(FileCatApi)
        batch = stored(open_directory, dict.fromkeys(NAMES, b"1"))
        batch.experiment = {
            "id": world.ids["exp1"],
            "name": "exp1",
            "storageHost": "voyager",
            "storageDirectory": str(open_directory / "storage"),
        }
        known.process(batch)
        shutil.rmtree(open_directory / "storage")
        (open_directory / "source" / "plain.h5").unlink()
        made.process(batch)
        made.process(batch)
        assert set(errors(batch)) == {b"plain.h5"}
        for name in NAMES:
            record = files.getExperimentFile("exp1", os.fsdecode(name))
            types = {place["type"]: place for place in record["replicas"]}
            assert set(types) == {"storage", "source"} | ({"replica"} if name != b"plain.h5" else set())
            assert record["sample"] == "gold" and len(record["replicas"]) == len(types)
            if name == b"co:lon@host":
                assert types["replica"]["url"].endswith(f"{target}/exp1/data/co%3Alon%40host")
                assert (types["replica"]["name"], types["replica"]["version"]) == ("polaris", 1)
        skipping = stored(open_directory, {b"unknown": b"1"}, skipCatalog=True)
        skipping.experiment = batch.experiment
        made.process(skipping)
        assert errors(skipping) == {} and (target / "exp1" / "data" / "unknown").exists()
        assert files.getExperimentFileCollectionStats("exp1")["countFiles"] == len(NAMES)
        for one in (made, known, files):
            one.close()


def test_through_a_daq_that_changes_its_files(
    new_postgres_database: Callable[[], str],
    new_mongo_database: Callable[[], str],
    certificates: Path,
    open_directory: Path,
) -> None:
    """Files that change and come again arrive there, too; one whose source goes at once is copied from storage."""
    site_directory, source, target = (open_directory / name for name in ("site", "detector", "hpc"))
    for directory in (site_directory, source, target):
        directory.mkdir(mode=0o755)
    with running_site(site_directory, new_postgres_database(), certificates) as site:
        experiment = site.experiment("copied")
        made = replica(target)
        with running_office(site, new_mongo_database(), [made], batch_files=10) as office:
            keys = {"processExistingFiles": True, "destDirectory": "raw"}
            daq = office.start("daq", PRINCIPAL, "copied", str(source), keys)["id"]
            for name in NAMES:
                Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(name)
            until(lambda: office.info("daq", daq)["nCompletedFiles"] == len(NAMES), what="all copied")
            for name in NAMES[:5]:
                Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(b"second " + name)
            until(lambda: tree(experiment["dataDirectory"] + "/raw") == tree(source), what="stored again")
            office.stop("daq", daq, abort=False)
            record = finish(office, "daq", daq)
            assert (record["status"], record["nProcessingErrors"]) == ("done", 0)
            assert tree(target / "copied" / "data" / "raw") == tree(source)
