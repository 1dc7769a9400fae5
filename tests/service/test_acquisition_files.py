"""What people see of single files and decide about them: lists, counts, timelines, retry, skip, process again."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.common.paths import display
from dm.station.acquisition import amends, listing
from dm.station.acquisition.amends import Choice
from dm.station.acquisition.explain import explain
from dm.station.acquisition.exporting import exported
from dm.station.acquisition.filewait import wait_for_file
from dm.station.acquisition.keeping import Keeping
from dm.station.acquisition.listing import Query, listed_files
from dm.station.acquisition.office import Office
from dm.station.acquisition.plugins.base import Order, Plugin, PluginBatch, PluginContext
from dm.station.acquisition.timeline import timeline
from dm.station.acquisition.transports.base import NoSettings
from dm.station.acquisition.whereabouts import Wanted
from tests.service.acquisition_fixtures import (
    PRINCIPAL,
    STATION,
    Site,
    finish,
    retried,
    running_office,
    tree,
    until,
)

WHO = PRINCIPAL.username


class Watching(Plugin):
    """Notes the key of every file it sees; fails those it is told to."""

    def __init__(self, name: str, order: Order) -> None:
        super().__init__(NoSettings(), PluginContext(STATION, "", ""))
        self.name = name
        self.__dict__["order"] = order
        self.keys: list[tuple[bytes, str, int]] = []
        self.failing: dict[bytes, tuple[str, bool]] = {}
        self.known: dict[bytes, dict[str, Any]] = {}

    def process(self, batch: PluginBatch) -> None:
        for file in batch.files:
            if file.path in self.failing:
                file.fail(*self.failing[file.path])
            else:
                self.keys.append((file.path, file.key, file.run))
                self.known[file.path] = {"experimentFilePath": display(file.path)}

    def look_up(self, experiment: dict[str, Any], root: str, path: bytes) -> dict[str, Any] | None:
        return self.known.get(path, {}) if self.name == "catalog" else None


@pytest.fixture(scope="module")
def plugins() -> dict[str, Watching]:
    return {"catalog": Watching("catalog", Order.CATALOG), "last": Watching("last", Order.LAST)}


@pytest.fixture(scope="module")
def office(site: Site, new_mongo_database: Callable[[], str], plugins: dict[str, Watching]) -> Iterator[Office]:
    with running_office(site, new_mongo_database(), list(plugins.values())) as found:
        yield found


@pytest.fixture(autouse=True)
def _plugins_work(plugins: dict[str, Watching]) -> None:
    for plugin in plugins.values():
        plugin.failing.clear()
        plugin.keys.clear()


@pytest.fixture
def experiment(site: Site, request: pytest.FixtureRequest) -> dict[str, Any]:
    return site.experiment(f"f{abs(hash(request.node.name)) % 10**8}")


def start(office: Office, kind: str, experiment: dict[str, Any], source: Path, **keys: Any) -> str:
    return str(office.start(kind, PRINCIPAL, experiment["name"], str(source), keys)["id"])


def uploaded(office: Office, experiment: dict[str, Any], source: Path, **keys: Any) -> dict[str, Any]:
    return finish(office, "upload", start(office, "upload", experiment, source, **keys))


def states(office: Office, task: str) -> dict[str, str]:
    return {row["path"]: row["state"] for row in listed_files(office, task, None, 0, 1000)}


def told(office: Office, **wanted: str) -> dict[str, Any]:
    return explain(office, PRINCIPAL, Wanted(**wanted), lambda _document: True)


def skipped(office: Office, kind: str, task: str, reason: str = "", **choice: Any) -> int:
    chosen = Choice(WHO, **choice)
    return office.decide(kind, task, PRINCIPAL, lambda found: amends.skip(found, office.pipeline, chosen, reason))


def reprocessed(office: Office, kind: str, task: str, names: list[str], **choice: Any) -> int:
    chosen = Choice(WHO, **choice)
    return office.decide(kind, task, PRINCIPAL, lambda found: amends.reprocess(found, chosen, names))


@pytest.fixture
def conflict(office: Office, experiment: dict[str, Any], tmp_path: Path) -> tuple[str, Path]:
    """An upload that has ended with a file which storage refused, and its directory."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, content in ((first, b"1"), (second, b"2")):
        directory.mkdir()
        (directory / "same").write_bytes(content)
    for number in range(5):
        (second / f"own{number}").write_bytes(b"own")
    assert uploaded(office, experiment, first)["status"] == "done"
    record = uploaded(office, experiment, second)
    assert (record["status"], record["nProcessingErrors"], record["nCompletedFiles"]) == ("failed", 1, 5)
    return record["id"], second


