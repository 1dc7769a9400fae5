"""From staging to published: verification, conflicts, permissions, what a station may and may not."""

from __future__ import annotations

import json
import os
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common.errors import (
    AuthorizationError,
    InvalidArgument,
    InvalidObjectState,
    InvalidRequest,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceLimit,
)
from dm.common.records import DmObject
from dm.site.storage.api import Experiment, StorageServiceApi, grant_header
from dm.site.storage.manifest import read
from tests.service import storage_fixtures as fx


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site"), batch_max_files=500) as running:
        yield running


@pytest.fixture
def experiment(site: fx.Site) -> Experiment:
    """A new experiment of the manager, with one member."""
    name = f"exp-{uuid.uuid4().hex[:8]}"
    return site.experiments(fx.MANAGER).addExperiment(name, fx.STATION, usernameList=[fx.ALICE])


@pytest.fixture
def station(site: fx.Site) -> StorageServiceApi:
    return site.station()


@pytest.fixture
def grant(site: fx.Site, experiment: Experiment) -> DmObject:
    return site.station(fx.MANAGER).addGrant(experiment["name"], "daq", fx.STATION)


NAMES = [
    "plain.h5", "deep/er/than/that.h5", "with blank", "%41", "a#b?c", "new\nline", "qu'ot\"es", "$(id)", "semi;colon",
    "-rf", "*", "[x]",
    "back\\slash", "trailing ", "co:lon", "x" * 250, "raw-\udcff\udc80", "é", "e\u0301", "\U0001f600",
    "-.h5", ".hidden", "ü/ñ/日本.h5",
]  # fmt: skip


