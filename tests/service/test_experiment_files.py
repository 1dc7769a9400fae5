"""Files of an experiment are compressed, decompressed and deleted; records and manifest follow, whatever dies."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from dm.common import paths
from dm.common.errors import (
    AuthorizationError,
    InvalidArgument,
    InvalidObjectState,
    ObjectAlreadyExists,
    ObjectNotFound,
)
from dm.site.storage import experiment_store
from dm.site.storage.api import Experiment
from dm.site.storage.file_changes import COMPRESS, _text
from dm.site.storage.operations import Progress
from tests.service import storage_fixtures as fx
from tests.service.experiment_fixtures import CONTENTS, STEPS, Deaths, deaths_of, filled, finished, named

BETA = xxhash.xxh3_128_hexdigest(b"beta")
READERS: dict[str, Any] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
def made(site: fx.Site) -> Experiment:
    return filled(site, named(), usernameList=[fx.ALICE])


def lines(record: Experiment) -> list[dict[str, Any]]:
    manifest = Path(record["systemDirectory"], "manifest")
    return [json.loads(line) for file in sorted(manifest.glob("*")) for line in file.read_text().splitlines()]


def appeared(files: Any, *where: str) -> Any:
    """Ask as the station GUI does until it is there, and then until its record has followed."""
    deadline = time.monotonic() + 30
    while True:
        try:
            if (record := files.statFile(*where))["readyForProcessing"]:
                return record
        except ObjectNotFound:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_compressed_and_decompressed_again(site: fx.Site, made: Experiment, name: str) -> None:
    api, files, data = site.experiments(fx.MANAGER), site.files(fx.MANAGER), Path(made["dataDirectory"])
    before = files.statFile("run1/b", made["name"], fx.STATION)
    files.compressFile("run1/b", made["name"], fx.STATION, name)
    record = appeared(files, f"run1/b.{name}", made["name"], fx.STATION)
    assert record["readyForProcessing"] and record["id"] == before["id"] and record["version"] == 2
    assert (record["compression"], record["contentSize"], record["contentDigests"]) == (name, 4, {"xxh3_128": BETA})
    assert record["fileModificationTime"] == before["fileModificationTime"]
    packed = data / f"run1/b.{name}"
    assert READERS[name](packed).read() == b"beta" and packed.stat().st_mode & 0o7777 == 0o640
    assert record["digests"] == {"xxh3_128": xxhash.xxh3_128_hexdigest(packed.read_bytes())}
    assert files.statFile("run1/b", made["name"], name, True)["fileName"] == f"b.{name}"  # as apstools asks
    with pytest.raises(ObjectNotFound):
        files.statFile("run1/b", made["name"], fx.STATION)
    assert {one["experimentFilePath"] for one in files.getFiles(made["name"], fx.STATION)} == {
        "a", f"run1/b.{name}", "run1/deep/c",
    }  # fmt: skip
    with pytest.raises(InvalidObjectState, match="compressed already"):
        files.compressFile(f"run1/b.{name}", made["name"], fx.STATION)
    finished(api, files.decompressFile("run1/b", made["name"], fx.STATION, name))
    back = files.statFile("run1/b", made["name"], fx.STATION)
    assert back["readyForProcessing"] and "contentSize" not in back and back["compression"] == ""
    assert back["digests"] == before["digests"] and (data / "run1/b").read_bytes() == b"beta"
    assert sorted(path.name for path in (data / "run1").iterdir()) == ["b", "deep"]
    told = [(line["event"], line.get("path")) for line in lines(made)][-6:]
    assert told == [
        ("file", f"run1/b.{name}"), ("committed", None), ("deleted", "run1/b"),
        ("file", "run1/b"), ("committed", None), ("deleted", f"run1/b.{name}"),
    ]  # fmt: skip


def test_what_cannot_be_compressed_stays(site: fx.Site, made: Experiment) -> None:
    api, files, data = site.experiments(fx.MANAGER), site.files(fx.MANAGER), Path(made["dataDirectory"])
    where = made["name"], fx.STATION
    (data / "unknown").write_bytes(b"x")
    for path in ("unknown", "nothing"):
        with pytest.raises(ObjectNotFound):
            files.compressFile(path, *where)
    with pytest.raises(InvalidArgument, match="cannot be made here"):
        files.compressFile("a", *where, "zst")
    with pytest.raises(InvalidObjectState, match="not compressed"):
        files.decompressFile("a", *where)
    (data / "a.gz").write_bytes(b"somebody's")
    with pytest.raises(ObjectAlreadyExists, match="exists"):
        files.compressFile("a", *where)
    (data / "a.gz").unlink()
    status = (data / "a").stat()
    (data / "a").write_bytes(b"alphA")
    os.utime(data / "a", ns=(status.st_mtime_ns, status.st_mtime_ns))  # rot that size and time do not show
    operation = finished(api, files.compressFile("a", *where), "failed")
    assert "damaged" in operation["errorMessage"] and (data / "a").read_bytes() == b"alphA"
    (data / "a").write_bytes(b"rewritten")
    operation = finished(api, files.compressFile("a", *where), "failed")
    assert "no longer the one" in operation["errorMessage"]
    assert not list(data.rglob(".dm-*")) and not (data / "a.gz").exists()
    with pytest.raises(AuthorizationError):
        site.files(fx.ALICE).compressFile("run1/b", *where)
    with pytest.raises(ObjectNotFound):
        site.files(fx.STRANGER).compressFile("run1/b", *where)
    api.updateExperiment(made["id"], dataDirectoryFrozen=True)
    for attempt in (files.compressFile, files.deleteFile):
        with pytest.raises(InvalidObjectState, match="frozen"):
            attempt("run1/b", *where)


def test_files_are_deleted_from_disk_records_and_the_manifest(site: fx.Site, made: Experiment) -> None:
    files, data = site.files(fx.MANAGER), Path(made["dataDirectory"])
    where = made["name"], fx.STATION
    odd = b"run1/\xff '$(id)\n"
    Path(os.fsdecode(os.fsencode(data) + b"/" + odd)).write_bytes(b"x")
    for user, error in (
        (fx.ALICE, AuthorizationError),
        (fx.STRANGER, ObjectNotFound),
        (fx.OTHER_MANAGER, ObjectNotFound),
    ):
        with pytest.raises(error):
            site.files(user).deleteFiles(["a"], *where)
    operation = files.deleteFiles(["a", "run1"], *where)
    assert operation["status"] == "failed" and "nothing was deleted" in operation["errorMessage"]
    assert (data / "a").exists()
    for bad in (["../system/experiment.json"], ["/etc/passwd"], [], ["x"] * 1001):
        with pytest.raises(InvalidArgument):
            files.deleteFiles(bad, *where)
    operation = files.deleteFiles([paths.decode(odd), "run1/b", "never-there"], *where)
    assert (operation["status"], operation["countFiles"], operation["countMissing"]) == ("done", 2, 1)
    assert sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()) == ["a", "run1/deep/c"]
    assert {one["experimentFilePath"] for one in files.getFiles(*where)} == {"a", "run1/deep/c"}
    told = {line["path"] for line in lines(made) if line["event"] == "deleted"}
    assert told == {paths.decode(odd), "run1/b"}
    assert files.deleteFile("a", *where)["countFiles"] == 1
    with pytest.raises(ObjectNotFound):
        files.deleteFile("a", *where)
    outcome = fx.publish(
        site.station(), site.station(fx.MANAGER).addGrant(*where[:1], "daq", fx.STATION), {"run1/b": b"again"}
    )
    assert (outcome["run1/b"]["status"], outcome["run1/b"]["version"]) == ("stored", 1)


@pytest.fixture
def deaths(site: fx.Site) -> Iterator[Deaths]:
    with deaths_of(site) as running:
        yield running


@pytest.mark.parametrize("step", STEPS)
def test_kill_9_while_files_change(site: fx.Site, made: Experiment, deaths: Deaths, step: int) -> None:
    number, data = made["id"], Path(made["dataDirectory"])
    files = site.files(fx.MANAGER)

    def there(path: str) -> bool:
        """Whether it is, in all respects, that one; else it must be the other."""
        other = "run1/b" if path.endswith("gz") else "run1/b.gz"
        if not (data / path).exists():
            path, other = other, path
        content = gzip.decompress((data / path).read_bytes()) if path.endswith("gz") else (data / path).read_bytes()
        assert content == b"beta" and not (data / other).exists() and not list(data.rglob(".dm-*"))
        assert files.statFile(path, made["name"], fx.STATION)["readyForProcessing"]
        known = {one["experimentFilePath"] for one in files.getFiles(made["name"], fx.STATION)}
        assert known == {"a", path, "run1/deep/c"}
        return other == ("run1/b" if path.endswith("gz") else "run1/b.gz")

    def plain() -> dict[str, Any]:
        if not (data / "run1/b").exists():
            assert deaths.do("decompress", number=number, path="run1/b.gz") == 0
        return {}

    def packed() -> dict[str, Any]:
        if not (data / "run1/b.gz").exists():
            assert deaths.do("compress", number=number, path="run1/b") == 0
        return {}

    is_packed = lambda: there("run1/b.gz") and (data / "run1/b.gz").exists()  # noqa: E731
    is_plain = lambda: there("run1/b") and (data / "run1/b").exists()  # noqa: E731
    assert deaths.rounds(step, "compress", plain, is_packed, number=number, path="run1/b") > 5
    assert deaths.rounds(step, "decompress", packed, is_plain, number=number, path="run1/b.gz") > 5

    def gone() -> bool:
        left = {one["experimentFilePath"] for one in files.getFiles(made["name"], fx.STATION)}
        on_disk = {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}
        assert left == on_disk
        return not left

    def all_there() -> dict[str, Any]:
        missing = {path: content for path, content in CONTENTS.items() if not (data / path).exists()}
        if missing:
            grant = site.station(fx.MANAGER).addGrant(made["name"], "daq", fx.STATION)
            fx.publish(site.station(), grant, missing)
            site.station().deleteGrant(grant["id"])
        return {}

    assert deaths.rounds(step, "delete_files", all_there, gone, number=number, paths=list(CONTENTS)) > 5


def test_what_somebody_writes_while_a_file_is_compressed_stays(site: fx.Site, made: Experiment) -> None:
    changes, store, directory = site.service.use_cases.life.files, site.service.store, Path(made["dataDirectory"])
    with store.transaction() as connection:
        experiment = experiment_store.by_id(connection, made["id"])
    assert experiment is not None

    def begun() -> Any:
        details = {"root": "data", "source": _text(b"run1/b"), "target": _text(b"run1/b.gz"), "compression": "gz"}
        row: Any = {**experiment, "id": number, "name": COMPRESS, "experiment_id": made["id"], "details": details}
        return changes._repack(row, Progress(store, number, threading.Event()))

    number, file = str(uuid.uuid4()), directory / "run1/b"
    kept = file.stat().st_mtime_ns
    finish = begun()
    file.write_bytes(b"written meanwhile")
    with pytest.raises(InvalidObjectState, match="no longer the one"), store.transaction() as connection:
        finish(connection)
    assert file.read_bytes() == b"written meanwhile"
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["b", "deep"]

    file.write_bytes(b"beta")
    os.utime(file, ns=(kept, kept))
    finish = begun()
    with pytest.raises(ZeroDivisionError), store.transaction() as connection:
        finish(connection)
        raise ZeroDivisionError  # as a crash: the files are changed, the records are not
    file.write_bytes(b"written anew")
    finish = begun()
    with store.transaction() as connection:
        finish(connection)
    assert file.read_bytes() == b"written anew" and READERS["gz"](directory / "run1/b.gz").read() == b"beta"
    assert site.files(fx.MANAGER).statFile("run1/b.gz", made["name"], fx.STATION)["readyForProcessing"]
