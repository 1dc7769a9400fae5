"""Files in storage: stat, download, archive, listing, permissions - for members, and only within the experiment."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dm.common import tls
from dm.common.errors import (
    AuthorizationError,
    CommunicationError,
    InvalidArgument,
    InvalidRequest,
    ObjectNotFound,
)
from dm.site.storage.api import Experiment, FileDsApi
from tests.service import storage_fixtures as fx

CONTENTS = {
    "a.h5": b"alpha" * 1000,
    "sub/dir/b.h5": os.urandom(5000),
    "empty": b"",
    "raw-\udcff\udc80": b"raw name",
    "x" * 200 + "/" + "y" * 200: b"long path",
    "new\nline é": b"odd",
}


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
def experiment(site: fx.Site) -> Experiment:
    """An experiment with a member and some published files."""
    name = f"exp-{uuid.uuid4().hex[:8]}"
    added = site.experiments(fx.MANAGER).addExperiment(name, fx.STATION, usernameList=[fx.ALICE])
    grant = site.station(fx.MANAGER).addGrant(name, "upload", fx.STATION)
    station = site.station()
    fx.publish(station, grant, CONTENTS)
    fx.publish(station, grant, {"result.txt": b"42"}, root="analysis")
    return added


@pytest.fixture
def alice(site: fx.Site) -> FileDsApi:
    return site.files(fx.ALICE)


def raw(site: fx.Site, username: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    """GET with a session, without any of our client kit's help."""
    session = site.rest(username)
    session.login()
    with httpx.Client(verify=tls.client_context(site.ca_file), timeout=30) as client:
        return client.get(f"{site.url}{path}", headers={"Cookie": f"SESSIONID={session.cookie}", **(headers or {})})


def test_stat_says_size_time_digest_and_readiness(experiment: Experiment, alice: FileDsApi) -> None:
    record = alice.statFile("sub/dir/b.h5", experiment["name"])
    content = CONTENTS["sub/dir/b.h5"]
    assert (record["fileName"], record["experimentFilePath"], record["root"]) == ("b.h5", "sub/dir/b.h5", "data")
    assert record["fileSize"] == len(content) and record["readyForProcessing"] is True
    assert record["md5Sum"] == hashlib.md5(content).hexdigest()
    assert record["fileModificationTime"] == pytest.approx(1_700_000_000.123, abs=0.01)
    assert record["fileModificationTimestamp"].startswith("2023/11/1")
    assert alice.statFile("result.txt", experiment["name"])["root"] == "analysis"
    with pytest.raises(ObjectNotFound, match="does not exist"):
        alice.statFile("result.txt", experiment["name"], root="data")


def test_the_two_published_orders_of_stat_arguments(experiment: Experiment, alice: FileDsApi, site: fx.Site) -> None:
    name = experiment["name"]
    assert alice.statFile("a.h5", name, "", False)["fileName"] == "a.h5"
    assert alice.statFile("a.h5", name, "", True)["md5Sum"]
    assert alice.statFile("a.h5", name, fx.STATION)["fileName"] == "a.h5"
    assert alice.statFile("a.h5", name, fx.STATION, "")["fileName"] == "a.h5"
    with pytest.raises(ObjectNotFound, match=r"a\.h5\.gz"):
        alice.statFile("a.h5", name, "gz", True)
    Path(experiment["dataDirectory"], "a.h5.gz").write_bytes(b"zipped")
    record = alice.statFile("a.h5", name, "gz")
    assert (record["fileName"], record["compression"]) == ("a.h5.gz", "gz")
    with pytest.raises(ObjectNotFound):
        alice.statFile("a.h5", name, "NO-SUCH-STATION")
    with pytest.raises(InvalidArgument, match="rar"):
        alice.statFile("a.h5", name, compression="rar")


def test_a_file_changed_or_made_by_hand_is_not_ready(experiment: Experiment, alice: FileDsApi) -> None:
    Path(experiment["dataDirectory"], "a.h5").write_bytes(b"tampered")
    record = alice.statFile("a.h5", experiment["name"])
    assert record["readyForProcessing"] is False and record["md5Sum"] is None and "version" not in record
    Path(experiment["analysisDirectory"], "byhand").write_bytes(b"abc")
    record = alice.statFile("byhand", experiment["name"], "", True)
    assert record["readyForProcessing"] is False and record["md5Sum"] == "900150983cd24fb0d6963f7d28e17f72"