def test_f18_all_names_are_published_byte_exact_private_and_recorded(
    site: fx.Site, experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    contents = {name: f"contents of {number}".encode() for number, name in enumerate(NAMES)}
    old = os.umask(0)
    try:
        outcome = fx.publish(station, grant, contents)
    finally:
        os.umask(old)
    data = Path(experiment["dataDirectory"])
    for name, content in contents.items():
        found = outcome[name]
        assert (found["status"], found["version"], found["size"]) == ("stored", 1, len(content)), found
        path = Path(os.fsdecode(os.fsencode(data) + b"/" + os.fsencode(name)))
        assert path.read_bytes() == content
        status = path.stat()
        assert stat.S_IMODE(status.st_mode) == 0o640
        assert status.st_mtime_ns == 1_700_000_000_123_456_789
    for name, mode in fx.modes(data).items():
        assert mode in (0o640, 0o2750), name
    assert list(Path(experiment["storageDirectory"], ".staging").iterdir()) == []
    lines = list(read(experiment["storageDirectory"]))
    assert {line["path"] for line in lines} == set(contents)
    assert {file["experimentFilePath"] for file in site.files(fx.ALICE).getFiles(experiment["name"])} == set(contents)
    manifest = next(Path(experiment["systemDirectory"], "manifest").iterdir())
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o640


def test_one_bad_file_never_fails_the_others(
    experiment: Experiment, station: StorageServiceApi, grant: DmObject, tmp_path: Path
) -> None:
    batch = str(uuid.uuid4())
    opened = station.openBatch(grant, batch, source="daq-1")
    staging = Path(opened["stagingDirectory"])
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    files = fx.staged(staging, {"good1": b"1", "good2": b"2", "short": b"12345", "damaged": b"abc", "linked": b"l"})
    (staging / "000002").write_bytes(b"123")
    (staging / "000003").write_bytes(b"abX")
    (staging / "hardlinked").hardlink_to(staging / "000004")
    (staging / "symlink").symlink_to(secret)
    (staging / "directory").mkdir()
    os.mkfifo(staging / "fifo")
    (staging / "inner").mkdir()
    (staging / "outward").symlink_to(tmp_path)
    (staging / "empty").write_bytes(b"")
    files += [
        fx.entry("symlink", "symlink", b"secret"),
        fx.entry("directory", "directory", b""),
        fx.entry("fifo", "fifo", b""),
        fx.entry("through-link", "outward/secret", b"secret"),
        fx.entry("never-sent", "nothing", b"x"),
        fx.entry("empty", "empty", b""),
    ]
    station.submitBatch(grant, batch, files)
    outcome = fx.outcome(station, batch)
    assert {path for path, found in outcome.items() if found["status"] == "stored"} == {"good1", "good2", "empty"}
    codes = {path: (found["errorCode"], found["transient"]) for path, found in outcome.items() if "errorCode" in found}
    assert codes == {
        "short": (10, True), "damaged": (10, True), "linked": (8, False), "symlink": (8, False),
        "directory": (8, False), "fifo": (8, False), "through-link": (8, False), "never-sent": (10, True),
    }  # fmt: skip
    assert "xxh3_128 is" in outcome["damaged"]["errorMessage"] and "was sent" in outcome["damaged"]["errorMessage"]
    assert {path.name for path in Path(experiment["dataDirectory"]).iterdir()} == {"good1", "good2", "empty"}
    assert secret.read_bytes() == b"secret" and stat.S_IMODE(secret.stat().st_mode) != 0o640


def test_f24_set_id_bits_and_world_rights_are_dropped_executables_stay(
    experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    batch = str(uuid.uuid4())
    opened = station.openBatch(grant, batch, source="daq-1", root="analysis")
    files = fx.staged(opened["stagingDirectory"], {"tool": b"#!/bin/sh\n", "plain": b"x"}, mode=0o7777)
    files[1]["mode"] = 0o666
    for name in ("000000", "000001"):
        Path(opened["stagingDirectory"], name).chmod(0o6777)
    station.submitBatch(grant, batch, files)
    fx.outcome(station, batch)
    assert fx.modes(Path(experiment["analysisDirectory"])) == {"tool": 0o750, "plain": 0o640}


def test_equal_bytes_are_unchanged_a_rewrite_counts_up_another_source_is_refused(
    site: fx.Site, experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    assert fx.publish(station, grant, {"f": b"one"})["f"]["version"] == 1
    again = fx.publish(station, grant, {"f": b"one"}, source="daq-2")["f"]
    assert (again["status"], again["version"]) == ("unchanged", 1)
    rewritten = fx.publish(station, grant, {"f": b"two"})["f"]
    assert (rewritten["status"], rewritten["version"]) == ("stored", 2)
    refused = fx.publish(station, grant, {"f": b"three", "g": b"new"}, source="daq-2")
    assert (refused["f"]["errorCode"], refused["f"]["transient"]) == (ObjectAlreadyExists.code, False)
    assert refused["g"]["status"] == "stored"
    target = Path(experiment["dataDirectory"], "f")
    assert target.read_bytes() == b"two"
    replaced = fx.publish(station, grant, {"f": b"three"}, source="daq-2", onConflict="replace")["f"]
    assert replaced["version"] == 3 and target.read_bytes() == b"three"
    kept = fx.publish(station, grant, {"f": b"four"}, source="daq-3", onConflict="version")["f"]
    assert kept["version"] == 4 and target.read_bytes() == b"four"
    line = list(read(experiment["storageDirectory"]))[-1]
    assert line["previous"]["version"] == 3
    assert Path(experiment["storageDirectory"], line["kept"]).read_bytes() == b"three"
    assert site.files(fx.ALICE).statFile("f", experiment["name"])["version"] == 4


def test_what_is_in_place_with_other_bytes_than_recorded_is_recorded_anew(
    site: fx.Site, experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    assert fx.publish(station, grant, {"f": b"one"})["f"]["version"] == 1
    Path(experiment["dataDirectory"], "f").write_bytes(b"four")  # as after a crash of the database
    elsewhere = fx.publish(station, grant, {"f": b"four"}, source="daq-2")["f"]
    assert elsewhere["status"] == "unchanged"
    again = fx.publish(station, grant, {"f": b"four"})["f"]
    assert (again["status"], again["version"]) == ("stored", 2)
    record = site.files(fx.ALICE).statFile("f", experiment["name"])
    assert (record["version"], record["fileSize"]) == (2, 4)
    assert fx.publish(station, grant, {"f": b"four"})["f"]["status"] == "unchanged"


def test_files_put_there_by_hand_are_found_not_overwritten(
    experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    data = Path(experiment["dataDirectory"])
    (data / "same").write_bytes(b"same")
    (data / "other").write_bytes(b"mine")
    (data / "directory").mkdir()
    (data / "link").symlink_to("/etc")
    outcome = fx.publish(
        station, grant, {"same": b"same", "other": b"ours", "directory": b"x", "link": b"x", "link/passwd": b"x"}
    )
    assert outcome["same"]["status"] == "unchanged"
    assert outcome["other"]["errorCode"] == 15 and (data / "other").read_bytes() == b"mine"
    assert outcome["directory"]["errorCode"] == outcome["link"]["errorCode"] == InvalidObjectState.code
    assert outcome["link/passwd"]["errorCode"] == InvalidObjectState.code
    assert (data / "link").is_symlink()


@pytest.mark.parametrize("path", ["../exp10/x", "/etc/passwd", "a/../../x", "", ".", "a/..", "x" * 256, "a\0b"])
def test_paths_that_leave_the_experiment_are_refused(station: StorageServiceApi, grant: DmObject, path: str) -> None:
    batch = str(uuid.uuid4())
    station.openBatch(grant, batch, source="daq-1")
    for bad in ({"path": path, "name": "000000"}, {"path": "fine", "name": path}):
        with pytest.raises(InvalidRequest):
            station.submitBatch(grant, batch, [fx.entry(bad["path"], bad["name"], b"x")])
    assert station.getBatch(batch)["state"] == "open"


@pytest.mark.parametrize(
    "change",
    [{"size": -1}, {"size": "1"}, {"size": True}, {"size": 1 << 63}, {"mtimeNs": None}, {"mode": -1}, {"extra": 1},
     {"digests": {"xxh3_128": "XYZ"}}, {"digests": {"crc": "00"}}, {"md5Sum": "0" * 31}, {"sourceUrl": 5},
     {"stagedName": None}],
)  # fmt: skip
def test_entries_that_cannot_be_are_named(
    station: StorageServiceApi, grant: DmObject, change: dict[str, object]
) -> None:
    batch = str(uuid.uuid4())
    station.openBatch(grant, batch, source="daq-1")
    with pytest.raises(InvalidArgument, match="'the/file'"):
        station.submitBatch(grant, batch, [fx.entry("the/file", "000000", b"x") | change])


def test_batches_can_be_repeated_but_not_reused(
    experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    batch = str(uuid.uuid4())
    first = station.openBatch(grant, batch, source="daq-1")
    assert station.openBatch(grant, batch.upper(), source="daq-1") == first
    with pytest.raises(ObjectAlreadyExists):
        station.openBatch(grant, batch, source="daq-2")
    files = fx.staged(first["stagingDirectory"], {"f": b"1"})
    with pytest.raises(InvalidArgument, match="twice"):
        station.submitBatch(grant, batch, files + files)
    with pytest.raises(ServiceLimit, match="501 files"):
        station.submitBatch(grant, batch, [fx.entry(f"f{n}", f"{n}", b"") for n in range(501)])
    station.submitBatch(grant, batch, files)
    outcome = fx.outcome(station, batch)
    again = station.submitBatch(grant, batch, files)
    assert again["state"] == "committed" and again["files"] == list(outcome.values())
    with pytest.raises(InvalidObjectState, match="another list"):
        station.submitBatch(grant, batch, [])
    assert station.deleteBatch(batch)["state"] == "committed"
    assert Path(experiment["dataDirectory"], "f").read_bytes() == b"1"


def test_an_abandoned_batch_is_swept_and_stays_so(station: StorageServiceApi, grant: DmObject) -> None:
    batch = str(uuid.uuid4())
    opened = station.openBatch(grant, batch, source="daq-1")
    files = fx.staged(opened["stagingDirectory"], {"f": b"1"})
    station.deleteBatch(batch)
    assert not Path(opened["stagingDirectory"]).exists()
    for call in (
        lambda: station.openBatch(grant, batch, source="daq-1"),
        lambda: station.submitBatch(grant, batch, files),
    ):
        with pytest.raises(InvalidObjectState, match="abandoned"):
            call()
    assert station.getBatch(batch)["state"] == "abandoned"
    with pytest.raises(ObjectNotFound):
        station.getBatch(str(uuid.uuid4()))
    with pytest.raises(InvalidArgument, match="no UUID"):
        station.getBatch("nonsense")


def test_publishing_takes_a_valid_grant_of_the_own_station(
    site: fx.Site, experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    other = site.experiments(fx.MANAGER).addExperiment(f"other-{uuid.uuid4().hex[:8]}", fx.STATION)
    batch = str(uuid.uuid4())
    body = {"batchId": batch, "experimentId": experiment["id"], "source": "x"}
    client = station.client
    for headers in ({}, {"Dm-Grant": "x"}, {"Dm-Grant": f"{grant['id']}.{'x' * 43}"}):
        with pytest.raises(AuthorizationError, match="rant"):
            client.post("/batches", body, headers=headers)
    with pytest.raises(AuthorizationError, match="another experiment"):
        client.post("/batches", body | {"experimentId": other["id"]}, headers=grant_header(grant))
    with pytest.raises(AuthorizationError):
        site.station(fx.OTHER_SERVICE).openBatch(grant, batch, source="x")
    with pytest.raises(AuthorizationError):
        site.station(fx.MANAGER).openBatch(grant, batch, source="x")
    with pytest.raises(AuthorizationError):
        site.station(fx.ALICE).addGrant(experiment["name"], "upload")
    with pytest.raises(ObjectNotFound, match="does not exist"):
        site.station(fx.STRANGER).addGrant(experiment["name"], "upload")
    opened = station.openBatch(grant, batch, source="x")
    with pytest.raises(ObjectNotFound):
        site.station(fx.OTHER_SERVICE).getBatch(batch)
    with pytest.raises(ObjectNotFound):
        site.station(fx.OTHER_SERVICE).deleteGrant(grant["id"])
    station.deleteGrant(grant["id"])
    station.deleteGrant(grant["id"])
    files = fx.staged(opened["stagingDirectory"], {"f": b"1"})
    with pytest.raises(AuthorizationError, match="does not hold"):
        station.submitBatch(grant, batch, files)


def test_a_grant_ends_with_the_role_of_the_user_behind_it(
    site: fx.Site, experiment: Experiment, station: StorageServiceApi
) -> None:
    admin = site.users(fx.ADMIN)
    admin.addUserStationRole(fx.BOB, "manager", fx.STATION)
    grant = site.station(fx.BOB).addGrant(experiment["name"], "upload", fx.STATION)
    assert grant["username"] == fx.BOB and grant["experimentId"] == experiment["id"]
    assert fx.publish(station, grant, {"f": b"1"})["f"]["status"] == "stored"
    admin.deleteUserStationRole(fx.BOB, "manager", fx.STATION)
    with pytest.raises(AuthorizationError, match="no longer manages"):
        station.openBatch(grant, str(uuid.uuid4()), source="x")


def test_frozen_directories_take_nothing(
    site: fx.Site, experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    assert site.experiments(fx.MANAGER).updateExperiment(experiment["id"], dataDirectoryFrozen=True)[
        "dataDirectoryFrozen"
    ]
    with pytest.raises(InvalidObjectState, match="frozen"):
        station.openBatch(grant, str(uuid.uuid4()), source="x")
    assert fx.publish(station, grant, {"f": b"1"}, root="analysis")["f"]["status"] == "stored"


def test_many_batches_at_once_lose_nothing(
    site: fx.Site, experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    station.client.login()
    results: list[dict[str, dict[str, object]]] = []

    def send(number: int) -> None:
        contents = {f"b{number}/f{n}": os.urandom(1000) for n in range(40)} | {"shared": b"same for all"}
        results.append(fx.publish(station, grant, contents, source=f"daq-{number}"))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = [found["status"] for result in results for found in result.values()]
    assert states.count("stored") == 8 * 40 + 1 and states.count("unchanged") == 7
    records = list(site.files(fx.MANAGER).getFiles(experiment["name"], fx.STATION))
    assert len({record["experimentFilePath"] for record in records}) == len(records) == 8 * 40 + 1
    committed = [
        json.loads(line)
        for path in Path(experiment["systemDirectory"], "manifest").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert sum(line["event"] == "committed" for line in committed) == 8


def test_digest_that_was_not_sent_is_computed(
    site: fx.Site, experiment: Experiment, station: StorageServiceApi, grant: DmObject
) -> None:
    outcome = fx.publish(station, grant, {"f": b"abc"}, extra={"digests": None, "md5Sum": None})["f"]
    assert outcome["md5Sum"] == "900150983cd24fb0d6963f7d28e17f72" and len(outcome["digests"]["xxh3_128"]) == 32
    bad = fx.publish(station, grant, {"g": b"abc"}, extra={"digests": None, "md5Sum": "0" * 32})["g"]
    assert bad["errorCode"] == 10 and "md5" in bad["errorMessage"]
