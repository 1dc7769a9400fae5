"""The catalog over HTTPS, as users, beamline scripts and the station's other services meet it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import httpx
import pytest

from dm.common.embedded import free_port
from dm.common.errors import (
    AuthorizationError,
    CommunicationError,
    ConfigurationError,
    InvalidArgument,
    InvalidRequest,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceLimit,
)
from dm.common.tls import client_context
from dm.site.storage.api import ExperimentDsApi
from dm.station.catalog.api import (
    CatalogServiceApi,
    DatasetCatApi,
    FileCatApi,
    RunCatApi,
    ServiceMonitorCatApi,
)
from dm.station.catalog.service import main


def _module(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fixtures = _module("catalog_fixtures")
route_walk = _module("route_walk")
MEMBER_1, MEMBER_10, INVESTIGATOR = fixtures.MEMBER_1, fixtures.MEMBER_10, fixtures.INVESTIGATOR
MANAGER, SERVICE, STRANGER, PASSWORD = fixtures.MANAGER, fixtures.SERVICE, fixtures.STRANGER, fixtures.PASSWORD
STRANGE = b"d\xff/caf\xe9 \xf0\x9f\x98\x80 ?#%2F&+;=.h5".decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def world(postgres_url, mongo_url, certificates, run_directory, tmp_path_factory):
    directory = run_directory / "catalog-site"
    directory.mkdir(mode=0o755)
    with fixtures.world(postgres_url, mongo_url, certificates, directory) as running:
        yield running


@pytest.fixture(scope="module")
def apis(world):
    """Return API objects by class and user; one login each."""
    made = {}

    def api(kind, username=MANAGER):
        if (kind, username) not in made:
            made[kind, username] = world.api(kind, username)
        return made[kind, username]

    yield api
    for each in made.values():
        each.close()


@pytest.fixture
def new_experiment(world):
    """A factory of experiments nobody else uses."""
    api = world.site(ExperimentDsApi)
    made = []

    def add():
        name = f"exp{time.time_ns()}"
        world.ids[name] = api.addExperiment(name, fixtures.STATION, fixtures.STATION)["id"]
        made.append(name)
        return name

    yield add
    api.close()


@pytest.fixture
def http(world):
    with httpx.Client(verify=client_context(world.ca_file), base_url=world.url, timeout=30) as client:
        yield client


def _login(http, username):
    reply = http.post("/login", data={"username": username, "password": PASSWORD})
    assert reply.status_code == 200, reply.text


def _bulk(world, apis, name, records, username=SERVICE):
    full = [{"experimentId": world.ids[name], "experimentName": name, "root": "data", **record} for record in records]
    return apis(CatalogServiceApi, username).upsertFiles(full)


def test_every_route_refuses_strangers(world, http):
    _login(http, STRANGER)
    walked = route_walk.assert_refuses_strangers(
        world.url,
        world.service.server.application.routes,
        world.ca_file,
        http.cookies["SESSIONID"],
        {"experimentName": "exp1", "newExperimentName": "exp10", "experimentFilePath": "a.h5"},
    )
    assert walked > 30


def test_a_members_neighbour_is_a_stranger(apis, world):
    _bulk(world, apis, "exp1", [{"path": "one.h5"}])
    _bulk(world, apis, "exp10", [{"path": "ten.h5"}])
    names = {}
    for user, own, other in ((MEMBER_1, "exp1", "exp10"), (MEMBER_10, "exp10", "exp1")):
        files = apis(FileCatApi, user)
        found = files.getExperimentFiles(own)
        names[own] = {record["experimentFilePath"] for record in found}
        assert {record["experimentName"] for record in found} == {own}
        for call, *arguments in (
            (files.getExperimentFiles, other),
            (files.getExperimentFile, other, "one.h5"),
            (files.getExperimentFileCollectionStats, other),
            (apis(DatasetCatApi, user).getExperimentDatasets, other),
            (apis(RunCatApi, user).getExperimentRuns, other),
        ):
            with pytest.raises(ObjectNotFound, match="does not exist"):
                call(*arguments)
        theirs = apis(FileCatApi).getExperimentFiles(other)[0]["id"]
        with pytest.raises(ObjectNotFound):
            files.getExperimentFileById(own, theirs)
        assert files.getExperimentFiles(own, {"$or": [{"id": theirs}, {"experimentName": other}]}) == []
    assert "one.h5" in names["exp1"] and "ten.h5" in names["exp10"] and not names["exp1"] & names["exp10"]


def test_who_may_write(apis, world):
    _bulk(world, apis, "exp1", [{"path": "w.h5", "fileSize": 5, "md5Sum": "a" * 32}])
    change = {"experimentName": "exp1", "experimentFilePath": "w.h5", "sample": "Cu", "fileSize": 6, "md5Sum": "b" * 32}
    member, investigator = apis(FileCatApi, MEMBER_1), apis(FileCatApi, INVESTIGATOR)
    for call in (
        lambda: member.updateExperimentFile(change),
        lambda: member.updateExperimentFiles([change]),
        lambda: member.updateExperimentFilesAsync([change]),
        lambda: member.addExperimentFile({"experimentName": "exp1", "experimentFilePath": "x"}),
        lambda: member.deleteExperimentFile("exp1", "w.h5"),
        lambda: member.deleteExperimentFileCollection("exp1"),
        lambda: member.renameExperimentFileCollection("exp1", "exp1"),
        lambda: apis(DatasetCatApi, MEMBER_1).addExperimentDataset({"experimentName": "exp1", "datasetName": "d"}),
        lambda: apis(RunCatApi, MEMBER_1).addExperimentRun({"experimentName": "exp1", "runId": "r"}),
        lambda: apis(CatalogServiceApi, INVESTIGATOR).upsertFiles([{"experimentId": world.ids["exp1"]}]),
        lambda: investigator.deleteExperimentFile("exp1", "w.h5"),
        lambda: investigator.deleteExperimentFileCollection("exp1"),
    ):
        with pytest.raises(AuthorizationError):
            call()
    annotated = investigator.updateExperimentFile(change)
    assert (annotated["sample"], annotated["fileSize"], annotated["md5Sum"]) == ("Cu", 5, "a" * 32)
    changed = apis(FileCatApi).updateExperimentFile(change)
    assert (changed["fileSize"], changed["md5Sum"]) == (6, "b" * 32)


def test_bulk_is_idempotent_and_checked(apis, world, new_experiment):
    name = new_experiment()
    records = [
        {
            "path": f"s/f{n}.h5",
            "fileSize": n << 33,
            "fileModificationTime": 1.7e9 + n,
            "md5Sum": f"{n:032x}",
            "digests": {"xxh3_128": f"{n:032x}"},
            "version": 1,
            "replicas": [{"url": f"file:///s/f{n}.h5"}],
            "metadata": {"scan.number": n},
        }
        for n in range(50)
    ]
    first, second = _bulk(world, apis, name, records), _bulk(world, apis, name, records)
    assert (first["nAdded"], second["nAdded"], second["nUpdated"], second["nUnchanged"]) == (50, 0, 0, 50)
    record = apis(FileCatApi).getExperimentFile(name, "s/f7.h5")
    wanted = {
        "fileName": "f7.h5",
        "experimentName": name,
        "fileSize": 7 << 33,
        "fileModificationTime": 1.7e9 + 7,
        "replicas": [{"url": "file:///s/f7.h5", "version": 1}],
        "scan.number": 7,
        "compression": "",
    }
    assert {key: record[key] for key in wanted} == wanted
    assert int(record["fileSize"]) == 7 << 33
    assert record["fileModificationTimestamp"][:5] == "2023/"
    # a manager may do the same, with the right id
    assert _bulk(world, apis, name, records[:1], MANAGER)["nUnchanged"] == 1
    wrong = [
        {"experimentId": world.ids["exp1"], "experimentName": name, "path": "x"},
        {"experimentId": 5, "experimentName": "nowhere", "path": "x"},
        {"experimentId": "5", "experimentName": name, "path": "x"},
        {"experimentId": world.ids[name], "path": "x"},
        {"experimentId": world.ids[name], "experimentName": name, "path": "../x"},
        {"experimentId": world.ids[name], "experimentName": name, "path": "fine"},
    ]
    outcome = apis(CatalogServiceApi, MANAGER).upsertFiles(wrong)
    assert (outcome["nAdded"], outcome["nErrors"]) == (1, 5)
    assert [error["index"] for error in outcome["errors"]] == [0, 1, 2, 3, 4]
    assert apis(CatalogServiceApi, SERVICE).upsertFiles([])["countFiles"] == 0


def test_names_that_are_not_utf8_travel_both_ways(apis, world, new_experiment):
    name = new_experiment()
    assert _bulk(world, apis, name, [{"path": STRANGE, "metadata": {"n\udcff": "v\udcfe"}}])["nErrors"] == 0
    files = apis(FileCatApi)
    record = files.getExperimentFile(name, STRANGE)
    assert record["experimentFilePath"] == STRANGE
    assert record["n\udcff"] == "v\udcfe"
    assert files.getExperimentFileById(name, record["id"]) == record
    assert files.getExperimentFiles(name, {"experimentFilePath": STRANGE}) == [record]
    assert files.getExperimentFiles(name, {"n\udcff": "v\udcfe"}) == [record]
    assert files.updateExperimentFile({**record, "x": 1})["x"] == 1
    assert files.deleteExperimentFile(name, STRANGE)["id"] == record["id"]
    with pytest.raises(ObjectNotFound, match="does not exist"):
        files.getExperimentFile(name, STRANGE)


def test_paging(apis, world, new_experiment, http):
    name = new_experiment()
    count = 2300
    outcome = _bulk(
        world, apis, name, [{"path": f"f{n:05d}", "fileSize": n, "metadata": {"n": n}} for n in range(count)]
    )
    assert outcome["nAdded"] == count
    files = apis(FileCatApi, MANAGER)
    assert [record["n"] for record in files.getExperimentFiles(name)] == list(range(count))
    assert [record["n"] for record in files.getExperimentFiles(name, {}, 2100, 150)] == list(range(2100, 2250))
    assert [record["n"] for record in files.getExperimentFiles(name, {"n": {"$gte": 2290}}, 3)] == list(
        range(2293, count)
    )
    assert len(list(files.iterateExperimentFiles(name, {"fileSize": {"$lt": 100}}))) == 100
    raw = files.getExperimentFiles(name, {}, 0, 100_000, ["fileName", "n"], rawData=True)
    assert isinstance(raw, str)
    assert json.loads(raw)[-1] == {"fileName": f"f{count - 1:05d}", "n": count - 1}
    default = files.getExperimentFiles(name, limit=1, keyList="DEFAULT")[0]
    assert list(default) == [
        "id",
        "fileName",
        "experimentFilePath",
        "experimentName",
        "fileSize",
        "fileModificationTime",
        "fileModificationTimestamp",
        "md5Sum",
        "compression",
    ]
    stats = files.getExperimentFileCollectionStats(name)
    assert (stats["countFiles"], stats["collectionSize"]) == (count, sum(range(count)))
    _login(http, MANAGER)
    page = http.get(f"/experimentFilePages/{name}?limit=7").json()
    assert len(page["files"]) == 7
    page = http.get(f"/experimentFilePages/{name}?limit=7&after={page['after']}&keyList=n").json()
    assert page["files"] == [{"n": n} for n in range(7, 14)]
    listed = http.get(f'/experimentFiles/{name}?queryDict={{"n":{{"$in":[3,5]}}}}&keyList=["n"]')
    assert listed.json() == [{"n": 3}, {"n": 5}]
    too_many = http.get(f"/experimentFiles/{name}?limit=500000")
    assert too_many.json()["errorCode"] == ServiceLimit.code


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ('{"$where":"sleep(1000)"}', "$where"),
        ('{"fileSize":{"$function":{"body":"1"}}}', "$function"),
        ('{"a":{"$expr":1}}', "$expr"),
        ('{"a":{"$regex":"("}}', "("),
        ('{"a":1', "queryDict"),
        ("[1]", "queryDict"),
        ('{"a":NaN}', "NaN"),
        ('{"a":1,"a":2}', "twice"),
    ],
)
def test_bad_queries_are_refused_by_name(http, query, named):
    _login(http, MEMBER_1)
    for path in ("experimentFiles", "experimentFilePages", "experimentDatasets", "experimentRuns"):
        reply = http.get(f"/{path}/exp1", params={"queryDict": query})
        assert reply.status_code == 400, (path, reply.text)
        assert reply.json()["errorCode"] in (InvalidRequest.code, InvalidArgument.code)
        assert named in reply.json()["errorMessage"]
        assert reply.headers["Dm-Status-Code"] == str(reply.json()["errorCode"])


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/experimentFiles/nowhere", None, 404),
        ("GET", "/experimentFiles/exp1?limit=-1", None, 400),
        ("GET", "/experimentFiles/exp1?limit=many", None, 400),
        ("GET", "/experimentFiles/exp1?unknown=1", None, 400),
        ("GET", "/experimentFilePages/exp1?after=1:2", None, 400),
        ("GET", "/experimentFilePages/exp1?limit=100000", None, 400),
        ("GET", "/experimentFilesByPath/exp1/..%2F..%2Fetc%2Fpasswd", None, 400),
        ("GET", "/experimentFilesByPath/exp1/%2Fetc%2Fpasswd", None, 400),
        ("GET", "/experimentFilesByPath/exp1/a?root=system", None, 400),
        ("GET", "/experimentFilesByPath/exp1/not-there", None, 404),
        ("GET", "/experimentFilesById/exp1/nothing", None, 404),
        ("POST", "/experimentFiles/exp1", {"fileInfo": {}}, 400),
        ("POST", "/experimentFiles/exp1", {"fileInfo": {"experimentFilePath": "a", "fileSize": -1}}, 400),
        ("POST", "/experimentFiles/exp1", {"fileInfo": {"experimentFilePath": "a\0"}}, 400),
        ("POST", "/experimentFiles/exp1", {}, 400),
        ("PUT", "/experimentFilesByPath/exp1/not-there", {"fileInfo": {"x": 1}}, 404),
        ("DELETE", "/experimentFilesById/exp1/nothing", None, 404),
        ("DELETE", "/experimentFileCollections/nowhere", None, 404),
        ("POST", "/files/bulk", {"files": [1]}, 400),
        ("GET", "/fileUpdates/nothing", None, 404),
        ("POST", "/fileUpdates/exp1", {"files": []}, 400),
        ("POST", "/experimentDatasets/exp1", {"datasetInfo": {}}, 400),
        ("POST", "/experimentDatasets/exp1", {"datasetInfo": {"datasetName": 5}}, 400),
        ("POST", "/experimentRuns/exp1", {"runInfo": {"runId": ""}}, 400),
        ("GET", "/datasetsById/nothing", None, 404),
        ("GET", "/experimentDatasets/exp1/nothing", None, 404),
        ("GET", "/experimentRuns/exp1/nothing", None, 404),
    ],
)
def test_bad_requests_say_what_is_wrong(http, method, path, body, status):
    _login(http, MANAGER)
    reply = http.request(method, path, json=body)
    assert reply.status_code == status, reply.text
    message = reply.json()["errorMessage"]
    assert message.endswith(".") and len(message) < 500 and "Traceback" not in message


def test_large_bodies(apis, http, world):
    with pytest.raises(ServiceLimit):
        apis(DatasetCatApi).addExperimentDataset(
            {"experimentName": "exp1", "datasetName": "big", "x": "y" * (16 << 20)}
        )
    with pytest.raises(ServiceLimit):
        apis(DatasetCatApi).addExperimentDataset(
            {"experimentName": "exp1", "datasetName": "big", "x": "y" * (20 << 20)}
        )
    outcome = _bulk(world, apis, "exp1", [{"path": "big", "metadata": {"x": "y" * (2 << 20)}}])
    assert outcome["errors"][0]["errorClass"] == "ServiceLimit"
    deep: dict = {}
    for _ in range(150):
        deep = {"a": deep}
    with pytest.raises((InvalidRequest, ServiceLimit), match="deep"):
        apis(DatasetCatApi).addExperimentDataset({"experimentName": "exp1", "datasetName": "deep", "x": deep})


def test_files_one_by_one(apis, new_experiment):
    name = new_experiment()
    files = apis(FileCatApi)
    info = {"experimentName": name, "experimentFilePath": "a/b.h5", "fileSize": 5, "a.b": {"$c": 1}, "id": "ignored"}
    added = files.addExperimentFile(info)
    assert (added["a.b"], added["fileSize"]) == ({"$c": 1}, 5)
    assert added["id"] != "ignored"
    with pytest.raises(ObjectAlreadyExists):
        files.addExperimentFile(info)
    changed = files.updateExperimentFileById({"experimentName": name, "id": added["id"], "title": "t"})
    assert (changed["title"], changed["experimentFilePath"]) == ("t", "a/b.h5")
    outcome = files.updateExperimentFiles(
        [
            {"experimentName": name, "experimentFilePath": "a/b.h5", "n": 1},
            {"experimentFilePath": "missing"},
            {"experimentName": "exp1", "experimentFilePath": "missing"},
        ],
        experimentName=name,
    )
    assert (outcome["countFiles"], outcome["nUpdated"], outcome["nErrors"]) == (3, 1, 2)
    assert {error["experimentName"] for error in outcome["errors"]} == {name, "exp1"}
    submitted = files.updateExperimentFilesAsync([{"experimentName": name, "experimentFilePath": "a/b.h5", "n": 2}])
    deadline = time.monotonic() + 30
    while (status := files.getAsyncUpdateStatus(submitted["id"]))["status"] in ("pending", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (status["status"], status["nUpdated"]) == ("done", 1)
    with pytest.raises(ObjectNotFound):
        apis(FileCatApi, MEMBER_1).getAsyncUpdateStatus(submitted["id"])
    assert files.getExperimentFile(name, "a/b.h5")["n"] == 2
    assert files.deleteExperimentFileById(name, added["id"])["n"] == 2
    for bad in (
        lambda: files.addExperimentFile({"experimentFilePath": "x"}),
        lambda: files.addExperimentFile("x"),
        lambda: files.updateExperimentFile({"experimentName": name}),
        lambda: files.updateExperimentFileById({"experimentName": name}),
        lambda: files.updateExperimentFilesAsync([]),
        lambda: files.addExperimentFile({"experimentName": name, "experimentFilePath": "x", "o": object()}),
    ):
        with pytest.raises(InvalidArgument):
            bad()


def test_collections_follow_renamed_and_deleted_experiments(apis, world, new_experiment):
    old = new_experiment()
    files = apis(FileCatApi)
    assert files.getExperimentFileCollectionStats(old)["countFiles"] == 0
    with pytest.raises(ObjectNotFound, match="does not exist"):
        files.deleteExperimentFileCollection(old)
    _bulk(world, apis, old, [{"path": "a", "fileSize": 3}])
    new = f"{old}b"
    site = world.site(ExperimentDsApi)
    try:
        site.updateExperiment(experimentId=world.ids[old], experimentName=new)
        assert files.getExperimentFile(new, "a")["experimentName"] == new
        _until_forgotten(files, old)
        with pytest.raises(ObjectNotFound):  # the old name is nobody's; the files it once named are another's now
            files.deleteExperimentFileCollection(old)
        assert files.getExperimentFileCollectionStats(new)["countFiles"] == 1
        assert files.renameExperimentFileCollection(old, new)["countFiles"] == 1
        third = new_experiment()
        assert files.renameExperimentFileCollection(new, third)["countFiles"] == 1
        assert files.getExperimentFile(third, "a")["fileSize"] == 3
        with pytest.raises(ObjectNotFound):
            files.renameExperimentFileCollection(new, third)
        operation = site.deleteExperimentByName(third)
        deadline = time.monotonic() + 30
        while site.getOperation(operation["id"])["status"] not in ("done", "failed"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        _until_forgotten(files, third)
        assert files.deleteExperimentFileCollection(third)["countFiles"] == 1
        with pytest.raises(ObjectNotFound, match="does not exist"):
            files.deleteExperimentFileCollection(third)
    finally:
        site.close()


def _until_forgotten(files, name):
    """Wait until the station no longer remembers that the experiment existed a moment ago."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            files.getExperimentFileCollectionStats(name)
        except ObjectNotFound:
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} is still known")


