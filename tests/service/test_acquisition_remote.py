"""DAQs and uploads of directories on other machines: a whole service, a real site, a real sshd and rsync daemon."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dm.common.errors import CommunicationError, InvalidArgument
from dm.station.acquisition.api import ExperimentDaqApi
from tests.service.acquisition_fixtures import Site, running_api, tree, until

NAMES = [
    b"scan.dat", b" lead", b"trail ", b"%41", b"#", b"?", b"new\nline", b"'q\"", b"$(id) ;", b"-rf", b"--delete", b"*",
    b"[x]", b"back\\slash", b"c\\#012", b"a:b", b"\xff\xfe", "é".encode(), "e\u0301".encode(), "日本😀.h5".encode(),
    b"n" * 250, b"run 1/a", b"run 1/-b", b"run 1/ \n/[y]\xfe",
]  # fmt: skip


@pytest.fixture(scope="module")
def api(
    site: Site, ssh: list[str], daemon: tuple[int, Path, Path], new_mongo_database: Callable[[], str]
) -> Iterator[ExperimentDaqApi]:
    known = {"url": f"rsync://127.0.0.1:{daemon[0]}/dm", "directory": str(daemon[1]), "password_file": str(daemon[2])}
    transports = {"local": {}, "rsync": {"ssh": ssh, "io_timeout": 30, "daemons": {"127.0.0.1": known}}}
    with running_api(site, new_mongo_database(), transports=transports, plugins={}) as found:
        yield found


def fill(directory: Path) -> None:
    for name in NAMES:
        path = os.path.join(os.fsencode(directory), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(b"content of " + name)


def at_host(directory: Path) -> str:
    return f"@{getpass.getuser()}@localhost:{directory}"


def test_upload_from_a_host(api: ExperimentDaqApi, site: Site, tmp_path: Path) -> None:
    """A remote upload once ended with no files and a text about no new files."""
    experiment = site.experiment("from-a-host")
    fill(tmp_path)
    os.symlink("/etc/passwd", tmp_path / "link")
    done = api.waitUpload(api.upload("from-a-host", at_host(tmp_path))["id"], 60)
    assert (done["status"], done["nCompletedFiles"], done["nProcessingErrors"]) == ("done", len(NAMES), 0), dict(done)
    os.unlink(tmp_path / "link")
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)
    again = api.waitUpload(api.upload("from-a-host", at_host(tmp_path))["id"], 60)
    assert again["countFiles"] == 0
    (tmp_path / "scan.dat").write_bytes(b"corrected")
    corrected = api.waitUpload(api.upload("from-a-host", at_host(tmp_path))["id"], 60)
    assert corrected["nCompletedFiles"] == 1
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_daq_follows_a_host(api: ExperimentDaqApi, site: Site, tmp_path: Path) -> None:
    experiment = site.experiment("follows-a-host")
    (tmp_path / "old").write_bytes(b"old")
    daq = api.startDaq("follows-a-host", at_host(tmp_path), {"processExistingFiles": True, "removeSourceFiles": True})
    until(lambda: api.getDaqInfo(daq["id"])["nCompletedFiles"] == 1)
    (tmp_path / "new").write_bytes(b"new")
    until(lambda: api.getDaqInfo(daq["id"])["nCompletedFiles"] == 2)
    api.stopDaq("follows-a-host", at_host(tmp_path))
    assert api.waitDaq(daq["id"], 60)["status"] == "done"
    assert sorted(os.listdir(experiment["dataDirectory"])) == ["new", "old"]
    assert os.listdir(tmp_path) == []


def test_upload_from_an_rsync_daemon(api: ExperimentDaqApi, site: Site, daemon: tuple[int, Path, Path]) -> None:
    experiment = site.experiment("from-a-daemon")
    directory = daemon[1] / "detector 1"
    fill(directory)
    url = f"rsync://station@127.0.0.1:{daemon[0]}/dm/detector%201"
    done = api.waitUpload(api.upload("from-a-daemon", url)["id"], 60)
    assert (done["status"], done["nCompletedFiles"]) == ("done", len(NAMES)), dict(done)
    assert tree(experiment["dataDirectory"]) == tree(directory)


def test_what_is_refused_at_the_start(api: ExperimentDaqApi, site: Site, tmp_path: Path) -> None:
    site.experiment("refused")
    with pytest.raises(InvalidArgument, match="No such file"):
        api.upload("refused", at_host(tmp_path / "none"))
    with pytest.raises(CommunicationError, match=r"host\.invalid"):
        api.upload("refused", f"@host.invalid:{tmp_path}")
    for text in ("@-oProxyCommand=id:/x", "@a b:/x", "rsync:///x", "gopher://h/x", "rsync://u:secret@h/m/x"):
        with pytest.raises(InvalidArgument):
            api.upload("refused", text)
    assert api.listUploads("refused") == []
