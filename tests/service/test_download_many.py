"""Downloads of many files: what is there stays, what was begun goes on, and nothing leaves the destination."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.client import RestClient
from dm.common.downloads import Downloads, Wanted
from dm.common.errors import AuthorizationError, CommunicationError, ObjectNotFound
from dm.common.tls import server_context
from dm.site.storage.api import FileDsApi
from tests.service import storage_fixtures as fx
from tests.service.client_fixtures import DATA, data_step, json_step, serving

MTIME = 1_700_000_000.123456789
CONTENTS = {f"scan{n % 3}/f{n:02}.h5": os.urandom(1000 * n) for n in range(20)} | {"scan0/note.txt": b"note"}


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def experiment(site: fx.Site) -> str:
    name = f"exp-{uuid.uuid4().hex[:8]}"
    site.experiments(fx.MANAGER).addExperiment(name, fx.STATION, usernameList=[fx.ALICE])
    grant = site.station(fx.MANAGER).addGrant(name, "upload", fx.STATION)
    fx.publish(site.station(), grant, CONTENTS)
    fx.publish(site.station(), grant, {"result.txt": b"42"}, root="analysis")
    return name


@pytest.fixture
def alice(site: fx.Site) -> FileDsApi:
    return site.files(fx.ALICE)


def below(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def fetched(records: Iterator[Any]) -> list[str]:
    return [record["experimentFilePath"] for record in records if record.get("fetched")]


def test_a_whole_experiment_in_its_directories(experiment: str, alice: FileDsApi, tmp_path: Path) -> None:
    told: list[int] = []
    records = list(alice.downloadFiles(experiment, tmp_path / "new", parallel=8, progress=told.append))
    expected = {f"data/{path}": content for path, content in CONTENTS.items()} | {"analysis/result.txt": b"42"}
    assert below(tmp_path / "new") == expected and len(records) == len(expected)
    assert records[0]["localFilePath"] == str(tmp_path / "new/data/scan0/f00.h5")
    assert told == sorted(told) and told[-1] == sum(map(len, expected.values()))
    assert (tmp_path / "new/data/scan1/f01.h5").stat().st_mtime == pytest.approx(MTIME, abs=1e-6)


def test_what_is_there_and_equal_stays(experiment: str, alice: FileDsApi, tmp_path: Path) -> None:
    list(alice.downloadFiles(experiment, tmp_path))
    assert fetched(alice.downloadFiles(experiment, tmp_path)) == []
    touched, changed = tmp_path / "data/scan1/f01.h5", tmp_path / "data/scan2/f02.h5"
    short, hidden = tmp_path / "data/scan0/f03.h5", tmp_path / "data/scan1/f04.h5"
    os.utime(touched, (1, 1))  # equal bytes, another time: read, kept, and given its time
    changed.write_bytes(bytes(2000))
    short.write_bytes(b"")
    status = hidden.stat()
    hidden.write_bytes(bytes(4000))
    os.utime(hidden, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert fetched(alice.downloadFiles(experiment, tmp_path)) == ["scan2/f02.h5", "scan0/f03.h5"]
    assert touched.stat().st_mtime == pytest.approx(MTIME, abs=1e-6)
    assert hidden.read_bytes() == bytes(4000), "size and time are trusted"
    assert fetched(alice.downloadFiles(experiment, tmp_path, verify=True)) == ["scan1/f04.h5"], "unless asked"
    assert hidden.read_bytes() == CONTENTS["scan1/f04.h5"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"pattern": "*.txt"}, {"data/scan0/note.txt", "analysis/result.txt"}),
        ({"pattern": "scan0/*.txt"}, {"data/scan0/note.txt"}),
        ({"path": "scan0", "pattern": "f0[0-3].h5"}, {"data/scan0/f00.h5", "data/scan0/f03.h5"}),
        ({"path": "scan0/note.txt"}, {"data/scan0/note.txt"}),
        ({"path": "scan"}, set()),
        ({"root": "analysis"}, {"analysis/result.txt"}),
    ],
)
def test_a_choice(
    experiment: str, alice: FileDsApi, tmp_path: Path, choice: dict[str, Any], expected: set[str]
) -> None:
    list(alice.downloadFiles(experiment, tmp_path, **choice))
    assert set(below(tmp_path)) == expected


def test_links_in_the_destination_lead_nowhere(experiment: str, alice: FileDsApi, tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (outside / "victim").write_text("mine")
    (target / "data/scan1").mkdir(parents=True)
    (target / "data/scan0").symlink_to(outside)
    (target / "data/scan1/f01.h5").symlink_to(outside / "victim")
    records = list(alice.downloadFiles(experiment, target))
    failed = {record["experimentFilePath"]: record["error"] for record in records if "error" in record}
    assert set(failed) == {path for path in CONTENTS if path.startswith("scan0/")}
    assert "cannot be followed through 'scan0': it is a link" in failed["scan0/f00.h5"]
    assert below(outside) == {"victim": b"mine"}
    replaced = target / "data/scan1/f01.h5"
    assert not replaced.is_symlink() and replaced.read_bytes() == CONTENTS["scan1/f01.h5"]


def test_one_s_own_link_to_another_disk_is_a_destination(experiment: str, alice: FileDsApi, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    list(alice.downloadFiles(experiment, tmp_path / "link", pattern="note.txt"))
    assert below(tmp_path / "disk") == {"data/scan0/note.txt": b"note"}


def test_others_have_nothing(site: fx.Site, experiment: str, tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound):
        list(site.files(fx.BOB).downloadFiles(experiment, tmp_path / "x", fx.STATION))
    assert below(tmp_path) == {}


def test_files_that_cannot_be_had_do_not_stop_the_others(
    site: fx.Site, experiment: str, alice: FileDsApi, tmp_path: Path
) -> None:
    (tmp_path / "data/scan0/note.txt/x").mkdir(parents=True)
    records = list(alice.downloadFiles(experiment, tmp_path, path="scan0"))
    failed = [record for record in records if "error" in record]
    assert [record["experimentFilePath"] for record in failed] == ["scan0/note.txt"]
    assert failed[0]["error"] == "Is a directory." and "localFilePath" not in failed[0]
    assert len(below(tmp_path)) == len(records) - 1


def test_a_download_that_nobody_waits_for_ends(experiment: str, alice: FileDsApi, tmp_path: Path) -> None:
    records = alice.downloadFiles(experiment, tmp_path)
    next(records)
    records.close()  # type: ignore[attr-defined]


PROGRAM = """
import sys
from dm.site.storage.api import FileDsApi
url, ca, user, password, experiment, target = sys.argv[1:]
api = FileDsApi(user, password, url, ca_file=ca)
for record in api.downloadFiles(experiment, target, parallel=2, progress=lambda count: print(count, flush=True)):
    pass
