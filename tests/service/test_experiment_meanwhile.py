"""What happens to an experiment's files while something else is done with them: the newer ones always stay."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Connection, RowMapping, text

from dm.common.errors import DmException, InvalidObjectState, ObjectAlreadyExists, ServiceUnavailable
from dm.site.database.store import OPERATION_LOCK
from dm.site.storage import batch_store, experiment_store, file_store, inspection_store, operation_store, relocation
from dm.site.storage.batches import Signal
from dm.site.storage.directories import ExperimentDirectory, Owner, Owners
from dm.site.storage.experiments import Reference, find
from dm.site.storage.file_changes import COMPRESS, DELETE, _text
from dm.site.storage.inspection_round import LeaseLostError, Round
from dm.site.storage.manifest import read
from dm.site.storage.moving import DISCARD
from dm.site.storage.operations import Finish, Kind, Operations, Progress
from dm.site.storage.pace import Pace
from dm.site.storage.replication import Copied, Replication
from tests.service import storage_fixtures as fx
from tests.service.experiment_fixtures import filled, finished, named, whole


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    archive = tmp_path_factory.mktemp("archive")
    directory = tmp_path_factory.mktemp("site")
    with fx.running_site(postgres_url, certificates, directory, archive_directory=archive) as running:
        yield running


def test_what_is_published_while_files_come_back_stays(tmp_path: Path) -> None:
    kept, there = tmp_path / "archive", tmp_path / "storage"
    (kept / "data").mkdir(parents=True)
    (there / "data").mkdir(parents=True)
    (kept / "data/a").write_bytes(b"old")

    def meanwhile(done: Copied) -> None:
        (there / "data/a").write_bytes(b"new")

    copy = Replication(
        str(kept), str(there), Owner(), known=lambda root, wanted: {}, go_on=meanwhile, only_missing=True
    )
    assert copy.run(["data"]).made == 0
    assert {path.name: path.read_bytes() for path in (there / "data").iterdir()} == {"a": b"new"}


def test_records_of_a_large_directory_are_looked_up_in_parts(tmp_path: Path) -> None:
    (tmp_path / "from/data").mkdir(parents=True)
    (tmp_path / "to").mkdir()
    for number in range(1001):
        (tmp_path / f"from/data/{number:04d}").touch()
    asked: list[int] = []

    def known(root: str, wanted: list[bytes]) -> dict[bytes, RowMapping]:
        asked.append(len(wanted))
        return {}

    copy = Replication(str(tmp_path / "from"), str(tmp_path / "to"), Owner(), known=known, go_on=lambda done: None)
    assert (copy.run(["data"]).made, asked) == (1001, [1000, 1])


def test_links_do_not_keep_files_from_coming_back(site: fx.Site) -> None:
    made, api = filled(site, named()), site.experiments(fx.MANAGER)
    where, data = (made["name"], fx.STATION), Path(made["dataDirectory"])
    (data / "latest").symlink_to("a")
    finished(api, api.archiveExperiment(*where))
    site.files(fx.MANAGER).deleteFiles(["a"], *where)
    finished(api, api.restoreArchivedExperiment(*where))
    assert site.files(fx.MANAGER).statFile("a", *where)["readyForProcessing"]


def test_what_came_back_is_told_of_both_directories(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    made = filled(site, name)
    grant = site.station(fx.MANAGER).addGrant(name, "job", fx.STATION)
    fx.publish(site.station(), grant, {"a": b"result"}, root="analysis")
    site.station().deleteGrant(grant["id"])
    finished(api, api.archiveExperiment(name, fx.STATION))
    for root in ("data", "analysis"):
        site.files(fx.MANAGER).deleteFiles(["a"], name, fx.STATION, root)
    finished(api, api.restoreArchivedExperiment(name, fx.STATION))
    back = [(line["root"], line["path"]) for line in read(made["storageDirectory"]) if line["source"] == "archive"]
    assert sorted(back) == [("analysis", "a"), ("data", "a")]


def test_a_directory_whose_mark_was_cut_short_is_made(tmp_path: Path, site: fx.Site) -> None:
    (tmp_path / "copy/system").mkdir(parents=True)
    (tmp_path / "copy/system/.experiment.json.new").write_bytes(b'{"exp')
    directory = ExperimentDirectory(str(tmp_path / "copy"), Owner())
    directory.make(str(tmp_path), 7, Owners(site.settings))
    assert directory.marker() == {"experimentId": 7}


def test_an_operation_the_database_let_go_of_is_ended_once(site: fx.Site) -> None:
    store, number = site.service.store, filled(site, named())["id"]
    begun, goes_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def carry_out(row: RowMapping, progress: Progress) -> Finish:
        first = not begun.is_set()
        begun.set()
        if first:
            assert goes_on.wait(60)
        return lambda connection: ended.append("first" if first else "second")

    both = [Operations(store, Signal()) for _ in range(2)]
    for one in both:
        one.register("tried", Kind(carry_out, lambda connection, row, error: ended.append("undone")))
    with store.transaction() as connection:
        operation_id = both[0].submit(connection, "tried", number, fx.MANAGER)

    def run() -> None:
        with contextlib.suppress(ServiceUnavailable):
            both[0].run(operation_id)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    with store.transaction() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                " AND classid = :what AND objid = :number"
            ),
            {"what": OPERATION_LOCK, "number": number},
        )
    deadline = time.monotonic() + 30
    while both[1].run(operation_id)["status"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    goes_on.set()
    thread.join(60)
    assert not thread.is_alive() and ended == ["second"]
    with store.transaction() as connection:
        row = operation_store.get(connection, operation_id)
    assert row is not None and (row["status"], row["attempts"]) == ("done", 2)


def test_an_operation_that_cannot_even_fail_keeps_no_other_waiting(site: fx.Site) -> None:
    store, ids, done = site.service.store, list[str](), list[str]()

    def carry_out(row: RowMapping, progress: Progress) -> Finish:
        if row["name"] == "fails":
            raise InvalidObjectState("No.")
        return lambda connection: done.append(row["id"])

    def undo(connection: Connection, row: RowMapping, error: DmException) -> None:
        raise ZeroDivisionError

    operations = Operations(store, Signal())
    for name in ("fails", "works"):
        operations.register(name, Kind(carry_out, undo))
        number = filled(site, named())["id"]
        with store.transaction() as connection:
            ids.append(operations.submit(connection, name, number, fx.MANAGER))
    operations.round()
    assert done == ids[1:]
    with store.transaction() as connection:
        operation_store.end(connection, ids[0])


def begun(site: fx.Site, name: str, number: int, **details: Any) -> tuple[RowMapping, Progress]:
    """Return an operation that was asked for, and whose end is up to the test."""
    operation_id, store = str(uuid.uuid4()), site.service.store
    with store.transaction() as connection:
        values = {"id": operation_id, "name": name, "experiment_id": number, "username": fx.MANAGER}
        operation_store.add(connection, values | {"details": details})
        row = operation_store.get(connection, operation_id)
        operation_store.end(connection, operation_id)  # for everybody else
    assert row is not None
    return row, Progress(store, operation_id, threading.Event())


def anew(site: fx.Site, name: str, contents: dict[str, bytes]) -> None:
    """Publish files a second time."""
    grant = site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
    assert {one["status"] for one in fx.publish(site.station(), grant, contents).values()} == {"stored"}
    site.station().deleteGrant(grant["id"])


def test_what_is_published_anew_before_a_compression_is_done_again_stays(site: fx.Site) -> None:
    made, store, files = filled(site, named()), site.service.store, site.service.use_cases.life.files
    data = Path(made["dataDirectory"])
    details = {"root": "data", "source": _text(b"run1/b"), "target": _text(b"run1/b.gz"), "compression": "gz"}
    row, progress = begun(site, COMPRESS, made["id"], **details)
    finish = files._repack(row, progress)
    with pytest.raises(ZeroDivisionError), store.transaction() as connection:
        finish(connection)
        raise ZeroDivisionError  # as a crash: the files are changed, the records are not
    anew(site, made["name"], {"run1/b": b"measured anew"})
    finish = files._repack(row, progress)
    with pytest.raises(ObjectAlreadyExists), store.transaction() as connection:
        finish(connection)
    assert (data / "run1/b").read_bytes() == b"measured anew"
    assert gzip.decompress((data / "run1/b.gz").read_bytes()) == b"beta" and not list(data.rglob(".dm-*"))
    assert site.files(fx.MANAGER).statFile("run1/b", made["name"], fx.STATION)["readyForProcessing"]


def test_what_is_published_after_its_deletion_was_asked_for_stays(site: fx.Site) -> None:
    made, store, files = filled(site, named()), site.service.store, site.service.use_cases.life.files
    data = Path(made["dataDirectory"])
    row, progress = begun(site, DELETE, made["id"], root="data", paths=[_text(b"a"), _text(b"run1/b")])
    anew(site, made["name"], {"a": b"measured anew"})
    finish = files._delete(row, progress)
    with store.transaction() as connection:
        finish(connection)
        ended = operation_store.get(connection, row["id"])
    assert ended is not None
    assert ended["details"]["shown"] == {"countFiles": 1, "countMissing": 0, "countNewer": 1}
    assert (data / "a").read_bytes() == b"measured anew" and not (data / "run1/b").exists()


def test_files_are_not_deleted_in_what_begins_to_move(site: fx.Site) -> None:
    made, refused = filled(site, named()), threading.Event()

    def ask() -> None:
        with pytest.raises(InvalidObjectState, match="is moving now"):
            site.files(fx.MANAGER).deleteFiles(["a"], made["name"], fx.STATION)
        refused.set()

    thread = threading.Thread(target=ask)
    with site.service.store.transaction() as connection:
        find(connection, Reference(id=made["id"]), lock=True)
        operation_store.set_state(connection, made["id"], "moving")
        thread.start()
        until_waiting(site)
    thread.join(60)
    assert refused.is_set() and Path(made["dataDirectory"], "a").exists()


def test_an_altered_file_does_not_replace_its_archived_copy(site: fx.Site) -> None:
    made, api = filled(site, named()), site.experiments(fx.MANAGER)
    where, data = (made["name"], fx.STATION), Path(made["dataDirectory"])
    finished(api, api.archiveExperiment(*where))
    (data / "a").write_bytes(b"overwritten")
    (data / "notes").write_bytes(b"new")
    assert site.settings.archive_directory is not None
    copy = site.settings.archive_directory / fx.STATION / str(made["id"]) / "data"
    operation = finished(api, api.archiveExperiment(*where), "failed")
    assert "1 files are not what was published" in operation["errorMessage"]
    assert (copy / "a").read_bytes() == b"alpha" and (copy / "notes").read_bytes() == b"new"
    anew(site, made["name"], {"run1/b": b"measured anew"})
    (data / "a").unlink()
    finished(api, api.archiveExperiment(*where))
    assert (copy / "run1/b").read_bytes() == b"measured anew"


def test_what_lies_beside_the_data_is_not_left_behind(site: fx.Site) -> None:
    admin, made = site.experiments(fx.ADMIN), filled(site, named())
    second = site.root.parent / "second"
    second.mkdir(mode=0o711)
    admin.addStorage("SECOND", "localhost", str(second))
    (stray := Path(made["storageDirectory"], "notes")).write_text("by hand")
    operation = finished(admin, admin.moveExperiment(made["name"], "SECOND", fx.STATION), "failed")
    assert "'notes'" in operation["errorMessage"] and stray.read_text() == "by hand"
    stray.unlink()
    finished(admin, admin.moveExperiment(made["name"], "SECOND", fx.STATION))


def test_nothing_counts_as_deleted_while_its_file_system_is_away(site: fx.Site) -> None:
    made, api = filled(site, named()), site.experiments(fx.MANAGER)
    station, away = site.root / fx.STATION, site.root / "away"
    station.rename(away)
    operation = api.deleteExperimentById(made["id"])
    deadline, tried = time.monotonic() + 30, False
    while not tried:
        with site.service.store.transaction() as connection:
            row = operation_store.get(connection, operation["id"])
        assert row is not None and row["status"] in ("pending", "running") and time.monotonic() < deadline
        tried = row["not_before"] is not None
    with pytest.raises(ServiceUnavailable, match="mount its file system"):
        relocation.discard(str(site.root), made["storageDirectory"], made["id"])
    away.rename(station)
    finished(api, operation)
    finished(api, api.restoreDeletedExperiment(made["id"]))
    whole(site, api.getExperimentById(made["id"]))


def test_the_last_copy_is_never_the_former_one(site: fx.Site) -> None:
    made, moving = filled(site, named()), site.service.use_cases.life.moving
    directory = made["storageDirectory"]
    row, progress = begun(site, DISCARD, made["id"], root=str(site.root), directory=directory)
    records = {**row, "storage_directory": f"{directory}-elsewhere"}  # as a backup has it
    with pytest.raises(ServiceUnavailable, match="the former one is kept"):
        moving._discard(cast(RowMapping, records), progress)
    whole(site, made)


def test_what_was_handed_over_is_not_abandoned_as_forsaken(site: fx.Site) -> None:
    name, batch = filled(site, named())["name"], str(uuid.uuid4())
    grant = site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
    opened = site.station().openBatch(grant, batch, source="daq-2")
    site.station().submitBatch(grant, batch, fx.staged(opened["stagingDirectory"], {"later": b"1"}))
    fx.outcome(site.station(), batch)
    with site.service.store.transaction() as connection:
        batch_store.abandon(connection, batch)
        assert batch_store.state(connection, batch) == "committed"


def test_forgetting_millions_of_files_may_take_its_time(site: fx.Site) -> None:
    with site.service.store.transaction() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "1min"
        file_store.forget(connection, 0)
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0"


def test_an_inspection_leaves_alone_who_took_the_name(site: fx.Site) -> None:
    made, api, store = filled(site, named()), site.experiments(fx.MANAGER), site.service.store
    with store.transaction() as connection:
        experiment = experiment_store.by_id(connection, made["id"])
    assert experiment is not None
    finished(api, api.deleteExperimentById(made["id"]))
    other = Path(filled(site, made["name"])["dataDirectory"], "a")
    other.chmod(0o600)
    for phase in ("tree", "records"):
        inspection: Any = {"options": {"repair": True}, "counts": {}, "position": {"phase": phase}, "rounds": 0}
        pace = Pace(1e9, threading.Event(), lambda: None)
        one = Round(
            store, Owners(site.settings), experiment, inspection, files=pace, reading=pace, hold=lambda connection: True
        )
        with pytest.raises(LeaseLostError):
            one.run()
        assert other.stat().st_mode & 0o777 == 0o600
    with store.transaction() as connection:
        assert not inspection_store.findings(connection, made["id"], 0, 10)


def until_waiting(site: fx.Site) -> None:
    """Return when somebody waits for a lock in the site's database."""
    deadline = time.monotonic() + 30
    while True:
        with site.service.store.transaction() as connection:
            statement = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            if connection.execute(text(statement)).scalar_one():
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_compressed_file_published_anew_is_a_file_like_others(site: fx.Site) -> None:
    made, api, files = filled(site, named()), site.experiments(fx.MANAGER), site.files(fx.MANAGER)
    where = made["name"], fx.STATION
    finished(api, files.compressFile("run1/b", *where))
    anew(site, made["name"], {"run1/b.gz": gzip.compress(b"measured anew")})
    record = files.statFile("run1/b.gz", *where)
    assert record["compression"] == "" and "contentDigests" not in record and "contentSize" not in record
    finished(api, files.decompressFile("run1/b.gz", *where))
    assert Path(made["dataDirectory"], "run1/b").read_bytes() == b"measured anew"
