"""Uploads and DAQs through GridFTP: a whole service, a real site, real servers; and what happens without them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dm.common.errors import CommunicationError, InvalidArgument
from dm.common.paths import decode
from dm.station.acquisition.api import ExperimentDaqApi
from tests.service.acquisition_fixtures import Site, running_api, tree, until
from tests.service.gridftp_server import GridAuthority, GridFtpServer, running

# of F-18; those a command line of globus-url-copy would spoil, and those an anonymous server does not take
PLAIN = [
    b"scan.dat", b" lead", b"trail ", b"%41", b"#", b"?", b"'q\"", b"$(id) ;*", b"-rf", b"[x]", b"back\\slash", b"a:b",
    b"run 1/-b", b"n" * 250,
]  # fmt: skip
ODD = [b"new\nline", b"\xff\xfe", "é".encode(), "e\u0301".encode(), "日本😀.h5".encode(), b"run 1/\xfc"]


@pytest.fixture(scope="module")
def gridftp(plain: GridFtpServer, authority: GridAuthority) -> dict[str, Any]:
    """Settings with the anonymous server for storage, and a credential for the others."""
    certificate, key = authority.issue("station")
    return {
        "servers": {"localhost": {"urls": [plain.url]}},
        "certificate": str(certificate),
        "key": str(key),
        "certificates": str(authority.certificates),
        "io_timeout": 30,
    }


@pytest.fixture(scope="module")
def api(site: Site, gridftp: dict[str, Any], new_mongo_database: Callable[[], str]) -> Iterator[ExperimentDaqApi]:
    with running_api(site, new_mongo_database(), plugins={}, transports={"gridftp": gridftp, "local": {}}) as found:
        yield found


def fill(directory: Path, names: list[bytes]) -> None:
    for name in names:
        path = os.path.join(os.fsencode(directory), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(b"content of " + name)


def moved_by(api: ExperimentDaqApi, upload: str) -> set[str]:
    return {str(row.get("transport")) for row in api.listUploadFiles(upload)}


def test_every_name_through_the_servers_of_storage(api: ExperimentDaqApi, site: Site, tmp_path: Path) -> None:
    experiment = site.experiment("through-gridftp")
    fill(tmp_path, PLAIN + ODD)
    done = api.waitUpload(api.upload("through-gridftp", str(tmp_path))["id"], 60)
    assert (done["status"], done["nCompletedFiles"]) == ("done", len(PLAIN + ODD)), dict(done)
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)
    assert moved_by(api, done["id"]) == {"gridftp"}


def test_upload_from_an_anonymous_server(
    api: ExperimentDaqApi, site: Site, plain: GridFtpServer, tmp_path: Path
) -> None:
    experiment = site.experiment("from-gridftp")
    fill(tmp_path, PLAIN)
    os.symlink("/etc/passwd", tmp_path / "link")
    url = f"{plain.url}{tmp_path}"
    done = api.waitUpload(api.upload("from-gridftp", url)["id"], 60)
    assert (done["status"], done["nCompletedFiles"]) == ("done", len(PLAIN)), dict(done)
    os.unlink(tmp_path / "link")
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)
    assert api.waitUpload(api.upload("from-gridftp", url)["id"], 60)["countFiles"] == 0
    fill(tmp_path, ODD)
    failed = api.waitUpload(api.upload("from-gridftp", url)["id"], 60)
    assert (failed["status"], failed["nProcessingErrors"]) == ("failed", len(ODD)), dict(failed)
    assert "anonymous GridFTP cannot carry" in failed["errorMessage"]
    assert {name for name in tree(experiment["dataDirectory"]) if decode(name) not in map(decode, PLAIN)} == set()


def test_daq_of_a_directory_behind_gsi(
    api: ExperimentDaqApi, site: Site, secure: GridFtpServer, tmp_path: Path
) -> None:
    experiment = site.experiment("from-gsiftp")
    fill(tmp_path, PLAIN + ODD)
    url = f"{secure.url}{tmp_path}"
    options = {"processExistingFiles": True, "removeSourceFiles": True}
    daq = api.startDaq("from-gsiftp", url, options)["id"]
    until(lambda: api.getDaqInfo(daq)["nCompletedFiles"] == len(PLAIN + ODD))
    fill(tmp_path, [b"later"])
    until(lambda: api.getDaqInfo(daq)["nCompletedFiles"] == len(PLAIN + ODD) + 1)
    api.stopDaq("from-gsiftp", url)
    assert api.waitDaq(daq, 60)["status"] == "done"
    assert len(tree(experiment["dataDirectory"])) == len(PLAIN + ODD) + 1
    assert tree(tmp_path) == {}, "removed at the source, through the server"


def test_what_is_refused_at_the_start(api: ExperimentDaqApi, site: Site, plain: GridFtpServer, tmp_path: Path) -> None:
    site.experiment("refused-gridftp")
    with pytest.raises(InvalidArgument, match="does not exist"):
        api.upload("refused-gridftp", f"{plain.url}{tmp_path}/none")
    with pytest.raises(CommunicationError, match="cannot be reached"):
        api.upload("refused-gridftp", f"ftp://host.invalid:2811{tmp_path}")
    for text in (f"ftp://u:secret@h{tmp_path}", "ftp:///x", "ftp://u@h/x", "ftp://-x/x"):
        with pytest.raises(InvalidArgument):
            api.upload("refused-gridftp", text)
    assert api.listUploads("refused-gridftp") == []


def test_rsync_stands_in_while_gridftp_does_not_answer(
    site: Site, place: Path, tmp_path: Path, new_mongo_database: Callable[[], str]
) -> None:
    experiment = site.experiment("falls-back")
    server = GridFtpServer(place / "away")
    settings = {"servers": {"localhost": {"urls": [server.url]}}, "rest_seconds": 0.1}
    with running_api(site, new_mongo_database(), plugins={}, transports={"gridftp": settings, "rsync": {}}) as api:
        fill(tmp_path, PLAIN[:3])
        first = api.waitUpload(api.upload("falls-back", str(tmp_path))["id"], 60)
        assert (first["status"], first["nCompletedFiles"]) == ("done", 3), dict(first)
        assert moved_by(api, first["id"]) == {"rsync"}
    with (
        running(server),
        running_api(site, new_mongo_database(), plugins={}, transports={"gridftp": settings, "rsync": {}}) as api,
    ):
        fill(tmp_path, ODD)
        second = api.waitUpload(api.upload("falls-back", str(tmp_path), {"reprocessFiles": True})["id"], 60)
        assert second["status"] == "done", dict(second)
        assert moved_by(api, second["id"]) == {"gridftp"}
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_nothing_is_lost_when_movers_are_killed_and_servers_hang_and_die(
    site: Site, place: Path, tmp_path: Path, new_mongo_database: Callable[[], str]
) -> None:
    """F-04 and F-05 in one upload."""
    experiment = site.experiment("troubled")
    for number in range(300):
        (tmp_path / f"frame {number}").write_bytes(number.to_bytes(4, "big") * 50_000)
    first, second = GridFtpServer(place / "first"), GridFtpServer(place / "second")
    settings = {
        "servers": {"localhost": {"urls": [first.url, second.url]}},
        "io_timeout": 2,
        "connect_timeout": 1,
        "rest_seconds": 0.5,
    }
    with (
        running(first),
        running(second),
        running_api(site, new_mongo_database(), plugins={}, transports={"gridftp": settings}, batch_files=50) as api,
    ):
        upload = api.upload("troubled", str(tmp_path))["id"]

        def killed() -> bool:
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    if child.name() == "globus-url-copy":
                        child.kill()
                        return True
            return False

        for _ in range(3):
            until(killed)
        first.signal(signal.SIGSTOP)
        second.stop()
        second.start()
        until(lambda: api.getUploadInfo(upload)["nCompletedFiles"] >= 100)
        first.signal(signal.SIGCONT)
        done = api.waitUpload(upload, 90)
        assert (done["status"], done["nCompletedFiles"], done["nProcessingErrors"]) == ("done", 300, 0), dict(done)
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)