"""


def test_after_a_kill_it_goes_on_where_it_was(site: fx.Site, alice: FileDsApi, tmp_path: Path) -> None:
    name = f"exp-{uuid.uuid4().hex[:8]}"
    site.experiments(fx.MANAGER).addExperiment(name, fx.STATION, usernameList=[fx.ALICE])
    grant = site.station(fx.MANAGER).addGrant(name, "upload", fx.STATION)
    contents = {"big1": os.urandom(24 << 20), "big2": os.urandom(24 << 20)}
    fx.publish(site.station(), grant, contents)
    words = [site.url, str(site.ca_file), fx.ALICE, fx.password_of(fx.ALICE), name, str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) > 4 << 20:
                process.send_signal(signal.SIGKILL)
                break
    left = {path: path.stat() for path in (tmp_path / "data").iterdir()}
    assert left and all(path.name.startswith(".") and path.name.endswith(".dmpart") for path in left)
    had = sum(status.st_size for status in left.values())
    assert had > 3 << 20
    told: list[int] = []
    list(alice.downloadFiles(name, tmp_path, parallel=2, progress=told.append))
    assert below(tmp_path) == {f"data/{path}": content for path, content in contents.items()}
    inodes = {path.stat().st_ino for path in (tmp_path / "data").iterdir()}
    assert inodes >= {status.st_ino for status in left.values()}, "the parts became the files"


def test_a_part_with_wrong_bytes_is_fetched_again(
    site: fx.Site, experiment: str, alice: FileDsApi, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(_count: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        list(alice.downloadFiles(experiment, tmp_path, path="scan1/f19.h5", progress=stop))
    (part,) = tmp_path.rglob(".*.dmpart")
    size = part.stat().st_size
    part.write_bytes(bytes(size))  # as after a power failure
    list(alice.downloadFiles(experiment, tmp_path, path="scan1/f19.h5"))
    assert below(tmp_path) == {"data/scan1/f19.h5": CONTENTS["scan1/f19.h5"]}


# --- services that lie --------------------------------------------------------------------------------------------


@pytest.fixture
def peer(certificates: Path) -> Iterator[Any]:
    with serving(server_context(certificates / "server.pem", certificates / "server.key")) as started:
        yield started


@pytest.fixture
def liar(peer: Any, certificates: Path) -> Iterator[FileDsApi]:
    url = f"https://localhost:{peer.server_port}"
    api = FileDsApi("d123456", "secret", url, ca_file=certificates / "ca.pem")
    yield api
    api.close()


def listed(path: str, root: str = "data", **more: Any) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    record = {"fileName": name, "experimentFilePath": path, "experimentName": "x", "root": root}
    return record | {"fileSize": len(DATA), "fileModificationTime": 1.5, "digests": {}} | more


def test_names_from_the_service_never_leave_the_destination(peer: Any, liar: FileDsApi, tmp_path: Path) -> None:
    names = ["../out", "/out", "a/../../out", "..", "a\0b", "", "."]
    files = [listed(name) for name in names] + [listed("out", root) for root in ("../..", "/tmp", "..")]
    peer.script = [json_step(200, json.dumps({"files": [*files, listed("good")], "nextAfter": None})), data_step()]
    target = tmp_path / "deep" / "target"
    records = list(liar.downloadFiles("x", target, parallel=1))
    assert [record["experimentFilePath"] for record in records if "error" not in record] == ["good"]
    assert len(records) == len(files) + 1
    assert below(tmp_path) == {"deep/target/data/good": DATA}


def test_the_name_of_a_single_file_is_the_caller_s(peer: Any, liar: FileDsApi, tmp_path: Path) -> None:
    peer.script = [json_step(200, json.dumps(listed("b", fileName="../../evil"))), data_step()]
    record = liar.downloadFile("a/b", "x", tmp_path / "t")
    assert record["localFilePath"] == str(tmp_path / "t/b") and below(tmp_path) == {"t/b": DATA}


def test_wrong_bytes_are_no_file(peer: Any, liar: FileDsApi, tmp_path: Path) -> None:
    files = [listed("a", digests={"md5": "0" * 32}), listed("b", fileSize=7), listed("c", digests={"crc": "1"})]
    peer.script = [json_step(200, json.dumps({"files": files, "nextAfter": None}))] + [data_step()] * 3
    errors = [record["error"] for record in liar.downloadFiles("x", tmp_path, parallel=1)]
    assert "md5" in errors[0] and "instead of 7" in errors[1] and "Unknown digest 'crc'" in errors[2]
    assert below(tmp_path) == {}


def test_a_busy_service_is_asked_again(peer: Any, liar: FileDsApi, tmp_path: Path) -> None:
    busy = json_step(503, '{"errorCode": 9, "errorMessage": "Too many downloads are running."}', **{"Retry-After": "5"})
    wanted = Wanted(b"f", {"path": "f"}, len(DATA), {}, None, None)
    peer.script = [busy, busy, data_step()]
    assert Downloads(liar.client, "/f", tmp_path).one(wanted).fetched and below(tmp_path) == {"f": DATA}


def test_trouble_of_all_files_ends_it_soon(peer: Any, liar: FileDsApi, tmp_path: Path) -> None:
    many = [Wanted(b"f%d" % n, {"path": f"f{n}"}, len(DATA), {}, None, n) for n in range(500)]
    refusal = '{"errorCode": 5, "errorMessage": "Downloads are for the facility\'s own networks."}'
    peer.script = [data_step(), *[json_step(403, refusal)] * 500]
    outcomes = Downloads(liar.client, "/f", tmp_path).run(many, 1)
    assert next(outcomes).fetched
    with pytest.raises(AuthorizationError, match="own networks"):
        next(outcomes)
    assert len(peer.requests) < 500


def test_a_service_that_went_away_ends_it_soon(certificates: Path, tmp_path: Path) -> None:
    many = [Wanted(b"f%d" % n, {"path": f"f{n}"}, 1, {}, None, n) for n in range(500)]
    asked: list[int] = []
    with (
        RestClient("https://localhost:9", ca_file=certificates / "ca.pem") as client,
        pytest.raises(CommunicationError),
    ):
        for outcome in Downloads(client, "/f", tmp_path).run(many, 4):
            asked.append(outcome.wanted.note)
    assert asked == [0, 1, 2, 3]
