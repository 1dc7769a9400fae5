"""Completion rules in a running DAQ: what is taken when, and what is said of what is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import pytest

from dm.common.errors import InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.station.acquisition.listing import listed_files
from dm.station.acquisition.office import Office
from dm.station.acquisition.telling import complete
from tests.service.acquisition_fixtures import PRINCIPAL, Site, finish, running_office, tree, until


def start(office: Office, name: str, source: Path, kind: str = "daq", **keys: Any) -> str:
    task = str(office.start(kind, PRINCIPAL, name, str(source), keys)["id"])
    until(lambda: office.info(kind, task)["status"] != "pending")
    return task


def stopped(office: Office, task: str) -> dict[str, Any]:
    office.stop("daq", task, abort=False)
    return finish(office, "daq", task, 90)


def rows(office: Office, task: str) -> dict[str, dict[str, Any]]:
    """Return path -> ledger record."""
    return {row["path"]: row for row in listed_files(office, task, None, 0, 1000)}


def waiting(office: Office, task: str) -> dict[str, str]:
    """Return path -> what a file that is not whole waits for."""
    return {os.fsdecode(one.path): one.why for one in office.live[task].waiting()}


def completed(office: Office, task: str) -> int:
    return int(office.info("daq", task)["nCompletedFiles"])


def test_the_rule_that_fired_is_on_the_row(site: Site, database: str, tmp_path: Path) -> None:
    site.experiment("fired")
    (tmp_path / "found").write_bytes(b"1")
    with running_office(site, database) as office:
        task = start(office, "fired", tmp_path, processExistingFiles=True)
        (tmp_path / "closed").write_bytes(b"1")
        until(lambda: completed(office, task) == 2)
        assert {path: row["rule"] for path, row in rows(office, task).items()} == {
            "found": "settled",
            "closed": "closed",
        }
        assert stopped(office, task)["status"] == "done"


def test_markers(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("markers")
    with running_office(site, database, finalize_seconds=1) as office:
        task = start(office, "markers", tmp_path, completionRule="marker", includeFileExtensions="h5")
        for name in ("a.h5", "b.h5"):
            (tmp_path / name).write_bytes(name.encode())
        until(lambda: len(waiting(office, task)) == 2)
        assert waiting(office, task)["a.h5"] == "it waits for its marker 'a.h5.done'"
        assert office.info("daq", task)["nSettlingFiles"] == 2
        (tmp_path / "a.h5.done").touch()  # not a name the DAQ takes, and noticed all the same
        until(lambda: completed(office, task) == 1)
        record = stopped(office, task)
        assert (record["status"], record["nCompletedFiles"], record["nProcessingErrors"]) == ("failed", 1, 1)
        found = rows(office, task)
        assert (found["a.h5"]["rule"], found["a.h5"]["state"]) == ("marker", "done")
        assert (found["b.h5"]["state"], found["b.h5"]["size"]) == ("failed", 4)
        assert found["b.h5"]["lastError"] == (
            "Not taken: 1 s after the end of the DAQ the file was not whole by the rule 'marker'; "
            "it waits for its marker 'b.h5.done'."
        )
        # Nothing is lost for good: the marker comes, and an upload brings what is missing.
        (tmp_path / "b.h5.done").touch()
        upload = start(office, "markers", tmp_path, "upload", completionRule="marker")
        assert finish(office, "upload", upload)["nCompletedFiles"] == 1
    assert set(tree(experiment["dataDirectory"])) == {b"a.h5", b"b.h5"}


def test_one_marker_for_a_directory_of_files(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("directorymarker")
    with running_office(site, database, scan_seconds=3600) as office:
        task = start(
            office, "directorymarker", tmp_path, completionRule="marker", completionArgs={"marker": ".complete"}
        )
        for scan in ("scan1", "scan2"):
            (tmp_path / scan).mkdir()
            for number in range(20):
                (tmp_path / scan / f"f{number}").write_bytes(b"%d" % number)
        until(lambda: len(waiting(office, task)) == 40)
        (tmp_path / "scan1" / ".complete").touch()
        until(lambda: completed(office, task) == 20)
        (tmp_path / "scan2" / ".complete").touch()
        until(lambda: completed(office, task) == 40)
        assert stopped(office, task)["status"] == "done"
    assert len(tree(experiment["dataDirectory"])) == 40


def test_final_names(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("finalnames")
    with running_office(site, database) as office:
        task = start(
            office, "finalnames", tmp_path, completionRule="renamed", completionArgs="final:*.h5 temporary:tmp_*"
        )
        for number in range(30):
            (tmp_path / f"{number}.writing").write_bytes(b"%d" % number)
            (tmp_path / f"tmp_{number}.h5").write_bytes(b"half")
            (tmp_path / f"{number}.writing").rename(tmp_path / f"{number}.h5")
        (tmp_path / "late.writing").write_bytes(b"half")
        record = stopped(office, task)
        # What never got its final name is no file of the DAQ: neither taken nor an error.
        assert (record["status"], record["countFiles"], record["nCompletedFiles"]) == ("done", 30, 30)
        assert {row["rule"] for row in rows(office, task).values()} == {"renamed"}
    assert set(tree(experiment["dataDirectory"])) == {b"%d.h5" % number for number in range(30)}


_WRITER = """
import sys, h5py
path, kind = sys.argv[1:]
file = h5py.File(path, "w", libver="latest" if kind == "swmr" else None)
data = file.create_dataset("data", (0,), maxshape=(None,), chunks=(16,), dtype="i8")
if kind == "swmr":
    file.swmr_mode = True
