"""Data directories that are not a local disk with events: another host, a polled file system, storage itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import InvalidArgument
from dm.station.acquisition.listing import listed_files
from dm.station.acquisition.office import Office
from dm.station.acquisition.transports.local import Local, LocalSettings
from dm.station.acquisition.transports.rsync import Rsync
from dm.station.acquisition.transports.rsync_command import RsyncSettings
from tests.service.acquisition_fixtures import PRINCIPAL, Site, finish, running_office, tree, until
from tests.service.acquisition_hosts import running_sshd


@pytest.fixture(scope="module")
def remote(site: Site, run_directory: Path, new_mongo_database: Callable[[], str]) -> Iterator[Office]:
    """An office that reaches other hosts by ssh; the other host is this one."""
    with running_sshd(run_directory / "acquisition-sources-sshd") as ssh:
        transports = [Local(LocalSettings()), Rsync(RsyncSettings(ssh=ssh))]
        with running_office(site, new_mongo_database(), transports=transports) as office:
            yield office


def start(office: Office, kind: str, name: str, source: str, **keys: Any) -> dict[str, Any]:
    return office.start(kind, PRINCIPAL, name, source, keys)


def test_an_upload_from_another_host(remote: Office, site: Site, tmp_path: Path) -> None:
    experiment = site.experiment("remote-upload")
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b c", "sub/ü\n"):
        (tmp_path / name).write_bytes(os.urandom(1000))
    (tmp_path / "link").symlink_to("a")
    place = f"@localhost:{tmp_path}"
    record = finish(remote, "upload", start(remote, "upload", "remote-upload", place)["id"])
    assert record["status"] == "done", record
    expected = tree(tmp_path)
    del expected[b"link"]
    assert tree(experiment["dataDirectory"]) == expected
    assert (record["nCompletedFiles"], record["nSkippedFiles"]) == (3, 1)
    again = finish(remote, "upload", start(remote, "upload", "remote-upload", place)["id"])
    assert again["nCompletedFiles"] == 0
    assert "no new files" in again["errorMessage"]
    with pytest.raises(InvalidArgument, match="missing"):
        start(remote, "upload", "remote-upload", f"@localhost:{tmp_path}/missing")


def test_a_daq_on_another_host(remote: Office, site: Site, tmp_path: Path) -> None:
    experiment = site.experiment("remote-daq")
    (tmp_path / "before").write_bytes(b"old")
    place = f"@localhost:{tmp_path}"
    daq = start(remote, "daq", "remote-daq", place)
    (tmp_path / "a").write_bytes(b"first edition")
    until(lambda: remote.info("daq", daq["id"])["nCompletedFiles"] == 1)
    (tmp_path / "a").write_bytes(b"the second edition")
    until(lambda: (Path(experiment["dataDirectory"]) / "a").read_bytes() == b"the second edition")
    (tmp_path / "b").write_bytes(b"last")
    remote.stop("daq", daq["id"], abort=False)
    record = finish(remote, "daq", daq["id"])
    assert (record["status"], record["nCompletedFiles"]) == ("done", 2)
    assert tree(experiment["dataDirectory"]).keys() == {b"a", b"b"}


def test_a_polled_directory(site: Site, new_mongo_database: Callable[[], str], tmp_path: Path) -> None:
    experiment = site.experiment("polled")
    with running_office(site, new_mongo_database(), watch="polling") as office:
        daq = start(office, "daq", "polled", str(tmp_path))
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "a").write_bytes(b"1")
        until(lambda: office.info("daq", daq["id"])["nCompletedFiles"] == 1)
        [row] = listed_files(office, daq["id"], "done", 0, 10)
        assert row["rule"] == "settled"
        office.stop("daq", daq["id"], abort=False)
        assert finish(office, "daq", daq["id"])["status"] == "done"
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_data_on_storage_already_are_only_recorded(
    site: Site, new_mongo_database: Callable[[], str], tmp_path: Path
) -> None:
    experiment = site.experiment("inplace")
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "a").write_bytes(b"1")
    with running_office(site, new_mongo_database(), storage_aliases={"voyager": str(tmp_path)}) as office:
        record = finish(office, "upload", start(office, "upload", "inplace", "@voyager:/run1")["id"])
        assert (record["status"], record["nCompletedFiles"]) == ("done", 1)
        assert record["skipTransfer"] is True
        [row] = listed_files(office, record["id"], "done", 0, 10)
        assert row["md5Sum"] == "c4ca4238a0b923820dcc509a6f75849b"
    assert tree(experiment["dataDirectory"]) == {}


def test_a_data_directory_that_vanishes_is_told(
    site: Site, new_mongo_database: Callable[[], str], tmp_path: Path
) -> None:
    site.experiment("unmounted")
    source = tmp_path / "source"
    source.mkdir()
    with running_office(site, new_mongo_database()) as office:
        daq = start(office, "daq", "unmounted", str(source))
        until(lambda: office.info("daq", daq["id"])["status"] == "running")
        source.rename(tmp_path / "elsewhere")
        until(lambda: "does not exist any more" in office.info("daq", daq["id"])["errorMessage"])
        source.mkdir()
        (source / "a").write_bytes(b"1")
        until(lambda: office.info("daq", daq["id"])["nCompletedFiles"] == 1)
        source.rename(tmp_path / "gone")
        office.stop("daq", daq["id"], abort=False)
        record = finish(office, "daq", daq["id"])
        assert record["status"] == "failed"
        assert "does not exist any more" in record["errorMessage"]
