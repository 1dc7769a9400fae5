"""DAQs and uploads from a real directory into a real storage service."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.station.acquisition.listing import listed_files
from dm.station.acquisition.office import Office
from dm.station.acquisition.rows import State
from tests.service.acquisition_fixtures import (
    PRINCIPAL,
    Site,
    finish,
    retried,
    running_office,
    tree,
    until,
)


@pytest.fixture(scope="module")
def office(site: Site, new_mongo_database: Callable[[], str]) -> Iterator[Office]:
    with running_office(site, new_mongo_database()) as found:
        yield found


@pytest.fixture
def experiment(site: Site, request: pytest.FixtureRequest) -> dict[str, Any]:
    return site.experiment(f"e{abs(hash(request.node.name)) % 10**8}")


def start(office: Office, kind: str, experiment: dict[str, Any], source: Path, **keys: Any) -> dict[str, Any]:
    return office.start(kind, PRINCIPAL, experiment["name"], str(source), keys)


def test_an_upload_brings_every_file_with_its_bytes(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for number in range(40):
        (tmp_path / "sub" / "deep" / f"f{number}").write_bytes(os.urandom(number * 1000))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"h")
    upload = start(office, "upload", experiment, tmp_path, sample="gold")
    for key in ("id", "startTimestamp", "errorMessage", "workflowJobOwner", "storageHost", "storageUrl"):
        assert isinstance(upload[key], str)
    assert upload["storageDirectory"] == experiment["storageDirectory"] + "/data"
    record = finish(office, "upload", upload["id"])
    assert record["status"] == "done"
    assert record["countFiles"] == record["nCompletedFiles"] == 41
    assert record["percentageComplete"] == 100
    assert record["sample"] == "gold"
    assert record["endTime"] >= record["startTime"]
    expected = tree(tmp_path)
    del expected[b".hidden"]
    assert tree(experiment["dataDirectory"]) == expected
    again = start(office, "upload", experiment, tmp_path)
    record = finish(office, "upload", again["id"])
    assert (record["status"], record["countFiles"]) == ("done", 0)
    assert "no new files" in record["errorMessage"]
    once_more = finish(office, "upload", start(office, "upload", experiment, tmp_path, reprocessFiles="1")["id"])
    assert once_more["nCompletedFiles"] == 41
    assert [row["id"] for row in office.list("upload")][-3:] == [upload["id"], again["id"], once_more["id"]]


def test_a_corrected_file_is_new(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"wrong")
    (tmp_path / "b").write_bytes(b"right")
    finish(office, "upload", start(office, "upload", experiment, tmp_path)["id"])
    (tmp_path / "a").write_bytes(b"corrected")
    record = finish(office, "upload", start(office, "upload", experiment, tmp_path)["id"])
    assert (record["status"], record["countFiles"]) == ("done", 1)
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)
    [row] = listed_files(office, record["id"], None, 0, 10)
    assert (row["path"], row["state"], row["version"]) == ("a", "done", 2)


def test_a_daq_takes_what_is_new(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "before").write_bytes(b"old")
    (tmp_path / "rewritten").write_bytes(b"old")
    daq = start(office, "daq", experiment, tmp_path, destDirectory="raw/1")
    assert start(office, "daq", experiment, tmp_path)["id"] == daq["id"]
    until(lambda: office.info("daq", daq["id"])["status"] == "running")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a").write_bytes(b"1")
    (tmp_path / "x.tmp").write_bytes(b"2")
    (tmp_path / "x.tmp").rename(tmp_path / "x")
    (tmp_path / "rewritten").write_bytes(b"new")
    until(lambda: office.info("daq", daq["id"])["nCompletedFiles"] == 3)
    (tmp_path / "x").write_bytes(b"2, second edition")
    target = Path(experiment["dataDirectory"]) / "raw" / "1"
    until(lambda: (target / "x").read_bytes() == b"2, second edition")
    for number in range(30):
        (tmp_path / f"last{number}").write_bytes(b"3")
    office.stop("daq", daq["id"], abort=False)
    record = finish(office, "daq", daq["id"])
    assert record["status"] == "done"
    expected = tree(tmp_path)
    del expected[b"before"]
    assert tree(target) == expected
    assert record["countFiles"] == record["nCompletedFiles"] == len(expected)
    assert tree(experiment["dataDirectory"] + "/..").keys() & {b"data/x.tmp", b"data/raw/1/x.tmp"} == set()
    later = start(office, "daq", experiment, tmp_path, processExistingFiles=True, destDirectory="raw/1")
    assert later["id"] != daq["id"]
    office.stop("daq", later["id"], abort=False)
    assert finish(office, "daq", later["id"])["countFiles"] == 1  # only "before": the rest is there


def test_fifty_starts_at_once_are_one(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    for kind in ("daq", "upload"):
        ids: list[str] = []

        def one(kind: str = kind, ids: list[str] = ids) -> None:
            ids.append(start(office, kind, experiment, tmp_path)["id"])

        threads = [threading.Thread(target=one) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == 50
        running = {row["id"] for row in office.list(kind) if row["dataDirectory"] == str(tmp_path)}
        if kind == "daq":
            assert len(set(ids)) == len(running) == 1
            office.stop("daq", ids[0], abort=False)
            finish(office, "daq", ids[0])
        else:
            assert running == set(ids)  # a start after the end of the first is a new one
            for upload in running:
                assert finish(office, "upload", upload)["status"] == "done"


def test_what_cannot_be_started(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    before = (len(office.list("daq")), len(office.list("upload")))
    with pytest.raises(ObjectNotFound, match="does not exist"):
        office.start("daq", PRINCIPAL, "nosuch", str(tmp_path), {})
    with pytest.raises(InvalidArgument, match="missing"):
        start(office, "daq", experiment, tmp_path / "missing")
    with pytest.raises(InvalidArgument, match="file"):
        start(office, "daq", experiment, tmp_path / "file")
    with pytest.raises(InvalidArgument, match="absolute"):
        start(office, "upload", experiment, Path("relative"))
    with pytest.raises(InvalidArgument, match="nothere"):
        start(office, "upload", experiment, tmp_path, skipPlugins="nothere")
    with pytest.raises(InvalidArgument, match="nofile"):
        start(office, "upload", experiment, tmp_path, experimentFilePath="nofile")
    with pytest.raises(InvalidArgument, match="workflow"):
        start(office, "upload", experiment, tmp_path, workflowName="w", workflowOwner="o")
    with pytest.raises(InvalidArgument, match="leaves the experiment"):
        start(office, "upload", experiment, tmp_path, destDirectory="../../other")
    assert (len(office.list("daq")), len(office.list("upload"))) == before


def test_a_single_file_into_analysis(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "qmap.h5").write_bytes(b"map")
    (tmp_path / "other").write_bytes(b"no")
    record = finish(
        office,
        "upload",
        start(
            office,
            "upload",
            experiment,
            tmp_path,
            experimentFilePath="sub/qmap.h5",
            useAnalysisDirectoryAsRoot="true",
            processingMode="Single File",
        )["id"],
    )
    assert (record["status"], record["countFiles"]) == ("done", 1)
    assert record["storageDirectory"] == experiment["analysisDirectory"]
    assert tree(experiment["analysisDirectory"]).keys() == {b"sub/qmap.h5"}
    assert tree(experiment["dataDirectory"]) == {}


def test_other_bytes_at_the_same_place_from_elsewhere_are_refused(
    office: Office, experiment: dict[str, Any], tmp_path: Path
) -> None:
    for name, content in (("one", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same").write_bytes(content)
    assert finish(office, "upload", start(office, "upload", experiment, tmp_path / "one")["id"])["status"] == "done"
    record = finish(office, "upload", start(office, "upload", experiment, tmp_path / "two")["id"])
    assert (record["status"], record["nProcessingErrors"]) == ("failed", 1)
    assert "already exists" in record["errorMessage"]
    assert (Path(experiment["dataDirectory"]) / "same").read_bytes() == b"1"
    assert retried(office, "upload", record["id"]) == 1
    again = finish(office, "upload", record["id"])
    assert (again["status"], again["nProcessingErrors"], again["id"]) == ("failed", 1, record["id"])
    third = start(office, "upload", experiment, tmp_path / "two", onConflict="replace")
    assert finish(office, "upload", third["id"])["status"] == "done"
    assert (Path(experiment["dataDirectory"]) / "same").read_bytes() == b"2"


def test_links_and_special_files_are_skipped_with_a_reason(
    office: Office, experiment: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "shadow").symlink_to("/etc/shadow")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "fifo")
    record = finish(office, "upload", start(office, "upload", experiment, tmp_path)["id"])
    assert record["status"] == "done"
    assert (record["nCompletedFiles"], record["nSkippedFiles"], record["countFiles"]) == (1, 3, 4)
    reasons = {row["path"]: row["lastError"] for row in listed_files(office, record["id"], "skipped", 0, 10)}
    assert set(reasons) == {"shadow", "loop", "fifo"}
    assert "link" in reasons["loop"]
    assert tree(experiment["dataDirectory"]).keys() == {b"file"}


NAMES = [
    b"a b", b"%41", b"#", b"?", b"new\nline", b"'\"", b"$(id)", b";", b"-rf", b"*", b"[x]", b"back\\slash", b"trail ",
    b"co:lon", b"x" * 250, b"\xff\xfe\x80", "e\u0301".encode(), "\u00e9".encode(), "\U0001f600".encode(), b"~", b"\x01",
]  # fmt: skip


def test_names_arrive_byte_exact(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    for name in NAMES:
        directory = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(directory)
        with open(os.path.join(directory, name), "wb") as file:
            file.write(name)
    record = finish(office, "upload", start(office, "upload", experiment, tmp_path)["id"])
    assert record["status"] == "done", record["processingErrors"]
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)
    listed = {os.fsencode(row["path"]) for row in listed_files(office, record["id"], "done", 0, 100)}
    assert listed == {name + b"/" + name for name in NAMES}


def test_source_files_are_removed_only_when_stored(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_bytes(name.encode())
    expected = tree(tmp_path)
    record = finish(office, "upload", start(office, "upload", experiment, tmp_path, removeSourceFiles="1")["id"])
    assert record["status"] == "done"
    assert tree(tmp_path) == {}
    assert tree(experiment["dataDirectory"]) == expected


def test_an_upload_follows_a_daq(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    for name in ("raw", "rest"):
        (tmp_path / name).mkdir()
    (tmp_path / "rest" / "notes").write_bytes(b"n")
    daq = start(
        office, "daq", experiment, tmp_path / "raw",
        uploadDataDirectoryOnExit=str(tmp_path / "rest"), uploadDestDirectoryOnExit="notes", maxRunTimeInHours=1e-4,
    )  # fmt: skip
    (tmp_path / "raw" / "a").write_bytes(b"1")
    assert finish(office, "daq", daq["id"])["status"] == "done"  # ended by its run time
    [followed] = [row for row in office.list("upload") if row["experimentName"] == experiment["name"]]
    assert finish(office, "upload", followed["id"])["status"] == "done"
    assert tree(experiment["dataDirectory"]).keys() == {b"a", b"notes/notes"}


def test_an_upload_can_be_stopped_and_cleared(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"f{number}").write_bytes(b"1")
    upload = start(office, "upload", experiment, tmp_path)
    with pytest.raises(InvalidObjectState, match="stop it first"):
        office.clear("upload", upload["id"])
    until(lambda: office.info("upload", upload["id"])["countFiles"] > 0)
    office.stop("upload", upload["id"], abort=True)
    record = finish(office, "upload", upload["id"])
    assert record["status"] == "aborted"
    assert record["nWaitingFiles"] == 0
    assert record["countFiles"] == record["nCompletedFiles"] + record["nSkippedFiles"]
    assert len(tree(experiment["dataDirectory"])) == record["nCompletedFiles"]
    office.clear("upload", upload["id"])
    with pytest.raises(ObjectNotFound):
        office.info("upload", upload["id"])
    assert upload["id"] not in [row["id"] for row in office.list("upload")]
    assert upload["id"] in [row["id"] for row in office.list("upload", cleared=True)]


def test_a_file_that_grows_is_never_taken_short(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    """Appended to for a while, with pauses longer than the settle time of a closed file."""
    daq = start(office, "daq", experiment, tmp_path)
    target = Path(experiment["dataDirectory"]) / "growing"
    with (tmp_path / "growing").open("ab", buffering=0) as file:
        for _ in range(40):
            file.write(os.urandom(20_000))
            time.sleep(0.02)
            assert not target.exists()
    until(target.exists)
    assert target.read_bytes() == (tmp_path / "growing").read_bytes()
    [row] = until(lambda: listed_files(office, daq["id"], "done", 0, 10))
    assert row["version"] == 1
    office.stop("daq", daq["id"], abort=False)
    finish(office, "daq", daq["id"])


def test_files_that_never_rest_do_not_keep_a_stop_waiting(
    office: Office, experiment: dict[str, Any], tmp_path: Path
) -> None:
    daq = start(office, "daq", experiment, tmp_path)
    ended = threading.Event()

    def write() -> None:
        with (tmp_path / "restless").open("ab", buffering=0) as file:
            while not ended.wait(0.01):
                file.write(b"x" * 100)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        (tmp_path / "quiet").write_bytes(b"1")
        until(lambda: office.info("daq", daq["id"])["nCompletedFiles"] == 1)
        office.stop("daq", daq["id"], abort=False)
        record = finish(office, "daq", daq["id"])
    finally:
        ended.set()
        writer.join()
    assert record["status"] == "failed"
    assert "when unchanged for 0.2 s" in record["errorMessage"]
    assert (record["nCompletedFiles"], record["nProcessingErrors"]) == (1, 1)


def test_a_long_poll_answers_at_the_change(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    daq = start(office, "daq", experiment, tmp_path)
    until(lambda: office.info("daq", daq["id"])["status"] == "running")
    answers: list[str] = []
    waiter = threading.Thread(target=lambda: answers.append(office.info("daq", daq["id"], 30)["status"]))
    waiter.start()
    office.stop("daq", daq["id"], abort=False)
    waiter.join(20)
    assert answers and answers[0] != "running"
    finish(office, "daq", daq["id"])


def test_memory_holds_no_more_than_it_may(
    site: Site, new_mongo_database: Callable[[], str], experiment: dict[str, Any], tmp_path: Path
) -> None:
    """Ready files beyond the limit wait in the database and are all taken."""
    for number in range(700):
        (tmp_path / f"f{number}").write_bytes(b"%d" % number)
    with running_office(site, new_mongo_database(), queue_files=100, batch_files=40) as office:
        upload = start(office, "upload", experiment, tmp_path)
        task = office.live[upload["id"]]
        most = 0
        while task.document["open"]:
            most = max(most, len(task.queue))
            time.sleep(0.005)
        assert finish(office, "upload", upload["id"])["nCompletedFiles"] == 700
        assert most <= 100
        assert task.ledger.count(State.DONE) == 700
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_what_a_task_knew_leaves_memory_at_its_end(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"f{number}").write_bytes(b"1")
    gc.collect()
    gc.disable()  # services look for reference cycles seldom: it must go by itself
    try:
        upload = start(office, "upload", experiment, tmp_path)
        ledger = weakref.ref(office.live[upload["id"]].ledger)
        assert finish(office, "upload", upload["id"])["nCompletedFiles"] == 20
        until(lambda: ledger() is None)
    finally:
        gc.enable()
