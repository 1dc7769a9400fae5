"""The catalog's use cases on a real database: lists, writers that meet, statistics, datasets, background updates."""

from __future__ import annotations

import math
import random
import statistics
import threading
import time
import uuid

import pytest

from dm.common.errors import (
    ConfigurationError,
    InvalidArgument,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceLimit,
    ServiceUnavailable,
)
from dm.common.health import Health
from dm.station.catalog import store as stores
from dm.station.catalog.documents import RUN, DatasetCatalog, DocumentCatalog
from dm.station.catalog.filecollections import FileCollections
from dm.station.catalog.files import FileCatalog, parse_query
from dm.station.catalog.operations import Operations
from dm.station.catalog.queries import Query
from dm.station.catalog.service import Catalog
from dm.station.catalog.store import ExperimentRef, Store

ALL = parse_query({})


@pytest.fixture(scope="module")
def store(new_mongo_database):
    opened = Store(new_mongo_database())
    opened.prepare()
    opened.prepare()  # harmless
    yield opened
    opened.close()


@pytest.fixture
def experiment(request):
    """An experiment of its own for every test, with an id that is a prefix of others'."""
    experiment.next = getattr(experiment, "next", 0) + 1
    return ExperimentRef(experiment.next, f"exp{experiment.next}")


@pytest.fixture
def files(store):
    return FileCatalog(store)


def _files(count, first=0, **more):
    return [
        {"path": f"d/f{n:05d}.h5", "fileSize": n, "version": 1, "metadata": {"n": n, "odd": bool(n % 2)}, **more}
        for n in range(first, first + count)
    ]


def _names(records):
    return [record["fileName"] for record in records]


def test_bulk_twice_gives_the_same_documents(files, store, experiment):
    records = _files(600)
    first = files.upsert(experiment, records).as_record()
    before = list(store.files.collection.find({"listKey": {"$gt": f"{experiment.id}:", "$lt": f"{experiment.id};"}}))
    second = files.upsert(experiment, [*records, *records]).as_record()
    after = list(store.files.collection.find({"listKey": {"$gt": f"{experiment.id}:", "$lt": f"{experiment.id};"}}))
    assert (first["nAdded"], first["nErrors"]) == (600, 0)
    assert (second["nAdded"], second["nUpdated"], second["nUnchanged"]) == (0, 0, 1200)
    assert sorted(before, key=lambda d: d["_id"]) == sorted(after, key=lambda d: d["_id"])
    assert len({document["listKey"] for document in after}) == 600


def test_one_bulk_may_tell_several_things_of_a_file(files, experiment):
    outcome = files.upsert(
        experiment,
        [
            {"path": "a", "version": 2, "fileSize": 20, "replicas": [{"url": "x"}]},
            {"path": "a", "version": 1, "fileSize": 10, "replicas": [{"url": "y"}]},
            {"path": "a", "version": 3, "fileSize": 30, "metadata": {"k": 1}},
        ],
    )
    record = files.get(experiment, "a")
    assert outcome.as_record()["nErrors"] == 0
    assert (record["version"], record["fileSize"], record["k"], len(record["replicas"])) == (3, 30, 1, 2)


def test_bad_records_do_not_hold_up_good_ones(files, experiment):
    outcome = files.upsert(
        experiment,
        [{"path": "good"}, {"path": "../bad"}, {"path": "worse", "metadata": {"x\0": 1}}, {"path": "b" * 300}, {}],
    ).as_record()
    assert (outcome["nAdded"], outcome["nErrors"]) == (1, 4)
    assert [error["index"] for error in outcome["errors"]] == [1, 2, 3, 4]
    assert {error["errorClass"] for error in outcome["errors"]} == {"InvalidArgument"}
    assert _names(files.find(experiment, ALL)) == ["good"]


