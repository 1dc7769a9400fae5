"""Moments at which something else happens: databases that lose or refuse, threads that cross, people who stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dm.common.errors import ServiceUnavailable
from dm.site.database.store import Store as StorageDatabase
from dm.station.acquisition.after import After
from dm.station.acquisition.amends import Choice, feed, retry, skip
from dm.station.acquisition.batch import Batch
from dm.station.acquisition.completion import Rule
from dm.station.acquisition.life import Means
from dm.station.acquisition.office import Office
from dm.station.acquisition.pipeline import Pipeline
from dm.station.acquisition.plugins.base import Plugin, PluginBatch, PluginOptions
from dm.station.acquisition.resume import resume
from dm.station.acquisition.rows import Item, State, path_key
from dm.station.acquisition.runner import Runner
from dm.station.acquisition.store import Document
from dm.station.acquisition.task import Task
from dm.station.acquisition.transports.base import FileOutcome, FileStamp, NoSettings, Source, TransferBatch
from dm.station.acquisition.transports.local import Local, LocalSettings
from tests.service.acquisition_fixtures import PRINCIPAL, Site, finish, running_office, tree, until
from tests.service.plugin_fixtures import context

STAMP = FileStamp(1, 1)


class Unlucky(Local):
    """While files are moved, something may happen to their batch."""

    happens: Callable[[str], None] | None = None

    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        outcomes = super().move(batch)
        happens, self.happens = self.happens, None
        if happens is not None:
            happens(batch.batch_id)
        return outcomes


class Directory(Plugin):
    """Sees a directory as a whole; its service is away."""

    name = "directory"
    once_per_directory = True
    calls = 0

    def __init__(self) -> None:
        super().__init__(NoSettings(), context())
        self.placing = PluginOptions()

    def process(self, batch: PluginBatch) -> None:
        if batch.directory_mode:
            self.calls += 1
            raise ServiceUnavailable("The cluster does not answer.")


@pytest.fixture(scope="module")
def transport() -> Unlucky:
    return Unlucky(LocalSettings())


@pytest.fixture(scope="module")
def plugin() -> Directory:
    return Directory()


@pytest.fixture(scope="module")
def office(
    site: Site, transport: Unlucky, plugin: Directory, new_mongo_database: Callable[[], str]
) -> Iterator[Office]:
    with running_office(site, new_mongo_database(), [plugin], [transport]) as found:
        yield found


@pytest.fixture
def experiment(site: Site, request: pytest.FixtureRequest) -> dict[str, Any]:
    return site.experiment(f"r{abs(hash(request.node.name)) % 10**8}")


@pytest.fixture
def task(office: Office, experiment: dict[str, Any], tmp_path: Path) -> Task:
    """One that has ended, so that nobody works on it but the test."""
    (tmp_path / "empty").mkdir()
    record = finish(office, "upload", begin(office, "upload", experiment, tmp_path / "empty"))
    document = office.store.task(str(record["id"]))
    assert document is not None
    return office._task({**document, "open": True, "status": "running"})


def begin(office: Office, kind: str, experiment: dict[str, Any], source: Path, **keys: Any) -> str:
    return str(office.start(kind, PRINCIPAL, experiment["name"], str(source), keys)["id"])


def taken(task: Task, *names: bytes) -> list[Item]:
    return task.ledger.ready([(name, STAMP, Rule.SETTLED) for name in names])


def ask(site: Site, statement: str, **values: Any) -> None:
    database = StorageDatabase(site.settings.database_url)
    with database.transaction() as connection:
        connection.execute(text(statement), values)
    database.close()


def test_a_batch_that_storage_lost_while_it_was_moved_travels_again(
    office: Office, site: Site, transport: Unlucky, experiment: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    transport.happens = lambda batch: ask(site, "DELETE FROM batches WHERE id = CAST(:id AS uuid)", id=batch)
    record = finish(office, "upload", begin(office, "upload", experiment, tmp_path))
    assert record["status"] == "done", record["errorMessage"]
    assert transport.happens is None
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_a_frozen_directory_is_waited_for_in_peace(
    office: Office, site: Site, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    freeze = "UPDATE experiments SET data_directory_frozen = :frozen WHERE id = :id"
    ask(site, freeze, frozen=True, id=experiment["id"])
    opened: list[str] = []
    real = office.carry.site.open_batch

    def noting(batch: str, **keys: Any) -> Any:
        opened.append(batch)
        return real(batch, **keys)

    monkeypatch.setattr(office.carry.site, "open_batch", noting)
    upload = begin(office, "upload", experiment, tmp_path)
    until(lambda: len(opened) >= 5)
    assert len(set(opened)) == 1  # one that waits longer and longer, not a new one at once
    assert "frozen" in office.info("upload", upload)["errorMessage"]
    ask(site, freeze, frozen=False, id=experiment["id"])
    assert finish(office, "upload", upload)["status"] == "done"


def test_files_left_waiting_while_others_are_fed_are_not_forgotten(
    office: Office, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(office.pipeline.settings)
    after = After(office.store, pipeline, pipeline.settings, office.parts.site)
    items = taken(task, b"a")
    task.ledger.finish([(items[0], State.STORED, {"pendingPlugins": ["directory"]})])
    batch = Batch.of(task, items)
    task.busy.add(path_key(b"a"))
    task.unfed = True
    real = task.store.rows_in

    def reading(*arguments: Any) -> list[Document]:
        rows = real(*arguments)
        if batch.loads:
            after._park(batch)
        return rows

    monkeypatch.setattr(task.store, "rows_in", reading)
    feed(task, pipeline)
    assert not task.end()
    feed(task, pipeline)
    feed(task, pipeline)
    assert [load.item.path for found in task.batches.values() for load in found.loads] == [b"a"]
    assert not task.unfed


def test_a_file_that_is_done_while_the_queue_is_filled_does_not_travel_again(
    office: Office, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(office.pipeline.settings)
    items = taken(task, b"a", b"b")
    task.busy.add(path_key(b"a"))
    task.spilled = True
    real = task.ledger.refill

    def reading(limit: int) -> list[Item]:
        found = real(limit)
        task.ledger.finish([(items[0], State.DONE, {})])
        with pipeline.condition:
            task.leave(items[0])
        return found

    monkeypatch.setattr(task.ledger, "refill", reading)
    pipeline.refill(task)
    assert [item.path for item in task.queue] == [b"b"]


def test_after_a_restart_a_file_travels_in_one_batch(
    office: Office, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(office.pipeline.settings)
    items = taken(task, b"a", b"b", b"c")
    first, second, over = Batch.of(task, items[:2]), Batch.of(task, items[:1]), Batch.of(task, items[2:])
    for batch in (first, second, over):  # a failed in the first and was given to the second
        task.store.add_batch(batch.document())
    task.ledger.finish([(items[2], State.DONE, {})])
    real = task.store.drop_batch

    def refused(_batch: str) -> None:
        monkeypatch.setattr(task.store, "drop_batch", real)
        raise ServiceUnavailable("The database does not answer.")

    monkeypatch.setattr(task.store, "drop_batch", refused)
    with pytest.raises(ServiceUnavailable):
        resume(task, pipeline)
    resume(task, pipeline)
    resting = [entry[2] for entry in pipeline._resting]
    assert sorted(batch.id for batch in resting) == sorted(task.batches) == sorted([first.id, second.id])
    assert sorted(load.item.path for batch in resting for load in batch.loads) == [b"a", b"b"]
    assert [load.item.path for load in task.batches[second.id].loads] == [b"a"]
    assert not task.queue


def test_a_stop_is_heard_while_a_directory_waits_for_its_plugin(
    office: Office, plugin: Directory, experiment: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    upload = begin(office, "upload", experiment, tmp_path, processingMode="directory")
    until(lambda: plugin.calls)
    office.stop("upload", upload, abort=True)
    assert finish(office, "upload", upload)["status"] == "aborted"
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


def test_what_has_ended_is_not_stopped_afterwards(task: Task) -> None:
    task.set(status="done", open=False)
    task.set(status="aborting", abortRequested=True)
    document = task.store.task(task.id)
    assert document is not None
    assert document["status"] == task.status == "done"


def test_the_upload_after_a_daq_comes_although_the_database_refused_it_once(
    office: Office, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw", "rest"):
        (tmp_path / name).mkdir()
    (tmp_path / "rest" / "notes").write_bytes(b"n")
    daq = begin(
        office, "daq", experiment, tmp_path / "raw",
        uploadDataDirectoryOnExit=str(tmp_path / "rest"), uploadDestDirectoryOnExit="notes",
    )  # fmt: skip
    real = office.store.claim

    def refused(_key: str, _task: str) -> str:
        monkeypatch.setattr(office.store, "claim", real)
        raise ServiceUnavailable("The database does not answer.")

    monkeypatch.setattr(office.store, "claim", refused)
    office.stop("daq", daq, abort=False)
    assert finish(office, "daq", daq)["status"] == "done"
    [followed] = [row for row in office.list("upload") if row["experimentName"] == experiment["name"]]
    assert finish(office, "upload", followed["id"])["status"] == "done"
    assert tree(experiment["dataDirectory"]).keys() == {b"notes/notes"}


def test_a_start_that_the_database_refused_leaves_nothing_behind(
    office: Office, experiment: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = office.store.claim

    def refused(_key: str, _task: str) -> str:
        monkeypatch.setattr(office.store, "claim", real)
        raise ServiceUnavailable("The database does not answer.")

    monkeypatch.setattr(office.store, "claim", refused)
    with pytest.raises(ServiceUnavailable):
        begin(office, "upload", experiment, tmp_path)
    assert [row for row in office.list("upload") if row["experimentName"] == experiment["name"]] == []
    assert finish(office, "upload", begin(office, "upload", experiment, tmp_path))["status"] == "done"


def test_nothing_moves_any_more_once_a_stop_is_carried_out(office: Office, task: Task) -> None:
    pipeline = Pipeline(office.pipeline.settings)
    runner = Runner(task, Means(pipeline, pipeline.settings, office.closing, lambda _task: None))
    pipeline.attach(task)
    pipeline.adopt(Batch.of(task, taken(task, b"a")))
    task.halt("It cannot go on.")
    task.orders = 1  # somebody's decision is being carried out
    assert not runner._wind_down(time.monotonic())
    task.orders = 0
    assert runner._wind_down(time.monotonic())
    with pipeline.condition:
        assert not isinstance(pipeline._next(), Batch)
    runner.rule.close()


def test_a_database_that_fails_while_files_are_left_out_takes_none_from_the_queue(
    office: Office, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(office.pipeline.settings)
    pipeline.add(task, taken(task, b"a"))
    task.spilled = True

    def refused(_limit: int) -> list[Item]:
        raise ServiceUnavailable("The database does not answer.")

    monkeypatch.setattr(task.ledger, "refill", refused)
    with pytest.raises(ServiceUnavailable):
        skip(task, pipeline, Choice("d123456", path=b"a"), "")
    assert [item.path for item in task.queue] == [b"a"]


def test_files_taken_up_again_travel_although_the_database_fails_then(
    office: Office, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(office.pipeline.settings)
    with open(task.source.root + b"/a", "wb"):
        pass
    items = taken(task, b"a")
    task.ledger.finish([(items[0], State.SKIPPED, {"skippedBy": "d123456"})])
    task.declined = {path_key(b"a")}

    def refused(*_arguments: Any) -> None:
        raise ServiceUnavailable("The database does not answer.")

    monkeypatch.setattr(task.store, "set_task", refused)
    with pytest.raises(ServiceUnavailable):
        retry(task, pipeline, Choice("d123456", state="skipped"))
    assert [item.path for item in task.queue] == [b"a"]


def test_what_was_stored_does_not_vanish_with_its_source(office: Office, task: Task) -> None:
    task.source = Source("@detector:/data", b"/data", host="detector", scheme="ssh")
    pipeline = Pipeline(office.pipeline.settings)
    runner = Runner(task, Means(pipeline, pipeline.settings, office.closing, lambda _task: None))
    items = taken(task, b"a", b"b")
    task.ledger.finish([(items[0], State.DONE, {})])
    task.inbox.extend([b"a", b"b"])  # both changed on their way, and were removed then
    runner._inbox(0.0)
    runner._final_deadline = 1.0
    runner._wait_for_the_last(2.0)
    assert [(item.path, state) for item, state, _why in runner._skipped] == [(b"b", State.VANISHED)]
    assert not len(runner.tracker)
    runner.rule.close()
