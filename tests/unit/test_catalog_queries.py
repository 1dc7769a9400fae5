"""What a query means, and what it may not contain."""

from __future__ import annotations

import time

import pytest

from dm.common.errors import InvalidArgument, ServiceLimit
from dm.station.catalog.files import parse_query
from dm.station.catalog.queries import OPERATORS, Query

RECORD = {
    "fileName": "scan_0007.h5",
    "fileSize": 1 << 40,
    "md5Sum": None,
    "flag": True,
    "one": 1,
    "real": 1.5,
    "a.b": {"c.d": 5, "$e": "x"},
    "a": {"b": {"c": 6}},
    "list": [1, "two", None, {"n": 3}],
    "empty": [],
    "bytes": "caf\udce9.dat",
    "$price": 7,
}


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"fileSize": 1 << 40},
        {"fileSize": float(1 << 40)},
        {"fileName": "scan_0007.h5", "one": 1},
        {"md5Sum": None},
        {"missing": None},
        {"missing": {"$exists": False}},
        {"md5Sum": {"$exists": True}},
        {"missing": {"$ne": 1}},
        {"one": {"$ne": 2}},
        {"one": {"$gt": 0, "$lt": 2}},
        {"one": {"$gte": 1, "$lte": 1}},
        {"real": {"$gt": 1}},
        {"fileName": {"$gt": "scan", "$lt": "scao"}},
        {"one": {"$in": [5, 1.0]}},
        {"missing": {"$in": [None]}},
        {"one": {"$nin": [2, True]}},
        {"flag": True},
        {"flag": {"$ne": 1}},
        {"list": 1},
        {"list": "two"},
        {"list": {"$in": ["two"]}},
        {"list": [1, "two", None, {"n": 3}]},
        {"list.0": 1},
        {"list.n": 3},
        {"list.3.n": 3},
        {"empty": []},
        {"a.b.c.d": 5},
        {"a.b.c": 6},
        {"a.b.$e": "x"},
        {"a": {"b": {"c": 6}}},
        {"fileName": {"$regex": r"^scan_\d{4}\.h5$"}},
        {"fileName": {"$regex": "^SCAN", "$options": "i"}},
        {"fileName": {"$not": {"$regex": "^x"}}},
        {"bytes": {"$regex": "^caf"}},
        {"bytes": "caf\udce9.dat"},
        {"$or": [{"one": 2}, {"one": 1}]},
        {"$and": [{"one": 1}, {"real": 1.5}]},
        {"$nor": [{"one": 2}, {"real": 2}]},
        {"$or": [{"$and": [{"one": 1}, {"flag": True}]}, {"one": 9}]},
    ],
)
def test_matches(query):
    assert Query(query).matches(RECORD)


@pytest.mark.parametrize(
    "query",
    [
        {"one": "1"},
        {"one": True},
        {"flag": 1},
        {"flag": {"$gt": 0}},
        {"one": {"$gt": "0"}},
        {"one": {"$in": [True, "1"]}},
        {"fileSize": (1 << 40) + 1},
        {"missing": {"$exists": True}},
        {"missing": {"$gt": 0}},
        {"missing": 1},
        {"list": {"$ne": 1}},
        {"list.7": 1},
        {"list.99999999999999999999": 1},
        {"a.b.c": 5},
        {"fileName": {"$not": {"$regex": "scan"}}},
        {"$nor": [{"one": 1}]},
        {"$and": [{"one": 1}, {"one": 2}]},
        {"one": {"$gt": 0, "$lt": 1}},
        {"one": {}},
    ],
)
def test_does_not_match(query):
    assert not Query(query).matches(RECORD)


@pytest.mark.parametrize("operator", ["$where", "$expr", "$jsonSchema", "$text", "$comment", "$", "$or "])
def test_refused_at_the_top_by_name(operator):
    with pytest.raises(InvalidArgument) as refusal:
        Query({operator: "sleep(10000) || true"})
    assert repr(operator) in str(refusal.value)