def test_lists_are_in_order_and_complete(files, experiment, monkeypatch):
    monkeypatch.setattr(stores, "WINDOW", 37)
    neighbour = ExperimentRef(experiment.id * 10, "neighbour")
    files.upsert(experiment, _files(100))
    files.upsert(neighbour, _files(5))
    files.upsert(experiment, _files(100, first=100))
    wanted = [f"f{n:05d}.h5" for n in range(200)]
    assert _names(files.find(experiment, ALL)) == wanted
    assert _names(files.find(neighbour, ALL)) == wanted[:5]
    for skip, limit in ((0, 1), (0, 37), (36, 2), (37, 74), (150, 1000), (199, 5), (200, 5), (5000, 1), (3, 0)):
        assert _names(files.find(experiment, ALL, skip, limit)) == wanted[skip : skip + limit], (skip, limit)
        odd = files.find(experiment, parse_query({"odd": True}), skip, limit)
        assert _names(odd) == wanted[1::2][skip : skip + limit], (skip, limit)
    for limit in (1, 36, 37, 200, 1000):
        found, after, skip = [], None, 7
        while True:
            page = files.page(experiment, ALL, after, limit, ["fileName"], skip)
            found += page["files"]
            after, skip = page["after"], page["skip"]
            if after is None:
                break
        assert _names(found) == wanted[7:]


def test_files_deleted_in_between_leave_no_trace(files, store, experiment):
    files.upsert(experiment, _files(30))
    page = files.page(experiment, ALL, None, 10)
    for record in files.find(experiment, ALL)[5:15]:
        files.delete_by_id(experiment, record["id"])
    rest = files.page(experiment, ALL, page["after"], 100)
    assert _names(rest["files"]) == [f"f{n:05d}.h5" for n in range(15, 30)]
    assert _names(files.find(experiment, ALL, 5, 3)) == ["f00015.h5", "f00016.h5", "f00017.h5"]


def test_queries_stay_in_their_experiment(files, experiment):
    other = ExperimentRef(experiment.id * 10 + 1, "other")
    files.upsert(experiment, _files(3))
    files.upsert(other, _files(3))
    theirs = files.find(other, ALL)[0]
    for query in (
        {"id": theirs["id"]},
        {"experimentId": other.id},
        {"experimentName": other.name},
        {"$or": [{"experimentId": other.id}, {"id": theirs["id"]}]},
    ):
        assert files.find(experiment, parse_query(query)) == []
    with pytest.raises(ObjectNotFound):
        files.get_by_id(experiment, theirs["id"])
    with pytest.raises(ObjectNotFound):
        files.delete_by_id(experiment, theirs["id"])
    with pytest.raises(ObjectNotFound):
        files.update_by_id(experiment, theirs["id"], {"x": 1})
    for cursor in ("1:1", "-1", "x", "9" * 17, "\u0663"):
        with pytest.raises(InvalidArgument):
            files.page(experiment, ALL, cursor)


def test_the_database_narrows_without_changing_the_answer(files, experiment):
    values = [1, 1.0, True, "1", None, [1], [True, "x"], {"a": 1}, 2.5, -3, [], "x", (1 << 53) + 1]
    files.upsert(
        experiment,
        [{"path": f"{n}", "metadata": {"k": value, "a/b:c d": n}} for n, value in enumerate(values)]
        + [{"path": "none", "metadata": {}}],
    )
    records = files.find(experiment, ALL)
    for query in (
        *({"k": value} for value in values),
        *({"k": {operator: 1}} for operator in ("$gt", "$gte", "$lt", "$lte", "$ne")),
        {"k": {"$in": [1, "x"]}},
        {"k": {"$in": [None, 2.5]}},
        {"k": {"$gte": 1, "$lt": 2}},
        {"a/b:c d": {"$gt": 3}},
        {"$or": [{"k": 1}, {"k": "x"}]},
        {"$and": [{"k": {"$gt": 0}}, {"a/b:c d": {"$lt": 3}}]},
        {"fileName": {"$in": ["1", "3"]}},
    ):
        checked = parse_query(query)
        assert files.find(experiment, checked) == [record for record in records if checked.matches(record)], query