def test_datasets_and_runs(apis, world):
    import numpy

    class Document(dict):
        """As run engines hand them out."""

    datasets, runs = apis(DatasetCatApi, INVESTIGATOR), apis(RunCatApi, INVESTIGATOR)
    nested = {"primary": Document({"start": {"uid": "u", "motors.x": (1, 2), "$y": numpy.float32(0.5)}})}
    info = {
        "experimentName": "exp1",
        "datasetName": "run_uid8_0123abcd",
        "workflow_name": "w",
        "bluesky_metadata": nested,
        "array": numpy.arange(3),
        "nan": float("nan"),
        "huge": (1 << 64) - 1,
        "_id": "5f9c4a52-1f4f-4a0e-9d63-0d2f6f0c9c11",
    }
    added = datasets.addExperimentDataset(info)
    assert added["id"] == added["_id"] == info["_id"]
    assert added["bluesky_metadata"] == {"primary": {"start": {"uid": "u", "motors.x": [1, 2], "$y": 0.5}}}
    assert (added["array"], added["nan"], added["huge"]) == ([0, 1, 2], "NaN", "18446744073709551615")
    assert added["owner"] == INVESTIGATOR
    with pytest.raises(ObjectAlreadyExists):
        datasets.addExperimentDataset(info)
    for bad in ({}, {"experimentName": "exp1"}, {"datasetName": "x"}, "x"):
        with pytest.raises(InvalidArgument):
            datasets.addExperimentDataset(bad)
    second = datasets.addExperimentDataset({"experimentName": "exp1", "datasetName": "a/b ü", "title": "t"})
    assert datasets.getExperimentDataset("exp1", "a/b ü") == second
    assert datasets.getDatasetById(second["id"]) == second
    assert datasets.getDatasetById(info["_id"]) == added
    assert datasets.updateExperimentDataset({**second, "title": "u"})["title"] == "u"
    assert datasets.updateDatasetById({"id": second["id"], "n": 1})["n"] == 1
    assert [d["datasetName"] for d in datasets.getExperimentDatasets("exp1")] == [info["datasetName"], "a/b ü"]
    assert datasets.getExperimentDatasets("exp1", {"title": "u"}, keyList=["id"]) == [{"id": second["id"]}]
    other = apis(DatasetCatApi).addExperimentDataset({"experimentName": "exp10", "datasetName": "theirs"})
    assert [d["datasetName"] for d in apis(DatasetCatApi, MEMBER_10).getDatasets()] == ["theirs"]
    assert {d["experimentName"] for d in apis(DatasetCatApi).getDatasets()} == {"exp1", "exp10"}
    assert len(apis(DatasetCatApi).getDatasets(skip=1, limit=1)) == 1
    for call in (datasets.getDatasetById, lambda id: datasets.updateDatasetById({"id": id, "x": 1})):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            call(other["id"])
    with pytest.raises(AuthorizationError):
        apis(DatasetCatApi, MEMBER_1).updateDatasetById({"id": second["id"], "x": 1})
    _bulk(world, apis, "exp1", [{"path": f"ds/{n}", "metadata": {"ds": n}} for n in range(3)])
    datasets.updateExperimentDataset({**second, "fileQueryDict": {"ds": {"$gte": 1}}})
    assert [f["ds"] for f in datasets.getExperimentDatasetFiles("exp1", "a/b ü")] == [1, 2]
    assert apis(DatasetCatApi).deleteExperimentDataset("exp1", "a/b ü")["id"] == second["id"]

    run = runs.addExperimentRun({"experimentName": "exp1", "runId": "scan/7", "metadata": {"a.b": {"$c": 1}}})
    assert run["id"] and run["metadata"] == {"a.b": {"$c": 1}}
    with pytest.raises(ObjectAlreadyExists):
        runs.addExperimentRun({"experimentName": "exp1", "runId": "scan/7"})
    assert runs.getExperimentRuns("exp1") == [run]
    assert runs.getExperimentRun("exp1", "scan/7") == run
    assert runs.updateExperimentRun({"experimentName": "exp1", "runId": "scan/7", "n": 1})["n"] == 1
    assert apis(RunCatApi).deleteExperimentRun("exp1", "scan/7")["n"] == 1
    for bad in ({"experimentName": "exp1"}, {"runId": "x"}):
        with pytest.raises(InvalidArgument):
            runs.addExperimentRun(bad)


