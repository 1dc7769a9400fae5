"""Every key of a DAQ or upload does what it says; statuses and counters are what they are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import InvalidArgument
from dm.common.web.server import Server
from dm.station.acquisition.api import ExperimentDaqApi, UploadInfo
from dm.station.acquisition.spec import TaskSpec
from dm.station.catalog.api import FileCatApi
from tests.service.acquisition_fixtures import MANAGER, Site, running_api, tree, until

_FILES = ("a.dat", "b.txt", ".hidden", "sub/c.dat", "sub/d.TXT", "sub/.deep/e.dat")
_SEEN = ["a.dat", "b.txt", "sub/c.dat", "sub/d.TXT"]


@pytest.fixture(scope="module")
def api(site: Site, catalog: Server, new_mongo_database: Callable[[], str]) -> Iterator[ExperimentDaqApi]:
    plugins = {"catalog": {"url": f"https://localhost:{catalog.port}"}}
    with running_api(site, new_mongo_database(), plugins=plugins) as found:
        yield found


@dataclass
class Bench:
    """An experiment, a source with files, and ways to look at what became of them."""

    api: ExperimentDaqApi
    files: FileCatApi
    experiment: dict[str, Any]
    source: Path

    @property
    def name(self) -> str:
        return str(self.experiment["name"])

    def start(self, **keys: Any) -> UploadInfo:
        """Start an upload of the source."""
        return self.api.upload(self.name, str(self.source), keys)

    def upload(self, **keys: Any) -> UploadInfo:
        """Upload the source and return the record of the end."""
        return self.api.waitUpload(self.start(**keys)["id"], 60)

    def stored(self) -> list[str]:
        """Return what lies in storage, below ``data`` and ``analysis``."""
        root = self.experiment["storageDirectory"]
        found = {
            os.fsdecode(b"/".join((part, path)))
            for part in (b"data", b"analysis")
            for path in tree(os.path.join(root, os.fsdecode(part)))
        }
        return sorted(found)

    def cataloged(self) -> dict[str, dict[str, Any]]:
        """Return the catalog's records by path."""
        return {str(row["experimentFilePath"]): dict(row) for row in self.files.getExperimentFiles(self.name)}


def filled(source: Path) -> Path:
    """Fill a directory with the files of the cases."""
    for number, path in enumerate(_FILES):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(b"%d" % number * 10)
    return source


@contextmanager
def opened(site: Site, catalog: Server) -> Iterator[FileCatApi]:
    files = FileCatApi(*MANAGER, url=f"https://localhost:{catalog.port}", ca_file=site.certificates / "ca.pem")
    yield files
    files.client.close()


@pytest.fixture
def bench(
    api: ExperimentDaqApi, site: Site, catalog: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Bench]:
    with opened(site, catalog) as files:
        experiment = site.experiment(f"k{abs(hash(request.node.name)) % 10**8}")
        yield Bench(api, files, experiment, filled(tmp_path / "source"))


@dataclass(frozen=True)
class Case:
    """Keys, and which files they bring where; ``here`` is replaced by the test's directory."""

    keys: dict[str, Any]
    data: list[str] = field(default_factory=list)
    analysis: list[str] = field(default_factory=list)

    @property
    def stored(self) -> list[str]:
        return sorted([f"data/{path}" for path in self.data] + [f"analysis/{path}" for path in self.analysis])


def name(case: Case) -> str:
    """Return what a case is called."""
    return ",".join(f"{key}={value}" for key, value in case.keys.items()) or "none"


# As scripts give them: words of a command line are texts.
PLACES = [
    Case({}, _SEEN),
    Case({"destDirectory": "run 1/raw"}, [f"run 1/raw/{path}" for path in _SEEN]),
    Case({"targetDirectory": "older/"}, [f"older/{path}" for path in _SEEN]),
    Case({"useAnalysisDirectoryAsRoot": "True"}, analysis=_SEEN),
    Case({"useAnalysisDirectoryAsRoot": 1, "destDirectory": "r"}, analysis=[f"r/{path}" for path in _SEEN]),
    Case({"experimentFilePath": "sub/c.dat"}, ["sub/c.dat"]),
    Case({"experimentFilePath": ".hidden", "processingMode": "Single File"}, [".hidden"]),
    Case({"experimentFilePath": "sub/c.dat", "destDirectory": "x"}, ["x/sub/c.dat"]),
    Case({"processHiddenFiles": "true"}, [*_SEEN, ".hidden", "sub/.deep/e.dat"]),
    Case({"processHiddenFiles": "no"}, _SEEN),
    Case({"filePathPattern": "*.dat"}, ["a.dat", "sub/c.dat"]),
    Case({"filePathPattern": "b.*, sub/c*"}, ["b.txt", "sub/c.dat"]),
    Case({"skipFilePathPattern": "*.dat,sub/*"}, ["b.txt"]),
    Case({"filePathPattern": ["*.dat"], "skipFilePathPattern": "sub/*"}, ["a.dat"]),
    Case({"includeFileExtensions": "txt"}, ["b.txt", "sub/d.TXT"]),
    Case({"includeFileExtensions": "h5, .dat"}, ["a.dat", "sub/c.dat"]),
    Case({"excludeFileExtensions": "txt,h5"}, ["a.dat", "sub/c.dat"]),
    Case({"processingMode": "Files"}, _SEEN),
    Case({"processingMode": "directory"}, _SEEN),
    Case({"skipTransfer": "yes"}),
]