def test_any_name_and_any_metadata_come_back(files, experiment):
    raw = b"d\xff\xfe/caf\xe9 \n\x01.h5"
    path = raw.decode("utf-8", "surrogateescape")
    metadata = {"a.b": {"$ref": 1, "$id": [{"": 0}]}, "$where": "x", "n\udcff": "v\udcfe", "": 1, "日本": "語"}
    files.upsert(experiment, [{"path": path, "fileSize": (1 << 63) - 1, "metadata": metadata}])
    record = files.get(experiment, path)
    assert record["experimentFilePath"].encode("utf-8", "surrogateescape") == raw
    assert record["fileSize"] == (1 << 63) - 1
    assert {key: record[key] for key in metadata} == metadata
    assert files.find(experiment, parse_query({"experimentFilePath": path})) == [record]
    assert files.find(experiment, parse_query({"a.b.$ref": 1, "$and": [{"n\udcff": "v\udcfe"}]})) == [record]
    updated = files.update(experiment, {**record, "extra": "\udcfd"})
    assert {key: updated[key] for key in metadata} == metadata
    assert files.get(experiment, path)["extra"] == "\udcfd"


def test_local_paths(files, experiment):
    files.upsert(experiment, [{"path": "a", "localFilePath": "/data/\udcff"}])
    assert files.get(experiment, "a")["localFilePath"] == "/data/\udcff"
    files.upsert(experiment, [{"path": "a", "localFilePath": "/elsewhere/\udcfe"}])
    assert files.get(experiment, "a")["localFilePath"] == "/elsewhere/\udcfe"


def test_data_comes_before_analysis(files, experiment):
    files.upsert(experiment, [{"path": "x", "root": "analysis", "fileSize": 1}, {"path": "x", "fileSize": 2}])
    files.upsert(experiment, [{"path": "y", "root": "analysis", "fileSize": 3}])
    assert files.get(experiment, "x")["fileSize"] == 2
    assert files.get(experiment, "x", "analysis")["fileSize"] == 1
    assert files.get(experiment, "y")["root"] == "analysis"
    with pytest.raises(ObjectNotFound):
        files.get(experiment, "y", "data")
    assert files.update(experiment, {"path": "y", "k": 1})["root"] == "analysis"
    assert [record["root"] for record in files.find(experiment, parse_query({"experimentFilePath": "x"}))] == [
        "analysis",
        "data",
    ]
    with pytest.raises(InvalidArgument):
        files.get(experiment, "x", "system")


def test_add_update_delete(files, experiment):
    added = files.add(experiment, {"experimentFilePath": "a.h5", "fileSize": 5, "title": "t"})
    assert (added["fileSize"], added["title"], added["experimentName"]) == (5, "t", experiment.name)
    with pytest.raises(ObjectAlreadyExists):
        files.add(experiment, {"experimentFilePath": "./a.h5"})
    older = files.update(experiment, {"experimentFilePath": "a.h5", "fileModificationTime": 5.0, "title": "u"})
    older = files.update(experiment, {"experimentFilePath": "a.h5", "fileModificationTime": 4.0, "version": 1})
    assert (older["fileModificationTime"], older["title"], older["fileSize"]) == (4.0, "u", 5)
    assert files.update_by_id(experiment, added["id"], {"experimentFilePath": "ignored", "k": None})["k"] is None
    with pytest.raises(ObjectNotFound, match="does not exist"):
        files.update(experiment, {"experimentFilePath": "b.h5", "title": "u"})
    with pytest.raises(InvalidArgument):
        files.update(experiment, {"experimentFilePath": "a.h5", "fileSize": -1})
    assert files.delete(experiment, "a.h5")["id"] == added["id"]
    for call in (files.get, files.delete):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            call(experiment, "a.h5")


def test_writers_in_a_row_and_at_once_lose_nothing(store, experiment):
    catalogs = [FileCatalog(store) for _ in range(4)]  # as in four processes: no common lock
    failures = []

    def write(number):
        try:
            for step in range(8):
                records = [{"path": f"f{n}", "metadata": {f"w{number}": step}} for n in range(10)]
                records[step]["replicas"] = [{"url": f"{number}"}]
                assert catalogs[number].upsert(experiment, records).as_record()["nErrors"] == 0
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    records = catalogs[0].find(experiment, ALL)
    assert len(records) == 10
    for record in records:
        assert [record[f"w{number}"] for number in range(4)] == [7] * 4
    for record in records[:8]:
        assert sorted(replica["url"] for replica in record["replicas"]) == ["0", "1", "2", "3"]