def test_curl_style_arguments(apis, world, http):
    """Plain text and the double base64 of published clients mean the same."""
    _bulk(world, apis, "exp1", [{"path": "c.h5", "metadata": {"curl": 1}}])
    _login(http, MEMBER_1)
    wanted = http.get('/experimentFiles/exp1?queryDict={"curl":1}').json()
    assert [record["experimentFilePath"] for record in wanted] == ["c.h5"]
    coded = "/experimentFiles/b'WlhoM01RPT0='?queryDict=b'ZXlKamRYSnNJam94ZlE9PQ=='"
    assert http.get(coded.replace("WlhoM01RPT0=", "Wlhod01RPT0=")).json() == wanted


def test_health_and_metrics(apis, http):
    monitor = apis(ServiceMonitorCatApi)
    status = monitor.getServiceStatus()
    assert (status["service"], status["station"], status["status"]) == ("catalog", fixtures.STATION, "ok")
    assert monitor.clearServiceStatus()["status"] == "ok"
    root = str(http.base_url).removesuffix("/dm/")
    assert http.get(f"{root}/status").json()["status"] == "ok"
    assert 'dm_catalog_records_total{outcome="added"}' in http.get(f"{root}/metrics").text


def test_api_without_server_or_address(monkeypatch):
    for kind in (FileCatApi, DatasetCatApi, RunCatApi, ServiceMonitorCatApi, CatalogServiceApi):
        kind()
    monkeypatch.setenv("DM_CAT_WEB_SERVICE_URL", "https://127.0.0.1:1")
    with pytest.raises(Exception, match="connection refused"):
        FileCatApi("u", "p").getExperimentFiles("x")


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(world, tmp_path):
    login_file = tmp_path / "login"
    login_file.write_text(f"{MANAGER}|{PASSWORD}\n")
    login_file.chmod(0o600)
    environment = {
        **os.environ,
        "DM_LOGIN_FILE": str(login_file),
        "DM_CAT_WEB_SERVICE_URL": world.url,
        "DM_CA_FILE": str(world.ca_file),
        "DM_HOME": str(tmp_path / "home"),
    }
    with Path(__file__).parents[2].joinpath("pyproject.toml").open("rb") as stream:
        scripts = tomllib.load(stream)["project"]["scripts"]

    def call(name, *arguments):
        module, function = scripts[name].split(":")
        code = f"import sys; from {module} import {function} as main; sys.argv[0] = {name!r}; sys.exit(main())"
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return call


