"""File records coming in: what is accepted, and how late, repeated and partial ones join what is known."""

from __future__ import annotations

import itertools

import pytest

from dm.common.errors import InvalidArgument, ServiceLimit
from dm.station.catalog import codec, items
from dm.station.catalog.store import ExperimentRef

EXPERIMENT = ExperimentRef(7, "exp7")
MD5_1, MD5_2 = "1" * 32, "2" * 32


def _arrive(*records, known=None):
    """Return the document after the records arrived in this order, as the catalog would keep it."""
    for record in records:
        item = items.parse({"experimentFilePath": "a.h5", **record}, EXPERIMENT)
        known = {**known, **items.changes(known, item, 200.0)} if known else items.new_document(item, 1, 100.0)
    return known


def _seen(document):
    record = items.as_record(document, EXPERIMENT)
    return {key: value for key, value in record.items() if key not in ("catalogTime", "updateTime")}


FIRST = {
    "fileSize": 10,
    "fileModificationTime": 1000.0,
    "md5Sum": MD5_1,
    "version": 1,
    "replicas": [{"url": "u1"}],
    "metadata": {"scan": 1},
}
SECOND = {
    "fileSize": 20,
    "fileModificationTime": 2000.0,
    "md5Sum": MD5_2,
    "version": 2,
    "replicas": [{"url": "u2"}],
    "metadata": {"scan": 2, "late": True},
}


def test_the_order_of_arrival_does_not_matter():
    for arrivals in itertools.permutations([FIRST, SECOND, FIRST, SECOND]):
        record = _seen(_arrive(*arrivals))
        assert record["version"] == 2
        assert (record["fileSize"], record["md5Sum"], record["scan"], record["late"]) == (20, MD5_2, 2, True)
        assert sorted(replica["url"] for replica in record["replicas"]) == ["u1", "u2"]
        assert {replica["url"]: replica["version"] for replica in record["replicas"]} == {"u1": 1, "u2": 2}


def test_the_same_again_changes_nothing():
    document = _arrive(FIRST)
    assert items.changes(document, items.parse({"path": "a.h5", **FIRST}, EXPERIMENT), 300.0) == {}


def test_a_new_version_forgets_the_old_contents():
    record = _seen(_arrive(FIRST | {"compression": "gz"}, {"version": 2, "fileSize": 20}))
    assert (record["md5Sum"], record["compression"], record["fileModificationTime"]) == (None, "", None)
    assert record["scan"] == 1


def test_without_versions_time_decides():
    old, new = ({key: v for key, v in record.items() if key != "version"} for record in (FIRST, SECOND))
    assert _seen(_arrive(old, new))["version"] == 2
    assert _seen(_arrive(old, new, new, old))["version"] == 2
    assert _seen(_arrive(new, old))["fileSize"] == 20
    touched = _seen(_arrive(old, old | {"fileModificationTime": 3000.0}))
    assert (touched["version"], touched["fileModificationTime"]) == (1, 3000.0)


def test_same_version_fills_in():
    record = _seen(_arrive({"fileSize": 10, "version": 1}, {"version": 1, "md5Sum": MD5_1, "metadata": {"x": 1}}))
    assert (record["fileSize"], record["md5Sum"], record["x"]) == (10, MD5_1, 1)


def test_true_and_one_differ():
    document = _arrive({"metadata": {"x": 1}})
    item = items.parse({"path": "a.h5", "metadata": {"x": True}}, EXPERIMENT)
    assert items.changes(document, item, 300.0)["m"] == {"x": True}


def test_metadata_cannot_override_the_system():
    hostile = {"id": "stolen", "experimentId": 1, "fileName": "b", "version": 99, "title": "t"}
    record = _seen(_arrive(FIRST | {"metadata": hostile}))
    assert (record["id"], record["experimentId"], record["fileName"], record["version"]) == (
        items.file_id(7, "data", b"a.h5"),
        7,
        "a.h5",
        1,
    )
    assert record["title"] == "t"
    assert record["userMetadata"] == {"id": "stolen", "experimentId": 1, "fileName": "b", "version": 99}
    again = items.parse(record, EXPERIMENT)  # reading, editing and writing back keeps it
    assert again.metadata == {"title": "t", **record["userMetadata"]}


