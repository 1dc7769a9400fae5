"""What happens to an experiment's files while something else is done with them: the newer ones always stay."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import RowMapping, text

from dm.common.errors import ServiceUnavailable
from dm.site.database.store import OPERATION_LOCK
from dm.site.storage import operation_store
from dm.site.storage.batches import Signal
from dm.site.storage.directories import ExperimentDirectory, Owner, Owners
from dm.site.storage.manifest import read
from dm.site.storage.operations import Finish, Kind, Operations, Progress
from dm.site.storage.replication import Copied, Replication
from tests.service import storage_fixtures as fx
from tests.service.experiment_fixtures import filled, finished, named


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