def test_a_failed_file_of_an_upload_that_has_ended_is_tried_again(
    office: Office, experiment: dict[str, Any], conflict: tuple[str, Path], plugins: dict[str, Watching]
) -> None:
    upload, _source = conflict
    seen = len(plugins["last"].keys)
    assert retried(office, "upload", upload) == 1
    record = finish(office, "upload", upload)
    assert (record["status"], record["nProcessingErrors"], record["nCompletedFiles"]) == ("failed", 1, 5)
    row = listing.one_file(office, upload, b"same")
    assert row is not None and [event["event"] for event in row["history"]].count("retried") == 1
    assert any(WHO in event["text"] for event in row["history"])
    assert len(plugins["last"].keys) == seen  # the others were left in peace
    (Path(experiment["dataDirectory"]) / "same").unlink()
    assert retried(office, "upload", upload) == 1
    record = finish(office, "upload", upload)
    assert (record["status"], record["nProcessingErrors"], record["nCompletedFiles"]) == ("done", 0, 6)
    assert record["errorMessage"] == "" and record["percentageComplete"] == 100
    assert (Path(experiment["dataDirectory"]) / "same").read_bytes() == b"2"
    assert retried(office, "upload", upload) == 0
    finish(office, "upload", upload)
    with pytest.raises(ObjectNotFound, match="does not exist"):
        retried(office, "upload", "no-such-upload")


def test_a_source_file_that_changed_meanwhile_is_taken_as_it_is_now(
    office: Office, experiment: dict[str, Any], conflict: tuple[str, Path]
) -> None:
    upload, source = conflict
    (Path(experiment["dataDirectory"]) / "same").unlink()
    (source / "same").write_bytes(b"mended")
    (source / "not seen then").write_bytes(b"and not looked for now")
    assert retried(office, "upload", upload) == 1
    record = finish(office, "upload", upload)
    assert (record["status"], record["countFiles"], record["nCompletedFiles"]) == ("done", 6, 6)
    assert (Path(experiment["dataDirectory"]) / "same").read_bytes() == b"mended"
    row = listing.one_file(office, upload, b"same")
    assert row is not None and (row["state"], row["size"]) == ("done", 6)


def test_files_are_left_out_with_who_and_why(
    office: Office, experiment: dict[str, Any], conflict: tuple[str, Path]
) -> None:
    upload, _source = conflict
    with pytest.raises(InvalidArgument, match="give a path, a pattern, or a state"):
        skipped(office, "upload", upload)
    finish(office, "upload", upload)
    assert skipped(office, "upload", upload, "the first is right", path=b"same") == 1
    record = finish(office, "upload", upload)
    assert (record["status"], record["nProcessingErrors"], record["nSkippedFiles"]) == ("done", 0, 1)
    assert record["countFiles"] == record["nCompletedFiles"] + record["nSkippedFiles"] == 6
    row = listing.one_file(office, upload, b"same")
    assert row is not None and (row["state"], row["skippedBy"]) == ("skipped", WHO)
    assert row["lastError"] == f"Left out by {WHO}: the first is right"
    assert told(office, id=upload, path="same")["reason"] == "skippedByPerson"
    with pytest.raises(InvalidObjectState, match="in storage already"):
        skipped(office, "upload", upload, path=b"own1")
    finish(office, "upload", upload)
    choice = Choice(WHO, state="skipped")
    again = office.decide("upload", upload, PRINCIPAL, lambda task: amends.retry(task, office.pipeline, choice))
    assert again == 1
    assert finish(office, "upload", upload)["nProcessingErrors"] == 1


