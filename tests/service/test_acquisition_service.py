"""The Data Acquisition Service through its public doors: REST, the Python API, its process."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dm.common.client import RestClient, segment
from dm.common.errors import (
    AuthorizationError,
    ConfigurationError,
    InvalidArgument,
    InvalidObjectState,
    InvalidRequest,
    ObjectNotFound,
)
from dm.common.web.server import Server
from dm.station.acquisition.api import ExperimentDaqApi, ServiceMonitorDaqApi
from dm.station.catalog.api import FileCatApi
from tests.service.acquisition_fixtures import ADMIN, MANAGER, STATION, Site, running_service, tree, until

STRANGER = ("d999999", "the stranger's password")


@pytest.fixture(scope="module")
def site(site: Site) -> Site:
    """A site with a user who has no role."""
    site.client(ADMIN).post("/users", {"username": STRANGER[0], "password": STRANGER[1]})
    return site


@pytest.fixture(scope="module")
def database(new_mongo_database: Callable[[], str]) -> str:
    return new_mongo_database()


@pytest.fixture(scope="module")
def service(site: Site, catalog: Server, database: str) -> Iterator[Server]:
    plugins = {"metadata": {}, "catalog": {"url": f"https://localhost:{catalog.port}"}}
    with running_service(site, database, plugins=plugins) as server:
        yield server


def url(server: Server) -> str:
    return f"https://localhost:{server.port}"


@pytest.fixture
def api(service: Server, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExperimentDaqApi]:
    monkeypatch.setenv("DM_CA_FILE", str(site.certificates / "ca.pem"))
    found = ExperimentDaqApi(*MANAGER, url=url(service))
    yield found
    found.client.close()


@pytest.fixture
def client(service: Server, site: Site) -> Iterator[RestClient]:
    with RestClient(url(service), *MANAGER, ca_file=site.certificates / "ca.pem") as found:
        yield found


def test_from_the_detector_to_the_catalog(api: ExperimentDaqApi, site: Site, catalog: Server, tmp_path: Path) -> None:
    experiment = site.experiment("catalogued")
    daq = api.startDaq("catalogued", str(tmp_path), {"sample": "gold", "processExistingFiles": "true"})
    assert api.startDaq("catalogued", str(tmp_path))["id"] == daq["id"]
    for number in range(5):
        (tmp_path / f"scan_{number}.dat").write_bytes(b"%d" % number * 100)
    until(lambda: api.getDaqInfo(daq["id"])["nCompletedFiles"] == 5)
    assert daq["id"] in [row["id"] for row in api.listDaqs(experimentName="catalogued")]
    assert {row["state"] for row in api.listDaqFiles(daq["id"])} == {"done"}
    with pytest.raises(InvalidObjectState, match="stop it first"):
        api.clearDaq(daq["id"])
    api.stopDaq("catalogued", str(tmp_path))
    assert api.waitDaq(daq["id"], 30)["status"] == "done"
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)
    files = FileCatApi(*MANAGER, url=url(catalog))
    try:
        records = files.getExperimentFiles("catalogued", {})
        assert {row["experimentFilePath"] for row in records} == {f"scan_{number}.dat" for number in range(5)}
        assert all(row["sample"] == "gold" and len(row["md5Sum"]) == 32 for row in records)
    finally:
        files.client.close()
    api.clearDaq(daq["id"])
    with pytest.raises(ObjectNotFound, match="does not exist"):
        api.getDaqInfo(daq["id"])


def test_an_upload_through_the_api(api: ExperimentDaqApi, site: Site, tmp_path: Path) -> None:
    site.experiment("uploaded")
    (tmp_path / "a").write_bytes(b"1")
    first = api.waitUpload(api.upload("uploaded", str(tmp_path))["id"], 30)
    assert first["status"] == "done"
    second = api.waitUpload(api.upload("uploaded", str(tmp_path), {"reprocessFiles": True})["id"], 30)
    assert [row["id"] for row in api.listUploadRecords({"experimentName": "uploaded"})] == [first["id"], second["id"]]
    assert [row["id"] for row in api.listUploadRecords({"experimentName": "uploaded"}, limit=1)] == [second["id"]]
    for query, found in (({"countFiles": "1"}, 2), ({"countFiles": 1, "status": "done"}, 2), ({"countFiles": "2"}, 0)):
        assert len(api.listUploadRecords({"experimentName": "uploaded", **query})) == found
    api.clearUpload(first["id"])
    assert len(api.listUploads("uploaded")) == 1
    assert len(api.listUploadRecords({"experimentName": "uploaded"})) == 2
    with pytest.raises(InvalidArgument, match="plain equality"):
        api.listUploadRecords({"$where": "1"})
    assert api.retryUploadFiles(second["id"]) == {"count": 0}
    assert api.waitUpload(second["id"], 30)["status"] == "done"
    assert api.stopUpload(second["id"])["status"] == "done"
    assert [row["name"] for row in api.listProcessingPlugins()] == ["metadata", "catalog"]


def test_arguments_as_published_clients_send_them(client: RestClient, site: Site, tmp_path: Path) -> None:
    site.experiment("encoded")

    def twice(text: str) -> str:
        return str(base64.b64encode(base64.b64encode(text.encode())))

    (tmp_path / "a b").mkdir()
    record = client.post(
        f"/experimentsByName/{segment(twice('encoded'))}/startDaq/{segment(twice(str(tmp_path / 'a b')))}",
        taskInfo=twice(json.dumps({"skipFilePathPattern": "*.tmp", "sample": "x"})),
    )
    assert record["dataDirectory"] == str(tmp_path / "a b")
    assert record["sample"] == "x"
    for key in ("experimentName", "experimentStationName", "id", "status", "storageDirectory", "storageHost",
                "storageUrl", "workflowJobOwner"):  # fmt: skip
        assert isinstance(record[key], str)
    assert isinstance(record["startTime"], float)
    stopped = client.post(f"/daqs/{record['id']}/stop")
    assert stopped["id"] == record["id"]
    until(lambda: client.get(f"/daqs/{record['id']}", waitTime=5)["status"] == "done")


def test_refusals(client: RestClient, site: Site, tmp_path: Path) -> None:
    site.experiment("refusing")
    place = segment(str(tmp_path))
    with pytest.raises(ObjectNotFound, match="does not exist"):
        client.post(f"/experimentsByName/unheardof/startDaq/{place}")
    with pytest.raises(InvalidArgument, match="maybe"):
        client.post(f"/experimentsByName/refusing/startDaq/{place}", {"taskInfo": {"processExistingFiles": "maybe"}})
    with pytest.raises(InvalidRequest):
        client.post(f"/experimentsByName/refusing/startDaq/{place}", {"taskInfo": "{not json"})
    with pytest.raises(ObjectNotFound, match="does not exist"):
        client.post(f"/experimentsByName/refusing/stopDaq/{place}")
    for path in ("/daqs/nosuch", "/uploads/nosuch", "/daqs/nosuch/files"):
        with pytest.raises(ObjectNotFound):
            client.get(path)
    with pytest.raises(InvalidArgument, match="unknown"):
        upload = client.post(f"/experimentsByName/refusing/upload/{place}")
        client.get(f"/uploads/{upload['id']}/files", state="perhaps")


def test_strangers_see_nothing(service: Server, client: RestClient, site: Site, tmp_path: Path) -> None:
    site.experiment("secret")
    (tmp_path / "f").write_bytes(b"1")
    upload = client.post(f"/experimentsByName/secret/upload/{segment(str(tmp_path))}")
    with RestClient(url(service), *STRANGER, ca_file=site.certificates / "ca.pem") as stranger:
        assert stranger.get("/uploads") == []
        assert stranger.get("/uploadRecords") == []
        one = f"/uploads/{upload['id']}"
        for path in (one, f"{one}/files", f"{one}/fileCounts", f"{one}/file?path=f", f"{one}/files/export"):
            with pytest.raises(ObjectNotFound):
                stranger.get(path)
        for path in ("/fileExplanation", "/fileWait"):
            with pytest.raises(ObjectNotFound):
                stranger.get(path, id=upload["id"], path="f")
        with pytest.raises(ObjectNotFound):
            stranger.get("/fileExplanation", experimentName="secret", path="f")
        told = stranger.get("/fileExplanation", sourcePath=f"{tmp_path}/f")
        assert told["reason"] == "notWatched" and set(told) == {"path", "ledger", "timeline", "reason", "explanation"}
        assert stranger.get("/fileWait", experimentName="secret", path="f")["state"] == "unknown"
        for path in (f"{one}/stop", f"{one}/retry", f"{one}/skip", f"{one}/reprocess",
                     f"/experimentsByName/secret/upload/{segment(str(tmp_path))}"):  # fmt: skip
            with pytest.raises(AuthorizationError):
                stranger.post(path)
        site.client().post(
            "/userExperimentRoles",
            {"username": STRANGER[0], "roleName": "User", "experimentName": "secret", "stationName": STATION},
        )
        # What the site said before is remembered for a few seconds.
        seen = until(lambda: [row["id"] for row in stranger.get("/uploads")])
        assert seen == [upload["id"]]


def test_health(service: Server, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DM_CA_FILE", str(site.certificates / "ca.pem"))
    monitor = ServiceMonitorDaqApi(*MANAGER, url=url(service))
    try:
        status = monitor.getServiceStatus()
        assert status["status"] == "ok"
        assert {check["name"] for check in status["checks"]} >= {"database", "lease", "progress", "backlog", "sources"}
        assert monitor.clearServiceStatus()["service"] == "acquisition"
        import httpx

        text = httpx.get(f"{url(service)}/metrics", verify=monitor.client._tls()).text
        for name in ("dm_files{", "dm_file_bytes{", "dm_oldest_unfinished_seconds", "dm_lag_seconds_bucket"):
            assert name in text
    finally:
        monitor.client.close()


def test_a_second_service_on_the_same_database_refuses(service: Server, site: Site, database: str) -> None:
    with pytest.raises(ConfigurationError, match="Another acquisition service"), running_service(site, database):
        pass