data.resize((100,)); data[:] = 7
file.flush()
print("open", flush=True)
sys.stdin.readline()
data.resize((200,)); data[:] = 8
file.close()
"""


@pytest.mark.parametrize("kind", ["swmr", "plain"])
def test_hdf5_files_that_are_still_open_are_not_taken(
    site: Site, database: str, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = site.experiment(f"hdf5{kind}")
    # Its writer runs as another account would: no lease tells that it is open.
    monkeypatch.setattr("dm.station.acquisition.rules.settle.unwritten", lambda _path, _stamp: None)
    with running_office(site, database) as office:
        task = start(office, f"hdf5{kind}", tmp_path, completionRule="hdf5", completionArgs={"requires": "/data"})
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "open.h5"), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert writer.stdin is not None and writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"open\n"
            until(lambda: "does not open as HDF5" in waiting(office, task).get("open.h5", ""))
            with h5py.File(tmp_path / "whole.h5", "w") as file:
                file["data"] = [1, 2, 3]
            (tmp_path / "notes.txt").write_text("no HDF5")
            until(lambda: completed(office, task) == 2)
            assert "open.h5" in waiting(office, task)
        finally:
            writer.communicate(b"\n", timeout=20)
        until(lambda: completed(office, task) == 3)
        assert {path: row["rule"] for path, row in rows(office, task).items()} == {
            "whole.h5": "hdf5",
            "notes.txt": "closed",
            "open.h5": "hdf5",
        }
        assert stopped(office, task)["status"] == "done"
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_damaged_hdf5_files_are_told(site: Site, database: str, tmp_path: Path) -> None:
    site.experiment("hdf5damaged")
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file["data"] = range(10_000)
    whole = (tmp_path / "good.h5").read_bytes()
    (tmp_path / "truncated.h5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.h5").write_bytes(b"")
    (tmp_path / "other.h5").write_bytes(b"no HDF5 at all")
    (tmp_path / "hostile.h5").write_bytes(whole[:64] + os.urandom(4000) + whole[4064:])
    with h5py.File(tmp_path / "incomplete.h5", "w") as file:
        file["elsewhere"] = 1
    with running_office(site, database, finalize_seconds=1) as office:
        keys = {"completionRule": "hdf5", "completionArgs": {"requires": "/data"}, "processExistingFiles": True}
        task = start(office, "hdf5damaged", tmp_path, **keys)
        until(lambda: completed(office, task) == 1)
        names = ("truncated.h5", "empty.h5", "other.h5", "incomplete.h5")
        until(lambda: sum("does not open" in waiting(office, task).get(name, "") for name in names) == 4)
        record = stopped(office, task)
        assert (record["status"], record["nCompletedFiles"]) == ("failed", 1)
        errors = {path: row["lastError"] for path, row in rows(office, task).items() if row["state"] == "failed"}
        assert "truncated" in errors["truncated.h5"]
        assert "no HDF5 signature" in errors["other.h5"] and "no HDF5 signature" in errors["empty.h5"]
        assert "/data is missing in it" in errors["incomplete.h5"]


def test_several_rules(site: Site, database: str, tmp_path: Path) -> None:
    site.experiment("several")
    with running_office(site, database, finalize_seconds=1) as office:
        task = start(office, "several", tmp_path, completionRule="marker+hdf5,message")
        for name in ("a.h5", "b.h5"):
            with h5py.File(tmp_path / name, "w") as file:
                file["data"] = 1
        (tmp_path / "c.h5").write_bytes(b"no HDF5")
        for name in ("a.h5.done", "c.h5.done"):
            (tmp_path / name).touch()
        until(lambda: completed(office, task) == 1)
        assert complete(office, task, ["b.h5"], 20)["count"] == 1
        until(lambda: completed(office, task) == 2)
        assert {path: row["rule"] for path, row in rows(office, task).items()} == {
            "a.h5": "marker+hdf5",
            "b.h5": "message",
        }
        until(lambda: "does not open" in waiting(office, task).get("c.h5", ""))
        assert stopped(office, task)["nProcessingErrors"] == 1


def test_messages_of_the_writer(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("messages")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"1")
    with running_office(site, database, finalize_seconds=1) as office:
        task = start(office, "messages", tmp_path, completionRule="message", excludeFileExtensions="log")
        (tmp_path / "scan").mkdir()
        for name in ("a", "scan/b", "scan/c", "d.log", "late"):
            (tmp_path / name).write_bytes(b"1")
        (tmp_path / "link").symlink_to(outside)
        os.mkfifo(tmp_path / "fifo")
        until(lambda: {"a", "scan/b", "scan/c", "late"} <= set(waiting(office, task)))
        answer = complete(office, task, ["a", "gone", "link/secret", "d.log", "fifo"], 20)
        assert answer == {"count": 1, "missing": ["gone", "link/secret"], "ignored": ["d.log", "fifo"], "pending": []}
        assert complete(office, task, [f"{tmp_path}/scan/"], 20)["count"] == 2
        assert complete(office, task, ["a", "scan/b"], 20)["count"] == 2  # saying it again is no harm
        until(lambda: completed(office, task) == 3)
        assert {row["rule"] for row in rows(office, task).values() if row["state"] == "done"} == {"message"}
        for bad in ("../x", "/etc/passwd", "a\0b"):
            with pytest.raises(InvalidArgument):
                complete(office, task, [bad], 1)
        with pytest.raises(ObjectNotFound):
            complete(office, "none", ["a"], 1)
        record = stopped(office, task)
        assert (record["nCompletedFiles"], record["nProcessingErrors"]) == (3, 1)
        assert "message of its writer" in rows(office, task)["late"]["lastError"]
        with pytest.raises(InvalidObjectState, match="while it runs"):
            complete(office, task, ["late"], 1)
    assert set(tree(experiment["dataDirectory"])) == {b"a", b"scan/b", b"scan/c"}


def test_a_message_is_answered_when_the_ledger_has_the_file(site: Site, database: str, tmp_path: Path) -> None:
    """Also while nothing can be moved; and after a restart nobody has to say it again."""
    experiment = site.experiment("toldonce")
    with running_office(site, database) as office:
        task = start(office, "toldonce", tmp_path, completionRule="message")
        for number in range(50):
            (tmp_path / f"f{number}").write_bytes(b"%d" % number)
        site.stop()
        try:
            assert complete(office, task, ["."], 20)["count"] == 50
        except BaseException:
            site.start()
            raise
    site.start()
    with running_office(site, database) as office:
        until(lambda: completed(office, task) == 50)
        assert stopped(office, task)["status"] == "done"
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_a_file_is_taken_again_with_a_new_version(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("versions")
    with running_office(site, database) as office:
        task = start(office, "versions", tmp_path)
        for version in (1, 2, 3):
            (tmp_path / "a").write_bytes(b"x" * version)
            until(lambda wanted=version: rows(office, task).get("a", {}).get("version") == wanted)
        until(lambda: completed(office, task) == 1)
        assert stopped(office, task)["countFiles"] == 1
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_a_writer_that_appends_for_a_long_time(site: Site, database: str, tmp_path: Path) -> None:
    """Opening, appending and closing again and again: nothing is taken before it rests, with the rule for that."""
    experiment = site.experiment("appending")
    ended = threading.Event()

    def append() -> None:
        while not ended.is_set():
            with (tmp_path / "log.dat").open("ab") as file:
                file.write(os.urandom(1 << 16))
            time.sleep(0.02)

    with running_office(site, database) as office:
        task = start(office, "appending", tmp_path, completionRule="stable", completionArgs="seconds:0.5")
        writer = threading.Thread(target=append)
        writer.start()
        try:
            until(lambda: "log.dat" in waiting(office, task))
            time.sleep(2)
            assert rows(office, task) == {}
        finally:
            ended.set()
            writer.join()
        until(lambda: completed(office, task) == 1)
        [row] = rows(office, task).values()
        assert (row["version"], row["rule"]) == (1, "stable")
        assert stopped(office, task)["status"] == "done"
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


@pytest.mark.parametrize("mtime", [0, 1, 2**31, 4_000_000_000])
def test_times_that_cannot_be_hold_nobody(site: Site, database: str, tmp_path: Path, mtime: int) -> None:
    site.experiment(f"times{mtime}")
    with running_office(site, database) as office:
        task = start(office, f"times{mtime}", tmp_path)
        path = tmp_path / "a"
        path.write_bytes(b"1")
        os.utime(path, (mtime, mtime))
        until(lambda: rows(office, task).get("a", {}).get("mtimeNs") == mtime * 10**9 and completed(office, task) == 1)
        assert stopped(office, task)["status"] == "done"


def test_what_cannot_be_is_refused_at_the_start(site: Site, database: str, tmp_path: Path) -> None:
    site.experiment("refused")
    with running_office(site, database) as office:
        for keys, said in (
            ({"completionRule": "clsed"}, "no completion rule here"),
            ({"completionRule": "os:system"}, "no completion rule here"),
            ({"completionRule": "renamed"}, "give final or temporary"),
            ({"completionArgs": "seconds:1"}, "'seconds'"),
            ({"completionRule": "stable", "completionArgs": "seconds"}, "key:value"),
            ({"watchMethod": "magic"}, "watchMethod"),
        ):
            with pytest.raises(InvalidArgument, match=said):
                start(office, "refused", tmp_path, **keys)
        assert office.list("daq") == []


def test_the_rule_of_the_station(site: Site, database: str, tmp_path: Path) -> None:
    site.experiment("station")
    tables = {"marker": {"marker": "{stem}.ok"}}
    with running_office(site, database, completion_rule="marker", completion=tables) as office:
        task = start(office, "station", tmp_path)
        (tmp_path / "a.h5").write_bytes(b"1")
        (tmp_path / "a.ok").touch()
        until(lambda: completed(office, task) == 1)
        own = tmp_path / "own"
        own.mkdir()
        (own / "b").write_bytes(b"1")
        other = start(office, "station", own, completionRule="closed", destDirectory="own", processExistingFiles=True)
        until(lambda: completed(office, other) == 1)
        # An upload is of files that are whole; the station's rule is for DAQs.
        upload = start(office, "station", own, "upload", destDirectory="upload")
        assert finish(office, "upload", upload)["nCompletedFiles"] == 1
        for daq in (task, other):
            stopped(office, daq)


def test_a_rule_that_is_taken_out_of_the_settings(site: Site, database: str, tmp_path: Path) -> None:
    """What runs with it is kept, says so, and goes on when the rule is back."""
    site.experiment("outtaken")
    tables = {"special": {"class": "dm.station.acquisition.rules.marker:Marker"}}
    with running_office(site, database, completion=tables) as office:
        task = start(office, "outtaken", tmp_path, completionRule="special")
        (tmp_path / "a").write_bytes(b"1")
        until(lambda: "a" in waiting(office, task))
    (tmp_path / "a.done").touch()
    with running_office(site, database) as office:
        record = office.info("daq", task)
        assert record["status"] == "running"
        assert "cannot be resumed" in record["errorMessage"] and "'special'" in record["errorMessage"]
    with running_office(site, database, completion=tables) as office:
        until(lambda: completed(office, task) == 1)
        assert rows(office, task)["a"]["rule"] == "marker"
        assert stopped(office, task)["status"] == "done"