def test_a_file_left_out_before_it_is_written_is_never_taken(
    office: Office, experiment: dict[str, Any], tmp_path: Path
) -> None:
    daq = start(office, "daq", experiment, tmp_path)
    until(lambda: office.info("daq", daq)["status"] == "running")
    assert skipped(office, "daq", daq, path=b"secret") == 1
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "open").write_bytes(b"o")
    until(lambda: office.info("daq", daq)["nCompletedFiles"] == 1)
    (tmp_path / "secret").write_bytes(b"secret, again")
    office.stop("daq", daq, abort=False)
    record = finish(office, "daq", daq)
    assert states(office, daq) == {"secret": "skipped", "open": "done"}
    assert record["status"] == "done" and tree(experiment["dataDirectory"]).keys() == {b"open"}


def test_plugins_see_files_once_more_under_another_key(
    office: Office, experiment: dict[str, Any], tmp_path: Path, plugins: dict[str, Watching]
) -> None:
    for number in range(250):
        (tmp_path / f"f{number:03}").write_bytes(b"%d" % number)
    upload = uploaded(office, experiment, tmp_path)["id"]
    first = dict.fromkeys(plugins["last"].keys)
    assert len(first) == 250 and {run for _path, _key, run in first} == {0}
    before = listing.one_file(office, upload, b"f007")
    assert reprocessed(office, "upload", upload, ["last"]) == 250
    record = finish(office, "upload", upload)
    assert (record["status"], record["nCompletedFiles"], record["completedBytes"]) == (
        "done",
        250,
        record["countBytes"],
    )
    second = plugins["last"].keys[250:]
    assert len(second) == 250 and {run for _path, _key, run in second} == {1}
    assert {key for _path, key, _run in second}.isdisjoint(key for _path, key, _run in first)
    assert len(plugins["catalog"].keys) == 250
    assert reprocessed(office, "upload", upload, [], pattern="f00?") == 10
    finish(office, "upload", upload)
    assert len(plugins["catalog"].keys) == 260 and plugins["last"].keys[-1][2] == 2
    after = listing.one_file(office, upload, b"f007")
    assert before is not None and after is not None
    assert after["times"]["stored"] == before["times"]["stored"] and after["digests"] == before["digests"]
    assert [event["event"] for event in after["history"]] == ["reprocessed", "reprocessed"]
    with pytest.raises(InvalidArgument, match="'nonsense' is no plugin of this upload"):
        reprocessed(office, "upload", upload, ["nonsense"])
    finish(office, "upload", upload)