def test_statistics(files, store, experiment, monkeypatch):
    monkeypatch.setattr(stores, "WINDOW", 50)
    collections = FileCollections(store, files)
    assert collections.stats(experiment) == {
        "experimentName": experiment.name,
        "countFiles": 0,
        "collectionSize": 0,
        "averageFileSize": 0.0,
        "minFileSize": 0,
        "maxFileSize": 0,
        "stdDevFileSize": 0.0,
    }
    random.seed(7)
    sizes = [random.randrange(1 << 42) for _ in range(120)]
    files.upsert(experiment, [{"path": str(n), "fileSize": size} for n, size in enumerate(sizes)])
    stats = collections.stats(experiment)
    assert (stats["countFiles"], stats["collectionSize"]) == (120, sum(sizes))
    assert (stats["minFileSize"], stats["maxFileSize"]) == (min(sizes), max(sizes))
    assert math.isclose(stats["averageFileSize"], statistics.fmean(sizes))
    assert math.isclose(stats["stdDevFileSize"], statistics.pstdev(sizes), rel_tol=1e-9)


def test_equal_sizes_have_no_deviation(files, store, experiment):
    files.upsert(experiment, [{"path": str(n), "fileSize": (8 << 30) + 1} for n in range(60)])
    assert FileCollections(store, files).stats(experiment)["stdDevFileSize"] == 0.0


def test_collections_are_deleted_and_begin_again(files, store, experiment):
    collections = FileCollections(store, files)
    neighbour = ExperimentRef(experiment.id * 10 + 2, "neighbour")
    files.upsert(neighbour, _files(3))
    files.upsert(experiment, _files(50))
    assert collections.delete(experiment) == {"experimentName": experiment.name, "countFiles": 50}
    with pytest.raises(ObjectNotFound, match="does not exist"):
        collections.delete(experiment)
    assert files.find(experiment, ALL) == []
    assert len(files.find(neighbour, ALL)) == 3
    files.upsert(experiment, _files(2))
    assert len(files.find(experiment, ALL)) == 2


def test_collections_move_and_resume(files, store, experiment):
    collections = FileCollections(store, files)
    target = ExperimentRef(experiment.id * 10 + 3, "target")
    with pytest.raises(ObjectNotFound):
        collections.move(experiment, target)
    files.upsert(experiment, _files(20))
    store.files.set_counter(target.id, movingFrom=experiment.id)  # as if interrupted after the first few
    files.upsert(target, _files(5))
    assert collections.move(experiment, target)["countFiles"] == 20
    assert files.find(experiment, ALL) == []
    assert sorted(_names(files.find(target, ALL))) == sorted(f"f{n:05d}.h5" for n in range(20))
    assert {record["experimentId"] for record in files.find(target, ALL)} == {target.id}
    assert files.get(target, "d/f00000.h5")["n"] == 0
    files.upsert(experiment, _files(1))
    with pytest.raises(ObjectAlreadyExists):
        collections.move(experiment, target)