@pytest.mark.parametrize("path", ["../{other}/data/a.h5", "/etc/passwd", "sub/../../x", "", "..", "a\udcff/../../b"])
def test_paths_that_leave_are_refused(site: fx.Site, experiment: Experiment, alice: FileDsApi, path: str) -> None:
    path = path.replace("{other}", experiment["name"] + "0")
    for route in ("/files/stat", "/files/download"):
        with pytest.raises(InvalidRequest):
            alice.client.get(route, path=path, experimentName=experiment["name"])


def test_f21_links_in_the_tree_are_not_followed(experiment: Experiment, alice: FileDsApi, tmp_path: Path) -> None:
    data = Path(experiment["dataDirectory"])
    (tmp_path / "secret").write_bytes(b"secret")
    (data / "file-link").symlink_to(tmp_path / "secret")
    (data / "dir-link").symlink_to(tmp_path)
    (data / "loop").symlink_to("loop")
    os.mkfifo(data / "fifo")
    for path in ("file-link", "dir-link/secret", "loop", "loop/x", "fifo", "sub"):
        with pytest.raises(InvalidArgument):
            alice.statFile(path, experiment["name"])
        with pytest.raises(InvalidArgument):
            alice.client.get("/files/download", path=path, experimentName=experiment["name"])


def test_only_members_get_at_files(site: fx.Site, experiment: Experiment) -> None:
    for username in (fx.BOB, fx.OTHER_MANAGER, fx.OTHER_SERVICE):
        api, name = site.files(username), experiment["name"]
        for call in (
            lambda api=api, name=name: api.statFile("a.h5", name, fx.STATION),
            lambda api=api, name=name: api.downloadFile("a.h5", name),
            lambda api=api, name=name: list(api.getFiles(name)),
            lambda api=api, name=name: api.downloadArchive(name, "never"),
            lambda api=api, name=name: api.client.get(f"/experimentsById/{experiment['id']}/archive"),
        ):
            with pytest.raises(ObjectNotFound, match="does not exist"):
                call()
    assert not Path("never").exists()
    assert site.files(fx.ADMIN).statFile("a.h5", experiment["name"], fx.STATION)["fileName"] == "a.h5"


def test_download_is_verified_and_keeps_odd_names(experiment: Experiment, alice: FileDsApi, tmp_path: Path) -> None:
    for path, content in CONTENTS.items():
        record = alice.downloadFile(path, experiment["name"], tmp_path)
        local = Path(record["localFilePath"])
        assert local.parent == tmp_path and local.name == record["fileName"] == path.rpartition("/")[2]
        assert local.read_bytes() == content
    with pytest.raises(ObjectNotFound):
        alice.downloadFile("nothing", experiment["name"], tmp_path)