def test_a_decision_survives_a_restart(
    site: Site, new_mongo_database: Callable[[], str], experiment: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped in the middle of processing again, with a plugin that does not work, then continued."""
    url = new_mongo_database()
    plugin = Watching("last", Order.LAST)
    for number in range(300):
        (tmp_path / f"f{number:03}").write_bytes(b"%d" % number)
    with running_office(site, url, [plugin], batch_files=20) as office:
        upload = uploaded(office, experiment, tmp_path)["id"]
        plugin.failing = {b"f%03d" % number: ("not now", True) for number in range(300)}
        assert reprocessed(office, "upload", upload, ["last"]) == 300
        until(lambda: listing.counts(office, upload)["stored"] == 300)
        assert office.info("upload", upload)["status"] in ("running", "finalizing")
    plugin = Watching("last", Order.LAST)
    with running_office(site, url, [plugin], batch_files=20) as office:
        record = finish(office, "upload", upload)
        assert (record["status"], record["nCompletedFiles"]) == ("done", 300)
        assert len(plugin.keys) == 300 and {run for _path, _key, run in plugin.keys} == {1}


def test_what_was_done_stays_so_when_processing_again_is_stopped(
    office: Office, experiment: dict[str, Any], tmp_path: Path, plugins: dict[str, Watching]
) -> None:
    for number in range(5):
        (tmp_path / f"f{number}").write_bytes(b"1")
    upload = uploaded(office, experiment, tmp_path)["id"]
    plugins["last"].failing = {b"f%d" % number: ("not now", True) for number in range(5)}
    assert reprocessed(office, "upload", upload, ["last"]) == 5
    until(lambda: listing.counts(office, upload)["stored"] == 5)
    office.stop("upload", upload, abort=True)
    record = finish(office, "upload", upload)
    assert (record["status"], record["nCompletedFiles"], record["nSkippedFiles"]) == ("aborted", 5, 0)
    row = listing.one_file(office, upload, b"f1")
    assert row is not None and (row["state"], row["lastError"], row["pendingPlugins"]) == ("done", "", [])


def test_many_decisions_at_once(office: Office, experiment: dict[str, Any], conflict: tuple[str, Path]) -> None:
    upload, _source = conflict
    counts: list[int] = []
    problems: list[Exception] = []

    def one() -> None:
        try:
            counts.append(retried(office, "upload", upload))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and 1 <= sum(counts) <= 8
    record = finish(office, "upload", upload)
    assert (record["countFiles"], record["nCompletedFiles"], record["nProcessingErrors"]) == (6, 5, 1)
    until(lambda: not [claim for claim in office.store.claims() if claim["task"] == upload])  # given back after the end


# --- lists ----------------------------------------------------------------------------------------------------------


def test_lists_by_pattern_time_and_position(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run1").mkdir()
    for name in ("a.h5", "b.txt", "run1/a.h5", "run1/c.h5"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "loop").symlink_to(".")
    upload = uploaded(office, experiment, tmp_path)["id"]

    def paths(**query: Any) -> list[str]:
        found = listed_files(office, upload, None, 0, 100, Query(**query))
        return sorted(row["path"] for row in found)

    assert paths() == ["a.h5", "b.txt", "loop", "run1/a.h5", "run1/c.h5"]
    assert paths(pattern="*.h5") == ["a.h5", "run1/a.h5", "run1/c.h5"]
    assert paths(pattern="run1/*") == ["run1/a.h5", "run1/c.h5"]
    assert paths(pattern="a.*", state="done") == ["a.h5", "run1/a.h5"]
    assert paths(since=time.time() + 5) == [] and len(paths(since=time.time() - 60)) == 5
    assert paths(state="skipped") == ["loop"] and paths(state="moving") == paths(state="settling") == []
    with pytest.raises(InvalidArgument, match="'lost' is unknown"):
        Query("lost")
    pages: list[str] = []
    after = None
    while page := listed_files(office, upload, None, 0, 2, Query(pattern="*"), after):
        pages += [row["path"] for row in page]
        after = page[-1]["position"]
    assert sorted(pages) == paths()
    whole = [row["path"] for row in listed_files(office, upload, None, 0, 100)]
    assert [row["path"] for row in listed_files(office, upload, None, 1, 2)] == whole[1:3]
    assert [row["path"] for row in listed_files(office, upload, None, 1, 2, Query(pattern="*"))] == whole[1:3]
    assert listing.counts(office, upload) == {
        "countFiles": 5, "seen": 0, "settling": 0, "ready": 0, "moving": 0, "stored": 0, "done": 4, "failed": 0,
        "skipped": 1, "vanished": 0,
    }  # fmt: skip


def test_counts_add_up_while_it_runs(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / f"f{number}").write_bytes(b"1")
    upload = start(office, "upload", experiment, tmp_path)
    while office.info("upload", upload)["status"] not in ("done", "failed"):
        counts = listing.counts(office, upload)
        total = counts.pop("countFiles")
        assert total == sum(counts.values()) - counts["seen"] - counts["settling"]
        assert total <= 600 and min(counts.values()) >= 0
        time.sleep(0.02)
    assert listing.counts(office, upload)["done"] == 600
    found = list(listing.once_each(office, upload, Query()))
    assert len({row["path"] for row in found}) == len(found) == 600


def test_the_timeline_of_a_file(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    upload = uploaded(office, experiment, tmp_path)["id"]
    row = listing.one_file(office, upload, b"f")
    assert row is not None
    events = timeline(row)
    assert [event["event"] for event in events] == ["ready", "moved", "stored", "done"]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert all(event["timestamp"] and event["text"] for event in events)
    assert listing.one_file(office, upload, b"g") is None


def test_exports_are_whole_and_harmless(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    names = [b"=cmd|'calc'!A0", b"+1", b"-1", b"@x", b"plain", b"new\nline", b'quo"te', b"\xff"]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(name)
    upload = uploaded(office, experiment, tmp_path)["id"]
    records = list(listing.once_each(office, upload, Query()))
    rows = list(csv.DictReader(io.StringIO(b"".join(exported(records, "csv")).decode(), newline="")))
    assert len(rows) == len(names) and {row["state"] for row in rows} == {"done"}
    assert not [row["path"] for row in rows if row["path"].startswith(("=", "+", "-", "@"))]
    assert {"'=cmd|'calc'!A0", "'+1", "'-1", "'@x", "plain", "new\nline", 'quo"te', "\\xff"} == {
        row["path"] for row in rows
    }
    lines = [json.loads(line) for line in b"".join(exported(records, "jsonl")).splitlines()]
    assert {os.fsencode(line["path"]) for line in lines} == set(names)
    with pytest.raises(InvalidArgument, match="'xml' is unknown"):
        exported([], "xml")


# --- where is my file -----------------------------------------------------------------------------------------------


def test_explanations_of_a_running_daq(
    office: Office, experiment: dict[str, Any], tmp_path: Path, plugins: dict[str, Watching]
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    daq = start(
        office, "daq", experiment, tmp_path, destDirectory="raw", excludeFileExtensions="txt", filePathPattern="*[!~]"
    )
    until(lambda: office.info("daq", daq)["status"] == "running")
    plugins["last"].failing = {b"raw/waits": ("processing is down", True), b"raw/fails": ("no such thing", False)}
    for name in ("done", "waits", "fails", "notes.txt", ".hidden", "x~"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link").symlink_to("done")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "sub").mkdir()
    (tmp_path / "way").symlink_to("sub")
    until(lambda: states(office, daq).get("fails") == "failed" and states(office, daq).get("waits") == "stored")
    until(lambda: states(office, daq).get("fifo") == "skipped" and states(office, daq).get("done") == "done")
    expected = {
        "done": ("done", "It is there: 'data/raw/done'"),
        "waits": ("pluginWaiting", "what remains is: last. The last try failed: Plugin last: processing is down"),
        "fails": ("pluginFailed", "Plugin last: no such thing"),
        "notes.txt": ("filtered", "excludeFileExtensions 'txt'"),
        "x~": ("filtered", "filePathPattern"),
        ".hidden": ("hidden", "processHiddenFiles"),
        "link": ("skipped", "symbolic link"),
        "fifo": ("skipped", "no regular file"),
        "way/x": ("notWatched", "link"),
        "nothing": ("missing", "There is no file 'nothing'"),
        "sub": ("notAFile", "a directory"),
        "old": ("before", "processExistingFiles"),
    }
    for path, (reason, words) in expected.items():
        answer = told(office, id=daq, path=path)
        assert (answer["reason"], words in answer["explanation"]) == (reason, True), answer
        assert answer["explanation"].endswith(".") and "\n" not in answer["explanation"]
    for wanted in (
        {"id": daq, "path": "done"},
        {"experiment_name": experiment["name"], "path": "raw/done"},
        {"source_path": f"{tmp_path}/done"},
        {"source_path": f"{tmp_path}/done", "experiment_name": experiment["name"]},
    ):
        answer = told(office, **wanted)
        assert (answer["reason"], answer["daqId"], answer["path"]) == ("done", daq, "done")
        assert answer["storage"]["readyForProcessing"] is True and answer["ledger"]["version"] == 1
        assert answer["records"] == {"catalog": {"experimentFilePath": "raw/done"}}
        assert answer["experimentFilePath"] == "raw/done" and answer["source"]["exists"] is True
    plugins["catalog"].known.pop(b"raw/done")
    assert told(office, id=daq, path="done")["reason"] == "notRecorded"
    (Path(experiment["dataDirectory"]) / "raw" / "done").unlink()
    assert told(office, id=daq, path="done")["reason"] == "goneFromStorage"
    plugins["last"].failing.clear()
    office.stop("daq", daq, abort=False)
    finish(office, "daq", daq)
    (tmp_path / "late").write_bytes(b"late")
    assert told(office, id=daq, path="late")["reason"] == "ended"
    assert told(office, id=daq, path="old")["reason"] == "before"
    (tmp_path / "waits").write_bytes(b"changed since")
    answer = told(office, id=daq, path="waits")
    assert answer["reason"] == "changedSince" and "upload its directory" in answer["explanation"]


def test_explanations_across_tasks(office: Office, experiment: dict[str, Any], conflict: tuple[str, Path]) -> None:
    upload, source = conflict
    answer = told(office, id=upload, path="same")
    assert answer["reason"] == "refusedByStorage" and "already exists" in answer["explanation"]
    later = start(office, "daq", experiment, source, processExistingFiles=True)
    until(lambda: office.info("daq", later)["status"] == "running")
    until(lambda: states(office, later).get("same") == "failed")
    answer = told(office, id=later, path="own1")
    assert answer["reason"] == "takenBefore" and f"upload {upload}" in answer["explanation"]
    office.stop("daq", later, abort=False)
    finish(office, "daq", later)
    assert told(office, source_path="/no/such/place")["reason"] == "notWatched"
    stranger = told(office, experiment_name=experiment["name"], path="never/there")
    assert stranger["reason"] in ("missing", "ended")
    with pytest.raises(ObjectNotFound, match="does not exist"):
        told(office, id="none", path="x")
    hidden = explain(office, PRINCIPAL, Wanted(source_path=f"{source}/same"), lambda _document: False)
    assert hidden["reason"] == "notWatched" and "source" not in hidden
    for wanted in ({}, {"id": "a"}, {"path": "a"}, {"id": "a", "experiment_name": "b", "path": "c"}):
        with pytest.raises(InvalidArgument, match="Say which file"):
            Wanted(**wanted)
    with pytest.raises(InvalidArgument, match="leaves the experiment"):
        Wanted(id="a", path="../b")


# --- forgetting -----------------------------------------------------------------------------------------------------


def test_what_ended_long_ago_is_forgotten_and_nothing_else(
    office: Office, experiment: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("old", "new", "running"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"1")
    old = uploaded(office, experiment, tmp_path / "old", destDirectory="old")["id"]
    new = uploaded(office, experiment, tmp_path / "new", destDirectory="new")["id"]
    daq = start(office, "daq", experiment, tmp_path / "running", destDirectory="running", processExistingFiles=True)
    until(lambda: office.info("daq", daq)["nCompletedFiles"] == 1)
    ages = {"order": f"upload:{1:020d}", "endTime": 10.0}
    office.store.set_task(old, ages)
    office.store.set_task(daq, {**ages, "order": f"daq:{1:020d}"})  # it began long ago and still runs
    keeping = Keeping(office, 30)
    assert keeping.prune() == 1
    with pytest.raises(ObjectNotFound, match="does not exist"):
        office.info("upload", old)
    assert old not in [record["id"] for record in office.records("upload", cleared=True)]
    store = office.store
    assert not store.page(old, 0, 10) and not store.journal_of(old) and store.task(old) is None
    assert states(office, new) == {"f": "done"} and states(office, daq) == {"f": "done"}
    assert (Path(experiment["dataDirectory"]) / "old" / "f").exists()
    assert keeping.prune() == 0 and office.retire(daq) is False
    office.stop("daq", daq, abort=False)
    assert finish(office, "daq", daq)["status"] == "done"
    assert office.retire(new) is True  # half forgotten: nobody sees or reopens it
    with pytest.raises(ObjectNotFound, match="does not exist"):
        retried(office, "upload", new)
    assert told(office, source_path=f"{tmp_path}/new/f")["reason"] == "notWatched"


# --- waiting --------------------------------------------------------------------------------------------------------


def test_who_waits_for_a_file_is_woken(
    office: Office, experiment: dict[str, Any], tmp_path: Path, plugins: dict[str, Watching]
) -> None:
    answers: dict[str, dict[str, Any]] = {}

    def wait(name: str, until_state: str, seconds: float = 30) -> None:
        wanted = Wanted(experiment_name=experiment["name"], path=name)
        answers[f"{name} {until_state}"] = wait_for_file(office, wanted, lambda _document: True, until_state, seconds)

    plugins["last"].failing = {b"slow": ("later", True), b"bad": ("never", False)}
    waits = [("quick", "done"), ("slow", "cataloged"), ("slow", "stored"), ("bad", "done"), ("bad", "cataloged")]
    threads = [threading.Thread(target=wait, args=each) for each in waits]
    for thread in threads:
        thread.start()
    daq = start(office, "daq", experiment, tmp_path)
    until(lambda: office.info("daq", daq)["status"] == "running")
    for name in ("quick", "slow", "bad"):
        (tmp_path / name).write_bytes(name.encode())
    for thread in threads:
        thread.join(60)
    assert answers["quick done"]["reached"] and answers["quick done"]["daqId"] == daq
    assert answers["slow cataloged"]["reached"] and answers["slow stored"]["reached"]
    assert (
        not answers["bad done"]["reached"] and answers["bad done"]["over"] and answers["bad done"]["state"] == "failed"
    )
    assert answers["bad cataloged"]["reached"]
    wait("slow", "done", 0.3)
    assert not answers["slow done"]["reached"] and not answers["slow done"]["over"]
    with pytest.raises(InvalidArgument, match="'eaten'"):
        wait("slow", "eaten")
    plugins["last"].failing.clear()
    office.stop("daq", daq, abort=False)
    finish(office, "daq", daq)
    wait("none", "done")
    assert answers["none done"]["over"] and answers["none done"]["state"] == "unknown"


def test_waiting_requests_are_bounded(
    site: Site, new_mongo_database: Callable[[], str], experiment: dict[str, Any], tmp_path: Path
) -> None:
    with running_office(site, new_mongo_database(), threads=4) as office:
        daq = start(office, "daq", experiment, tmp_path)
        until(lambda: office.info("daq", daq)["status"] == "running")
        threads = [threading.Thread(target=lambda: office.info("daq", daq, 30)) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: office.waits.free == 0)
        assert office.info("daq", daq, 30)["status"] == "running"  # answered, as there was no place to wait
        wanted = Wanted(id=daq, path="x")
        assert wait_for_file(office, wanted, lambda _document: True, "done", 30)["state"] == "unknown"
        office.stop("daq", daq, abort=False)
        finish(office, "daq", daq)
        for thread in threads:
            thread.join(30)
        assert office.waits.free == 4