@pytest.mark.parametrize("operator", ["$where", "$function", "$accumulator", "$expr", "$elemMatch", "$mod", "$type"])
@pytest.mark.parametrize("wrap", [lambda q: q, lambda q: {"$or": [{"x": 1}, q]}, lambda q: {"$and": [{"$nor": [q]}]}])
def test_refused_on_a_key_by_name(operator, wrap):
    with pytest.raises(InvalidArgument, match="is not allowed in a query"):
        Query(wrap({"fileSize": {operator: "x"}}))
    with pytest.raises(InvalidArgument, match="is not allowed in a query"):
        Query(wrap({"fileSize": {"$not": {operator: "x"}}}))


@pytest.mark.parametrize(
    "query",
    [
        {"$or": []},
        {"$or": {"a": 1}},
        {"$and": [1]},
        {"a": {"$in": 5}},
        {"a": {"$gt": {"b": 1}}},
        {"a": {"$gt": None}},
        {"a": {"$exists": "perhaps"}},
        {"a": {"$not": 5}},
        {"a": {"$eq": 1, "b": 2}},
        {"a": {"$options": "i"}},
        {"a": {"$regex": "a", "$options": "x"}},
        {"a": {"$regex": "a", "$options": ["i"]}},
        {"a": {"$regex": "(unclosed"}},
        {"a": {"$regex": r"(a)\1"}},
        {"a": {"$regex": "(?=a)"}},
        {"a": {"$regex": 5}},
        {"a": {"$regex": "a" * 600}},
        {"a": {"$regex": "\udcff"}},
        {"a": {"$regex": "((a{1000}){1000}){1000}"}},
    ],
)
def test_malformed(query):
    with pytest.raises(InvalidArgument):
        Query(query)


def test_limits():
    with pytest.raises(ServiceLimit):
        Query({"a": {"$in": ["x" * 100_000, "y" * 200_000]}})
    with pytest.raises(ServiceLimit):
        Query({"a": {"$in": list(range(10_001))}})
    with pytest.raises(ServiceLimit):
        Query({f"k{n}": n for n in range(1000)})
    with pytest.raises(ServiceLimit):
        Query({".".join("abcdefghijklmnop"): 1})
    deep: dict = {"a": 1}
    for _ in range(20):
        deep = {"$and": [deep]}
    with pytest.raises(ServiceLimit):
        Query(deep)
    negated: dict = {"$eq": 1}
    for _ in range(20):
        negated = {"$not": negated}
    with pytest.raises(ServiceLimit):
        Query({"a": negated})


def test_a_hostile_regex_is_linear():
    query = Query({"a": {"$regex": "^(a+)+$"}})
    began = time.monotonic()
    assert not query.matches({"a": "a" * 5000 + "!"})
    assert time.monotonic() - began < 60  # a backtracking engine would not come back at all


def test_the_database_only_narrows():
    query = parse_query({"fileSize": {"$gt": 5}, "scan": 3, "a.b": 1, "x": None, "fileName": {"$regex": "h5"}})
    assert query.prefilter == {"$and": [{"fileSize": {"$gt": 5}}, {"m.scan": 3}]}
    assert parse_query({"$or": [{"scan": 1}, {"scan": {"$in": [2, 3]}}]}).prefilter == {
        "$or": [{"m.scan": 1}, {"m.scan": {"$in": [2, 3]}}]
    }
    assert parse_query({"$or": [{"scan": 1}, {"a.b": 2}]}).prefilter == {}
    assert parse_query({"$and": [{"scan": 1}, {"a.b": 2}]}).prefilter == {"$and": [{"m.scan": 1}]}
    assert parse_query({"$nor": [{"scan": 1}], "n": {"$ne": 1}, "m": {"$not": {"$eq": 1}}}).prefilter == {}
    assert parse_query({"experimentName": "x", "id": "y", "localFilePath": "z", "userMetadata": "u"}).prefilter == {}
    assert parse_query({"scan": 1 << 60, "flag": True, "text": "\udcff", "x": {"$gt": 1}}).prefilter == {}


def test_required_text():
    assert parse_query({"id": "x"}).required("id") == "x"
    assert parse_query({"id": {"$eq": "x", "$ne": "y"}}).required("id") == "x"
    assert parse_query({"id": {"$in": ["x"]}}).required("id") is None
    assert parse_query({"$or": [{"id": "x"}]}).required("id") is None


def test_operators_are_all_known():
    for operator in OPERATORS:
        assert operator.startswith("$")