def test_datasets(store, files, experiment):
    datasets = DatasetCatalog(store, files)
    nested = {"start": {"uid": "x", "motors.x": [1, {"$set": 2}], "": None}, "n": 1 << 50}
    caller_id = str(uuid.uuid4())
    added = datasets.add(
        experiment, {"_id": caller_id, "experimentName": "ignored", "datasetName": "run 1", "bluesky_metadata": nested}
    )
    assert (added["id"], added["_id"], added["experimentName"]) == (caller_id, caller_id, experiment.name)
    assert datasets.get(experiment, "run 1") == added
    assert added["bluesky_metadata"] == nested
    with pytest.raises(ObjectAlreadyExists, match="run 1"):
        datasets.add(experiment, {"datasetName": "run 1"})
    with pytest.raises(ObjectAlreadyExists):
        datasets.add(experiment, {"datasetName": "run 2", "_id": caller_id})
    second = datasets.add(experiment, {"datasetName": "run 2", "title": "b"}, "d123456")
    assert second["id"] and second["owner"] == "d123456"
    assert [found["datasetName"] for found in datasets.find(experiment, Query({}))] == ["run 1", "run 2"]
    assert datasets.find(experiment, Query({"bluesky_metadata.start.motors.x.$set": 2})) == [added]
    assert [found["datasetName"] for found in datasets.find(experiment, Query({}), 1, 1, ["datasetName"])] == ["run 2"]
    assert datasets.locate(caller_id) == [(experiment, "run 1")]
    assert datasets.locate(second["id"]) == [(experiment, "run 2")]
    assert datasets.locate("nothing") == []
    updated = datasets.update(experiment, "run 2", {"datasetName": "other", "id": "other", "x.y": 1})
    assert (updated["datasetName"], updated["id"], updated["title"], updated["x.y"]) == ("run 2", second["id"], "b", 1)
    assert datasets.delete(experiment, "run 2")["title"] == "b"
    for call in (datasets.get, datasets.delete):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            call(experiment, "run 2")
    with pytest.raises(ObjectNotFound):
        datasets.update(experiment, "run 2", {"x": 1})


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"datasetName": ""},
        {"datasetName": " "},
        {"datasetName": 5},
        {"datasetName": "x" * 300},
        {"datasetName": "a\nb"},
        {"datasetName": "\udcff"},
        {"datasetName": "a", "_id": 5},
        {"datasetName": "a", "_id": "b\n"},
        {"datasetName": "a", "k\0": 1},
        {"datasetName": "a", "k": float("nan")},
        {"datasetName": "a", "experimentFilePathList": "x"},
        {"datasetName": "a", "experimentFilePathList": ["../x"]},
        {"datasetName": "a", "experimentFilePathList": [5]},
        {"datasetName": "a", "fileQueryDict": "x"},
        {"datasetName": "a", "fileQueryDict": {"$where": "1"}},
    ],
)
def test_bad_datasets(store, files, experiment, info):
    with pytest.raises(InvalidArgument):
        DatasetCatalog(store, files).add(experiment, info)


def test_dataset_limits(store, files, experiment):
    datasets = DatasetCatalog(store, files)
    with pytest.raises(ServiceLimit, match="shorten"):
        datasets.add(experiment, {"datasetName": "big", "x": "y" * (16 << 20)})
    deep: dict = {}
    for _ in range(101):
        deep = {"a": deep}
    with pytest.raises(ServiceLimit, match="100 levels"):
        datasets.add(experiment, {"datasetName": "deep", "x": deep})
    datasets.add(experiment, {"datasetName": "deep", "x": deep["a"]["a"]["a"]})
    assert datasets.get(experiment, "deep")["x"] == deep["a"]["a"]["a"]
    datasets.add(experiment, {"datasetName": "large", "x": "y" * (14 << 20)})
    assert len(datasets.get(experiment, "large")["x"]) == 14 << 20


def test_dataset_files(store, files, experiment):
    datasets = DatasetCatalog(store, files)
    files.upsert(experiment, [*_files(10), {"path": "mine", "metadata": {"datasetName": "by name"}}])
    datasets.add(
        experiment, {"datasetName": "listed", "experimentFilePathList": ["d/f00003.h5", "gone", "d/f00001.h5"]}
    )
    datasets.add(experiment, {"datasetName": "queried", "fileQueryDict": {"n": {"$gte": 7}}})
    datasets.add(experiment, {"datasetName": "by name"})
    assert _names(datasets.files(experiment, "listed")) == ["f00003.h5", "f00001.h5"]
    assert _names(datasets.files(experiment, "listed", 1, 5)) == ["f00001.h5"]
    assert _names(datasets.files(experiment, "queried")) == ["f00007.h5", "f00008.h5", "f00009.h5"]
    assert _names(datasets.files(experiment, "by name")) == ["mine"]
    with pytest.raises(ObjectNotFound):
        datasets.files(experiment, "nothing")


