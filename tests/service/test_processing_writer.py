"""The writer: what many jobs change goes to a real database in groups, and nothing is claimed that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dm.common.embedded import EmbeddedMongo
from dm.common.errors import ProcessingError, ServiceUnavailable
from dm.station.processing.documents import new_job
from dm.station.processing.store import Store
from dm.station.processing.writer import Writer

WORKFLOW = {"name": "w", "owner": "o", "userAccount": "o", "stages": {"1": {"command": "true"}}}


def job(store: Store, name: str) -> dict[str, object]:
    return new_job(
        job_id=name,
        order=store.next_order(),
        owner="o",
        workflow=WORKFLOW,
        arguments={},
        files=["/dev/null"],
        error=None,
        data_directory=None,
    )


@pytest.fixture
def store(new_mongo_database: Callable[[], str]) -> Iterator[Store]:
    made = Store(new_mongo_database())
    made.prepare()
    yield made
    made.close()


@pytest.fixture
def writer(store: Store) -> Iterator[Writer]:
    made = Writer(store)
    made.start()
    yield made
    made.close()


def test_what_many_change_at_once_is_all_there(store: Store, writer: Writer) -> None:
    names = [f"j{number}" for number in range(50)]
    added = [writer.add(job(store, name)) for name in [*names, "j0"]]
    assert [future.result(30) for future in added] == [True] * 50 + [False]
    changes = [writer.update(name, {f"values.k{turn}": turn}) for turn in range(20) for name in names]
    further = [writer.update(name, {"nextChild": 65}, [{"number": 64, "stage": 0}]) for name in names]
    for future in [*changes, *further]:
        assert future.result(30) is None
    for name in names:
        document = store.job(name)
        assert document is not None and document["nextChild"] == 65
        assert document["values"] == {f"k{turn}": turn for turn in range(20)}
        assert [child["number"] for child in store.children(name)] == [64]


def test_a_change_the_database_refuses_harms_no_other(store: Store, writer: Writer) -> None:
    for name in ("a", "b"):
        assert writer.add(job(store, name)).result(30)
    bad, good = writer.update("a", {"values": {"a\0b": 1}}), writer.update("b", {"errorMessage": "y"})
    assert good.result(30) is None
    with pytest.raises(ProcessingError, match="refuses"):
        bad.result(30)
    document = store.job("b")
    assert document is not None and document["errorMessage"] == "y"


def test_while_the_database_is_away_changes_wait_and_submissions_are_refused(tmp_path: Path) -> None:
    database = EmbeddedMongo(tmp_path / "mongo")
    store = Store(database.start())
    writer = Writer(store)
    try:
        store.prepare()
        writer.start()
        assert writer.add(job(store, "a")).result(30)
        database.stop()
        first = writer.update("a", {"stage": "1", "status": "running"})
        with pytest.raises(ServiceUnavailable):
            writer.add(job(store, "b")).result(60)
        second = writer.update("a", {"stage": "2"})
        assert not first.done() and not second.done()
        database.start()
        assert first.result(60) is None and second.result(60) is None
        document = store.job("a")
        assert document is not None and (document["stage"], document["status"]) == ("2", "running")
        database.stop()
        last = writer.update("a", {"stage": "3"})
        writer.close()
        with pytest.raises(ServiceUnavailable):
            last.result(0)
        with pytest.raises(ServiceUnavailable):
            writer.update("a", {}).result(0)
    finally:
        writer.close()
        store.close()
        database.stop()