def test_names_that_are_not_text():
    document = items.new_document(items.parse({"path": "d\udcff/f\udcfe.h5"}, EXPERIMENT), 1, 1.0)
    assert bytes(document["pathBytes"]) == b"d\xff/f\xfe.h5"
    assert document["experimentFilePath"] == "d\\xff/f\\xfe.h5"
    record = items.as_record(document, EXPERIMENT)
    assert (record["experimentFilePath"], record["fileName"]) == ("d\udcff/f\udcfe.h5", "f\udcfe.h5")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"path": 5},
        {"path": ""},
        {"path": "../a"},
        {"path": "/a"},
        {"path": "a\0b"},
        {"path": "a", "root": "system"},
        {"path": "a", "fileSize": -1},
        {"path": "a", "fileSize": 1.5},
        {"path": "a", "fileSize": True},
        {"path": "a", "fileSize": 1 << 63},
        {"path": "a", "fileSize": "many"},
        {"path": "a", "fileModificationTime": float("nan")},
        {"path": "a", "fileModificationTime": 1e300},
        {"path": "a", "fileModificationTime": "soon"},
        {"path": "a", "md5Sum": "abc"},
        {"path": "a", "md5Sum": 5},
        {"path": "a", "digests": ["x"]},
        {"path": "a", "digests": {"xxh3_128": "zz"}},
        {"path": "a", "digests": {"x.y": "00"}},
        {"path": "a", "version": 0},
        {"path": "a", "replicas": {"url": "x"}},
        {"path": "a", "replicas": [{}]},
        {"path": "a", "compression": 5},
        {"path": "a", "localFilePath": "x\0"},
        {"path": "a", "metadata": {"x": float("inf")}},
        {"path": "a", "metadata": {"x": 1 << 64}},
        {"path": "a", "metadata": {"x\0": 1}},
        {"path": "a", "metadata": {"x": "y\0"}},
        {"path": "a", "metadata": {"x": object()}},
        {"path": "a", "metadata": {1: 2}},
    ],
)
def test_bad_records(record):
    with pytest.raises(InvalidArgument):
        items.parse(record, EXPERIMENT)


def test_limits():
    with pytest.raises(ServiceLimit):
        items.parse({"path": "a", "replicas": [{"url": str(n)} for n in range(101)]}, EXPERIMENT)
    with pytest.raises(ServiceLimit):
        items.new_document(items.parse({"path": "a", "x": "y" * (16 << 20)}, EXPERIMENT), 1, 1.0)
    deep: object = 1
    for _ in range(101):
        deep = [deep]
    with pytest.raises(ServiceLimit):
        items.parse({"path": "a", "x": deep}, EXPERIMENT)


def test_published_forms_are_accepted():
    item = items.parse(
        {
            "path": "./x//y.h5",
            "fileSize": "123",
            "md5Sum": "AB" * 16,
            "fileModificationTimestamp": "2026-02-13 00:00:00",
        },
        EXPERIMENT,
    )
    assert item.path == b"x/y.h5"
    assert item.content["fileSize"] == 123
    assert item.content["md5Sum"] == "ab" * 16
    assert item.content["fileModificationTime"] > 1.7e9


@pytest.mark.parametrize(
    "value",
    [
        {
            "a.b": 1,
            "$ref": 2,
            "$id": {"$db": 3},
            "": 4,
            "%": 5,
            "%2E": 6,
            "a%": 7,
            ".": 8,
            "$": 9,
            "a$b": 10,
            "%text": 11,
        },
        {"\udcff": "\udcfe", "日本": "é", "nested": [{"x.y": ["\ud800"]}]},
        {"%text": "00"},
        {"b": True, "n": None, "i": -(1 << 63), "f": -0.0, "l": [], "d": {}, "big": (1 << 63) - 1},
        [1, [2, [3]]],
    ],
)
def test_metadata_comes_back_unchanged(value):
    stored = codec.escape(value)
    assert repr(codec.unescape(stored)) == repr(value)

    def check(part):
        if isinstance(part, dict):
            for key, item in part.items():
                assert key and "." not in key and not key.startswith("$")
                key.encode()
                check(item)
        elif isinstance(part, list):
            for item in part:
                check(item)
        elif isinstance(part, str):
            part.encode()

    check(stored)