def test_commands(run, apis, world, new_experiment):
    name = new_experiment()
    _bulk(world, apis, name, [{"path": f"f{n}.h5", "fileSize": n, "metadata": {"scan": n}} for n in range(12)])

    def output(command, *arguments):
        result = run(command, *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    lines = output("dm-list-experiment-files", "--experiment", name).splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("id=") and lines[0].endswith(" ") and "experimentFilePath=f0.h5 " in lines[0]
    assert "fileName=f7.h5" in output(
        "dm-get-experiment-files", f"--experiment={name}", "scan:7", "--display-keys=fileName"
    )
    assert output(
        "dm-list-experiment-files", "--experiment", name, "--skip=3", "--limit=2", "--display-keys=fileName"
    ) == ("fileName=f3.h5 \nfileName=f4.h5 \n")
    queried = output("dm-list-experiment-files", "--experiment", name, "--query", '{"scan":{"$gt":9}}', "fileSize:11")
    assert queried.count("\n") == 1
    assert "scan=5 " in output("dm-get-experiment-file", "--experiment", name, "--file-path", "f5.h5")
    updated = output("dm-update-experiment-file", "--experiment", name, "--file-path", "f5.h5", "sample:a:b", "n:7")
    assert "sample=a:b " in updated
    typed = output("dm-update-experiment-file", f"--experiment={name}", "--file=f5.h5", "--json", "n:7", "l:[1]", "t:x")
    assert "n=7 l=[1] t=x" in typed
    file_id = apis(FileCatApi).getExperimentFile(name, "f5.h5")["id"]
    assert "n=7 " in output("dm-get-experiment-file", "--experiment", name, "--id", file_id)
    assert "countFiles=12 collectionSize=66 " in output("dm-get-file-collection-stats", "--experiment", name)
    added = output("dm-add-dataset", f"--experiment={name}", "--dataset=d1", "--query", '{"scan":{"$lt":2}}', "k:v")
    assert "datasetName=d1 " in added
    output("dm-add-dataset", f"--experiment={name}", "--dataset=d2", "--file-path=f9.h5")
    assert output("dm-list-datasets", "--experiment", name, "k:v").count("\n") == 1
    assert "datasetName=d2 " in output("dm-list-datasets")
    assert output("dm-list-dataset-files", f"--experiment={name}", "--dataset=d1").count("\n") == 2
    assert "f9.h5" in output("dm-list-dataset-files", f"--experiment={name}", "--dataset=d2")
    apis(RunCatApi).addExperimentRun({"experimentName": name, "runId": "r1"})
    assert "runId=r1 " in output("dm-list-runs", "--experiment", name)

    refused = run("dm-list-experiment-files", "--experiment", "nowhere")
    assert refused.returncode == ObjectNotFound.code
    assert refused.stderr.startswith("Error: ") and "does not exist" in refused.stderr
    refused = run("dm-list-experiment-files", "--experiment", name, "--query", '{"$where":"1"}')
    assert refused.returncode == InvalidArgument.code and "$where" in refused.stderr
    for wrong in (
        ("dm-get-experiment-file", "--experiment", name),
        ("dm-update-experiment-file", "--experiment", name, "--file-path", "f5.h5"),
        ("dm-list-experiment-files", "--experiment", name, "--query", "[1]"),
        ("dm-list-experiment-files", "--experiment", name, "--query", "{"),
    ):
        assert run(*wrong).returncode == 2


def test_the_service_as_a_process(world, new_mongo_database, certificates, tmp_path):
    port = free_port()
    config = tmp_path / "dm.toml"
    config.write_text(
        f"""
        [station]
        name = "{fixtures.STATION}"
        storage_service_url = "{world.site_url}"
        ca_file = "{world.ca_file}"
        service_password_file = "{world.station.service_password_file}"
        [catalog]
        host = "127.0.0.1"
        port = {port}
        certificate = "{certificates / "server.pem"}"
        key = "{certificates / "server.key"}"
        database_url = "{new_mongo_database()}"
        log_file = "catalog.log"
        """
    )
    command = [sys.executable, "-c", "import sys; from dm.station.catalog.service import main; sys.exit(main())"]
    api = FileCatApi(MANAGER, PASSWORD, f"https://127.0.0.1:{port}", ca_file=world.ca_file)
    record = {"experimentName": "exp1", "experimentFilePath": "a", "fileSize": 1}
    for stop, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        process = subprocess.Popen([*command, "--config", str(config)])
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    found = api.getExperimentFiles("exp1")
                    break
                except CommunicationError:
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.05)
            if stop is signal.SIGKILL:
                assert found == []
                api.addExperimentFile(record)  # what was acknowledged outlives kill -9
            else:
                assert [file["experimentFilePath"] for file in found] == ["a"]
            process.send_signal(stop)
            assert process.wait(10) == status
        finally:
            process.kill()
            process.wait()
    api.close()
    assert "catalog has stopped" in (tmp_path / "catalog.log").read_text()


def test_the_service_says_what_keeps_it_from_starting(tmp_path, capsys):
    config = tmp_path / "dm.toml"
    config.write_text('[catalog]\nprot = 1\ncertificate = "a"\nkey = "b"\ndatabase_url = "mongodb://localhost/x"\n')
    assert main(["--config", str(config)]) == ConfigurationError.code
    said = capsys.readouterr().err
    assert said.startswith("Error: ") and "catalog.prot" in said and str(config) in said