def test_download_through_the_experiment_class(site: fx.Site, experiment: Experiment, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record = site.experiments(fx.ALICE).downloadFile(
        "a.h5", experiment["name"], tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    assert record["fileName"] == "a.h5" and Path(record["localFilePath"]).read_bytes() == CONTENTS["a.h5"]
    assert seen[-1] == (5000, 5000)


def test_ranges_of_a_file(site: fx.Site, experiment: Experiment) -> None:
    path = f"/files/download?experimentName={experiment['name']}&path=a.h5"
    whole = raw(site, fx.ALICE, path)
    assert whole.content == CONTENTS["a.h5"] and whole.headers["accept-ranges"] == "bytes"
    part = raw(site, fx.ALICE, path, {"Range": "bytes=100-299", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, CONTENTS["a.h5"][100:300])
    again = raw(site, fx.ALICE, path, {"Range": "bytes=100-299", "If-Range": '"another"'})
    assert (again.status_code, again.content) == (200, CONTENTS["a.h5"])
    assert raw(site, fx.ALICE, path, {"Range": "bytes=5000-"}).status_code == 416


def test_the_archive_is_deterministic_complete_and_resumable(
    site: fx.Site, experiment: Experiment, alice: FileDsApi, tmp_path: Path
) -> None:
    target = alice.downloadArchive(experiment["name"], tmp_path / "all.tar")
    whole = target.read_bytes()
    found = {}
    with tarfile.open(target, encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            found[member.name] = archive.extractfile(member).read()
            assert member.isreg() and member.mode == 0o640 and member.mtime == 1_700_000_000
    top = experiment["name"]
    expected = {f"{top}/data/{path}": content for path, content in CONTENTS.items()}
    assert found == expected | {f"{top}/analysis/result.txt": b"42"}
    path = f"/experimentsById/{experiment['id']}/archive"
    etag = raw(site, fx.ALICE, path).headers["etag"]
    pieces = []
    for first in range(0, len(whole), 3001):
        reply = raw(site, fx.ALICE, path, {"Range": f"bytes={first}-{first + 3000}", "If-Range": etag})
        assert reply.status_code == 206
        pieces.append(reply.content)
    assert b"".join(pieces) == whole
    only = alice.downloadArchive(experiment["name"], tmp_path / "a.tar", root="analysis")
    with tarfile.open(only) as archive:
        assert archive.getnames() == [f"{top}/analysis/result.txt"]
    grant = site.station(fx.MANAGER).addGrant(top, "upload", fx.STATION)
    fx.publish(site.station(), grant, {"late": b"late"})
    changed = raw(site, fx.ALICE, path, {"Range": "bytes=0-9", "If-Range": etag})
    assert changed.status_code == 200 and changed.headers["etag"] != etag


def test_an_archive_never_passes_off_changed_files(experiment: Experiment, alice: FileDsApi, tmp_path: Path) -> None:
    Path(experiment["dataDirectory"], "sub/dir/b.h5").write_bytes(b"tampered")
    with pytest.raises(CommunicationError):
        alice.downloadArchive(experiment["name"], tmp_path / "all.tar")
    assert not (tmp_path / "all.tar").exists()


def test_an_empty_experiment_gives_an_empty_archive(site: fx.Site) -> None:
    name = f"exp-{uuid.uuid4().hex[:8]}"
    site.experiments(fx.MANAGER).addExperiment(name, fx.STATION)
    reply = raw(site, fx.MANAGER, f"/files/archive?experimentName={name}")
    with tarfile.open(fileobj=io.BytesIO(reply.content)) as archive:
        assert archive.getnames() == []


def test_listing_pages_hold_every_file_once(experiment: Experiment, alice: FileDsApi) -> None:
    seen, after, pages = [], 0, 0
    while after is not None:
        page = alice.client.get("/files", experimentName=experiment["name"], after=after, limit=2)
        seen += [record["experimentFilePath"] for record in page["files"]]
        after, pages = page["nextAfter"], pages + 1
    assert sorted(seen) == sorted([*CONTENTS, "result.txt"]) and pages == 4
    assert [r["experimentFilePath"] for r in alice.getFiles(experiment["name"], root="analysis")] == ["result.txt"]
    totals = alice.getTotals(experiment["name"])
    assert totals["countFiles"] == len(CONTENTS) + 1
    assert totals["countBytes"] == sum(map(len, CONTENTS.values())) + 2
    with pytest.raises(InvalidRequest):
        alice.client.get("/files", experimentName=experiment["name"], limit=10_001)


def test_permissions_are_set_right_again_and_links_left_alone(
    site: fx.Site, experiment: Experiment, tmp_path: Path
) -> None:
    data = Path(experiment["dataDirectory"])
    victim = tmp_path / "victim"
    victim.write_bytes(b"x")
    victim.chmod(0o600)
    (data / "sub").chmod(0o777)
    (data / "sub/dir/b.h5").chmod(0o6777)
    (data / "a.h5").chmod(0o666)
    (data / "sub/link").symlink_to(victim)
    (data / "sub/hard").hardlink_to(victim)
    manager = site.experiments(fx.MANAGER)
    done = manager.restorePermissions(experiment["name"], "data/sub", fx.STATION)
    assert (done["countFiles"], done["countDirectories"], done["countSkipped"]) == (1, 2, 2)
    assert sorted(done["skipped"]) == ["data/sub/hard", "data/sub/link"]
    assert fx.modes(data)["sub"] == 0o2750 and fx.modes(data)["sub/dir/b.h5"] == 0o750
    assert fx.modes(data)["a.h5"] == 0o666 and stat.S_IMODE(victim.stat().st_mode) == 0o600
    manager.restorePermissions(experiment["name"], "data/a.h5")
    assert fx.modes(data)["a.h5"] == 0o640
    (data / "a.h5").chmod(0o666)
    assert manager.restorePermissions(experiment["name"])["countFiles"] > len(CONTENTS)
    assert fx.modes(data)["a.h5"] == 0o640
    for bad in ("../x", "data/../../x", "data/sub/link/x", ".staging/x"):
        with pytest.raises(InvalidArgument):
            manager.restorePermissions(experiment["name"], bad)
    with pytest.raises(ObjectNotFound):
        manager.restorePermissions(experiment["name"], "data/nothing")
    with pytest.raises(AuthorizationError):
        site.experiments(fx.ALICE).restorePermissions(experiment["name"])