@pytest.fixture(scope="module")
def placed(
    api: ExperimentDaqApi, site: Site, catalog: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Bench, UploadInfo]]]:
    """All the cases, uploaded at the same time."""
    source = filled(tmp_path_factory.mktemp("places") / "source")
    with opened(site, catalog) as files:
        benches = {
            name(case): Bench(api, files, site.experiment(f"place{number}"), source)
            for number, case in enumerate(PLACES)
        }
        started = {name(case): benches[name(case)].start(**case.keys) for case in PLACES}
        yield {key: (benches[key], api.waitUpload(info["id"], 60)) for key, info in started.items()}


@pytest.mark.parametrize("case", PLACES, ids=name)
def test_which_files_go_where(placed: dict[str, tuple[Bench, UploadInfo]], case: Case) -> None:
    bench, record = placed[name(case)]
    assert (record["status"], record["errorMessage"]) == ("done", "")
    assert bench.stored() == case.stored
    assert record["nCompletedFiles"] == (len(case.stored) or len(_SEEN))
    assert record["storageDirectory"].endswith("/analysis" if case.analysis else "/data")
    places = [path.partition("/")[2] for path in case.stored] or _SEEN
    assert sorted(bench.cataloged()) == sorted(places)


def test_a_catalog_only_upload_names_where_the_files_are(bench: Bench) -> None:
    bench.upload(skipTransfer=True)
    record = bench.cataloged()["a.dat"]
    assert len(record["md5Sum"]) == 32
    [replica] = record["replicas"]
    assert (replica["type"], replica["url"]) == ("source", f"file://{bench.source}/a.dat")


def test_without_checksums_files_are_verified_all_the_same(bench: Bench) -> None:
    (bench.source / "large.bin").write_bytes(os.urandom(40 << 20))
    assert bench.upload(skipChecksum="true")["status"] == "done"
    assert {row["md5Sum"] for row in bench.cataloged().values()} == {None}
    assert all(row["digests"] for row in bench.cataloged().values())
    for row in bench.api.listUploadFiles(bench.api.listUploads(bench.name)[-1]["id"]):
        assert row["md5Sum"] is None and row["digests"]
    again = bench.upload(reprocessFiles=True)
    assert again["nCompletedFiles"] == 5
    assert {len(row["md5Sum"] or "") for row in bench.cataloged().values()} == {32}


def test_skipping_the_catalog(bench: Bench) -> None:
    assert bench.upload(skipCatalog=1)["nCompletedFiles"] == 4
    assert bench.cataloged() == {} and len(bench.stored()) == 4


def test_skipping_plugins_by_name(bench: Bench) -> None:
    assert bench.upload(skipPlugins=" catalog ")["skipPlugins"] == "catalog"
    assert bench.cataloged() == {} and len(bench.stored()) == 4
    with pytest.raises(InvalidArgument, match="'nosuch'"):
        bench.upload(skipPlugins="nosuch")


def test_other_keys_are_metadata_of_every_file_and_echoed(bench: Bench) -> None:
    extra = {"sample": "gold", "temperature": 4.5, "tags": ["x", "y"], "nested": {"a.b": {"$c": None}}}
    record = bench.upload(**extra, destDirectory="d")
    rows = bench.cataloged()
    assert len(rows) == 4
    for key, value in extra.items():
        assert record[key] == value
        assert all(row[key] == value for row in rows.values())
    assert all("destDirectory" not in row for row in rows.values())


def test_reprocessing_takes_again_what_was_taken(bench: Bench) -> None:
    assert bench.upload()["nCompletedFiles"] == 4
    nothing = bench.upload()
    assert (nothing["status"], nothing["countFiles"]) == ("done", 0)
    assert "no new files" in nothing["errorMessage"]
    assert bench.upload(reprocessFiles="1")["nCompletedFiles"] == 4