def test_runs(store, experiment):
    runs = DocumentCatalog(store.runs, RUN)
    added = runs.add(experiment, {"runId": "r/1", "metadata": {"a.b": {"$c": 1}}})
    assert added["id"] and added["metadata"] == {"a.b": {"$c": 1}}
    assert runs.find(experiment, Query({"runId": "r/1"})) == [added]
    with pytest.raises(ObjectAlreadyExists):
        runs.add(experiment, {"runId": "r/1"})
    with pytest.raises(InvalidArgument, match="runId"):
        runs.add(experiment, {"metadata": {}})


def _wait(operations, operation_id, status="done"):
    deadline = time.monotonic() + 30
    while (found := operations.get(operation_id))["status"] != status and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found["status"] == status, found
    return found


def test_background_updates(store, files, experiment):
    files.upsert(experiment, _files(500))
    operations = Operations(store, files, poll_seconds=0.05)
    records = [{"experimentFilePath": f"d/f{n:05d}.h5", "tag.x": n} for n in range(501)]
    submitted = operations.submit(experiment, records, "d123456")
    assert (submitted["status"], submitted["countFiles"], submitted["owner"]) == ("pending", 501, "d123456")
    operations.start()
    try:
        found = _wait(operations, submitted["id"])
    finally:
        operations.stop()
    assert (found["nUpdated"], found["nErrors"]) == (500, 1)
    assert found["errors"][0]["errorClass"] == "ObjectNotFound"
    assert found["errorMessage"] == "1 of 501 files could not be updated."
    assert all(record["tag.x"] == record["n"] for record in files.find(experiment, ALL))
    assert store.operation_parts.find_one({"_id": f"{submitted['id']}:0"}) is None
    with pytest.raises(ObjectNotFound):
        operations.get("nothing")
    with pytest.raises(InvalidArgument):
        operations.submit(experiment, [], "d123456")


def test_background_updates_survive_their_worker(store, files, experiment):
    files.upsert(experiment, _files(450))
    records = [{"experimentFilePath": f"d/f{n:05d}.h5", "tag": n} for n in range(450)]
    submitted = Operations(store, files).submit(experiment, records, "d123456")
    # a worker that died after the first part: its claim has run out, its place is noted
    store.operations.update_one(
        {"_id": submitted["id"]}, {"$set": {"status": "running", "worker": "dead", "leaseUntil": 1.0, "nextPart": 1}}
    )
    held = Operations(store, files).submit(experiment, records, "d123456")  # one that still lives, elsewhere
    store.operations.update_one(
        {"_id": held["id"]}, {"$set": {"status": "running", "worker": "alive", "leaseUntil": time.time() + 600}}
    )
    operations = Operations(store, files, poll_seconds=0.05)
    operations.start()
    try:
        assert _wait(operations, submitted["id"])["nUpdated"] == 250
    finally:
        operations.stop()
    assert operations.get(held["id"])["status"] == "running"
    assert "tag" not in files.get(experiment, "d/f00000.h5")
    assert files.get(experiment, "d/f00200.h5")["tag"] == 200
    store.operations.delete_one({"_id": held["id"]})


def test_health(store, experiment):
    catalog = Catalog(store, site=None, health=Health("catalog"))
    status = catalog.health.status()
    assert status["status"] == "ok"
    assert "files" in status["checks"][0]["message"]
    assert b'dm_catalog_documents{kind="files"}' in catalog.health.metrics()


def test_without_a_database(monkeypatch):
    with pytest.raises(ConfigurationError):
        Store("mongodb://:::/")
    monkeypatch.setattr(stores, "_DATABASE_SECONDS", 0.05)
    absent = Store("mongodb://127.0.0.1:1/none")
    try:
        with pytest.raises(ServiceUnavailable, match="does not answer"):
            FileCatalog(absent).get(ExperimentRef(1, "x"), "a")
        status = Catalog(absent, site=None, health=Health("catalog")).health.status()
        assert status["status"] == "critical"
    finally:
        absent.close()