def test_removing_source_files(bench: Bench) -> None:
    assert bench.upload(removeSourceFiles="true")["nCompletedFiles"] == 4
    assert sorted(tree(bench.source)) == [b".hidden", b"sub/.deep/e.dat"]
    assert len(bench.stored()) == 4


def test_a_conflict_is_decided_as_the_key_says(bench: Bench) -> None:
    bench.upload()
    other = bench.source.parent / "other"
    other.mkdir()
    (other / "a.dat").write_bytes(b"other bytes")
    target = Path(bench.experiment["dataDirectory"]) / "a.dat"
    for choice, status, stored in (("fail", "failed", b"0" * 10), ("replace", "done", b"other bytes")):
        bench.source = other
        record = bench.upload(onConflict=choice)
        assert (record["status"], target.read_bytes()) == (status, stored)


# --- DAQs -------------------------------------------------------------------------------------------------------------
def test_a_daq_takes_what_is_there_when_told_to(bench: Bench) -> None:
    daq = bench.api.startDaq(bench.name, str(bench.source), {"processExistingFiles": "false"})
    (bench.source / "new.dat").write_bytes(b"n")
    until(lambda: bench.api.getDaqInfo(daq["id"])["nCompletedFiles"] == 1)
    bench.api.stopDaq(bench.name, str(bench.source))
    bench.api.waitDaq(daq["id"], 60)
    assert bench.stored() == ["data/new.dat"]
    daq = bench.api.startDaq(bench.name, str(bench.source), {"processExistingFiles": "true"})
    until(lambda: bench.api.getDaqInfo(daq["id"])["nCompletedFiles"] == 4)  # what is stored is not taken again
    bench.api.stopDaq(bench.name, str(bench.source))
    assert bench.api.waitDaq(daq["id"], 60)["countFiles"] == 4
    daq = bench.api.startDaq(bench.name, str(bench.source), {"processExistingFiles": True, "reprocessFiles": True})
    until(lambda: bench.api.getDaqInfo(daq["id"])["nCompletedFiles"] == 5)
    bench.api.stopDaq(bench.name, str(bench.source))
    assert bench.api.waitDaq(daq["id"], 60)["status"] == "done"


def test_a_daq_ends_when_its_time_is_over(bench: Bench) -> None:
    keys = {"maxRunTimeInHours": str(1.5 / 3600), "processExistingFiles": 1}
    daq = bench.api.startDaq(bench.name, str(bench.source), keys)
    record = bench.api.waitDaq(daq["id"], 60)
    assert (record["status"], record["nCompletedFiles"]) == ("done", 4)
    assert record["maxRunTimeInHours"] == 1.5 / 3600
    assert record["runTime"] >= 1.4


def test_an_upload_ends_when_its_time_is_over(bench: Bench) -> None:
    record = bench.upload(maxRunTimeInHours=0.001 / 3600)
    assert (record["status"], record["nWaitingFiles"]) == ("aborted", 0)
    assert "maxRunTimeInHours" in record["errorMessage"]


@pytest.mark.parametrize("key", ["uploadDestDirectoryOnExit", "uploadTargetDirectoryOnExit"])
def test_another_directory_is_uploaded_at_the_end_of_a_daq(bench: Bench, key: str) -> None:
    logs = bench.source.parent / "logs"
    logs.mkdir()
    keys = {"uploadDataDirectoryOnExit": str(logs), key: "the logs", "sample": "gold"}
    daq = bench.api.startDaq(bench.name, str(bench.source), keys)
    (logs / "run.log").write_bytes(b"log")
    assert bench.api.listUploads(bench.name) == []
    bench.api.stopDaq(bench.name, str(bench.source))
    assert bench.api.waitDaq(daq["id"], 60)["status"] == "done"
    [upload] = bench.api.listUploads(bench.name)
    assert bench.api.waitUpload(upload["id"], 60)["status"] == "done"
    assert bench.stored() == ["data/the logs/run.log"]
    assert bench.cataloged()["the logs/run.log"]["sample"] == "gold"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"uploadDataDirectoryOnExit": "relative"}, "'relative'"),
        ({"uploadDataDirectoryOnExit": "/tmp", "uploadDestDirectoryOnExit": "../out"}, "'..'"),
        ({"uploadDestDirectoryOnExit": "logs"}, "uploadDataDirectoryOnExit"),
        ({"experimentFilePath": "a.dat"}, "experimentFilePath"),
        ({"workflowName": "w", "workflowOwner": "o"}, "workflow plugin"),
    ],
)
def test_what_a_daq_refuses_at_its_start(bench: Bench, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said.replace(".", r"\.")):
        bench.api.startDaq(bench.name, str(bench.source), keys)


# --- statuses and counters --------------------------------------------------------------------------------------------
def test_counters_say_what_they_are_called(bench: Bench) -> None:
    bench.upload()
    other = bench.source.parent / "other"
    (other / "sub").mkdir(parents=True)
    (other / "a.dat").write_bytes(b"other bytes")  # conflicts
    for number in range(7):
        (other / "sub" / f"n{number}").write_bytes(b"7" * 1000)
    (other / "link").symlink_to("a.dat")
    bench.source = other
    seen: list[dict[str, Any]] = []
    start = bench.api.upload(bench.name, str(other))
    assert start["status"] in ("pending", "running")
    record = bench.api.waitUpload(start["id"], 60, progress=lambda info: seen.append(dict(info)))
    assert record["status"] == "failed"
    for info in [start.data, *seen, record.data]:
        done, failed, skipped = info["nCompletedFiles"], info["nProcessingErrors"], info["nSkippedFiles"]
        assert info["nProcessedFiles"] == done + failed + skipped
        assert info["countFiles"] == info["nFiles"] == info["nProcessedFiles"] + info["nWaitingFiles"]
        assert 0 <= info["percentageComplete"] <= 100
        assert 0 <= info["completedBytes"] <= info["countBytes"]
    assert (record["nCompletedFiles"], record["nProcessingErrors"], record["nSkippedFiles"]) == (7, 1, 1)
    assert (record["nWaitingFiles"], record["percentageComplete"]) == (0, 100)
    assert (record["completedBytes"], record["countBytes"]) == (7000, 7011)
    assert len(record["processingErrors"]) == 1 and "1 of 9 files failed" in record["errorMessage"]
    assert record["fileRate"] > 0 and record["byteRate"] > 0
    assert record["endTime"] >= record["startTime"] and record["endTimestamp"][:2] == "20"
    assert "secondsRemaining" not in record
    page = (Path(__file__).parents[2] / "docs/reference/daq-keys.md").read_text()
    named = {key for info in [*seen, record.data] for key in info}
    assert not [key for key in named if f"`{key}`" not in page]


def test_a_record_waits_for_its_next_revision(bench: Bench) -> None:
    daq = bench.api.startDaq(bench.name, str(bench.source))
    info = until(lambda: (found := bench.api.getDaqInfo(daq["id"]))["status"] == "running" and found)
    settled = bench.api.getDaqInfo(daq["id"], 0.3, info["revision"])
    (bench.source / "new.dat").write_bytes(b"n")
    info = settled
    while not info["nCompletedFiles"]:  # each answer is another one
        before, info = info, bench.api.getDaqInfo(daq["id"], 30, info["revision"])
        assert info["revision"] != before["revision"]
    bench.api.stopDaq(bench.name, str(bench.source))
    assert bench.api.waitDaq(daq["id"], 60)["status"] == "done"


def test_a_stopped_upload_is_aborted_and_can_be_cleared(bench: Bench) -> None:
    (bench.source / "x.tmp").write_bytes(b"x")  # not whole yet
    upload = bench.api.upload(bench.name, str(bench.source), {"skipCatalog": True})
    stopped = bench.api.stopUpload(upload["id"])
    assert stopped["status"] in ("aborting", "aborted")
    record = bench.api.waitUpload(upload["id"], 60)
    assert (record["status"], record["nWaitingFiles"]) == ("aborted", 0)
    assert "stopped by its user" in record["errorMessage"]
    bench.api.clearUpload(upload["id"])
    assert bench.api.listUploads(bench.name) == []
    assert [row["id"] for row in bench.api.listUploadRecords({"experimentName": bench.name})] == [upload["id"]]


def test_no_key_is_forgotten_here() -> None:
    """Every key that the service knows is used by a test of this module, or by the module named."""
    elsewhere = {
        "workflowName": "system/test_acquisition_commands",
        "workflowOwner": "system/test_acquisition_commands",
        "workflowArgs": "system/test_acquisition_commands",
        "workflowJobOwner": "system/test_acquisition_commands",
        "workflowPer": "service/test_acquisition_plugin_workflow",
        "completionRule": "service/test_acquisition_completion",
        "completionArgs": "service/test_acquisition_completion",
        "watchMethod": "service/test_acquisition_completion",
    }
    tests = Path(__file__).parents[1]
    for key in (str(one.alias) for one in TaskSpec.model_fields.values()):
        module = tests / f"{elsewhere[key]}.py" if key in elsewhere else Path(__file__)
        flag = "--" + "".join(f"-{sign.lower()}" if sign.isupper() else sign for sign in key)
        assert key in (text := module.read_text()) or flag in text, key
