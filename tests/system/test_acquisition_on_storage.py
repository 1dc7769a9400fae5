"""Data that lie on storage already: ``@storage`` as beamline scripts write it, cataloged where they are."""

from __future__ import annotations

import ast
import hashlib
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dm.site.storage.api import ExperimentDsApi
from dm.station.catalog.api import FileCatApi
from tests.live import STATION, Suite


@pytest.fixture
def experiment(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name, value in suite.environment.items():
        if name.startswith("DM_"):
            monkeypatch.setenv(name, value)
    name = f"on-storage-{time.time_ns()}"
    with closing(ExperimentDsApi(*suite.manager)) as api:
        return dict(api.addExperiment(name, stationName=STATION, typeName="TEST"))


def cataloged(suite: Suite, name: str) -> dict[str, dict[str, Any]]:
    with closing(FileCatApi(*suite.manager)) as api:
        return {str(record["experimentFilePath"]): dict(record) for record in api.getExperimentFiles(name)}


def info(suite: Suite, command: str, task: str) -> dict[str, Any]:
    text = suite.dm(command, "--id", task, "--display-keys=ALL", "--display-format=dict")
    return dict(ast.literal_eval(text.splitlines()[0]))


def test_files_on_storage_are_cataloged_where_they_are(
    suite: Suite, experiment: dict[str, Any], open_directory: Path
) -> None:
    name, own = str(experiment["name"]), Path(str(experiment["dataDirectory"]))
    storage = str(experiment["storageUrl"]).partition("://")[0]
    (open_directory / "moved.h5").write_bytes(b"moved")
    words = ["--experiment", name, "--data-directory"]
    suite.dm("dm-upload", *words, open_directory, "--wait")
    before = cataloged(suite, name)["moved.h5"]
    assert "localFilePath" not in before

    # somebody's analysis writes there itself
    (own / "derived").mkdir()
    (own / "derived" / "fit ü.h5").write_bytes(b"fit")
    line = suite.dm("dm-upload", *words, f"@{storage}", "--wait", "sample:Cu")
    assert "status=done" in line
    upload = info(suite, "dm-get-upload-info", line.split()[0].removeprefix("id="))
    assert (upload["nCompletedFiles"], upload["skipTransfer"], upload["dataDirectory"]) == (2, True, f"@{storage}")
    found = cataloged(suite, name)
    assert set(found) == {"moved.h5", "derived/fit ü.h5"}
    record = found["derived/fit ü.h5"]
    assert record["md5Sum"] == hashlib.md5(b"fit").hexdigest()
    assert record["localFilePath"] == str(own / "derived" / "fit ü.h5")
    assert record["sample"] == "Cu"
    [replica] = record["replicas"]
    assert (replica["type"], replica["host"]) == ("storage", experiment["storageHost"])
    assert replica["url"] == f"{experiment['storageUrl']}/data/derived/fit%20%C3%BC.h5"
    after = found["moved.h5"]
    assert (after["md5Sum"], after["version"]) == (before["md5Sum"], before["version"])
    assert sorted(replica["type"] for replica in after["replicas"]) == ["source", "storage"]

    # a DAQ on a directory there, started and stopped with the same text
    place = f"@{storage}:{own}/derived"
    daq = suite.dm("dm-start-daq", *words, place).split()[0].removeprefix("id=")
    (own / "derived" / "fit 2.h5").write_bytes(b"second fit")
    deadline = time.monotonic() + 60
    while info(suite, "dm-get-daq-info", daq)["nCompletedFiles"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "status=done" in suite.dm("dm-stop-daq", *words, place, "--wait")
    ended = info(suite, "dm-get-daq-info", daq)
    assert ended["destDirectory"] == "derived"
    assert cataloged(suite, name)["derived/fit 2.h5"]["md5Sum"] == hashlib.md5(b"second fit").hexdigest()

    # what changes there is a new version, however many versions came by transfer
    (open_directory / "moved.h5").write_bytes(b"corrected")
    suite.dm("dm-upload", *words, open_directory, "--wait")
    assert cataloged(suite, name)["moved.h5"]["version"] == 2
    (own / "moved.h5").write_bytes(b"edited on storage")
    assert "status=done" in suite.dm("dm-upload", *words, f"@{storage}", "--wait")
    edited = cataloged(suite, name)["moved.h5"]
    assert (edited["md5Sum"], edited["version"]) == (hashlib.md5(b"edited on storage").hexdigest(), 3)
    # nothing was written to storage, nothing moved
    assert sorted(os.listdir(own)) == ["derived", "moved.h5"]
    assert sorted(os.listdir(own / "derived")) == ["fit 2.h5", "fit ü.h5"]


def test_what_cannot_be_on_storage_is_refused(suite: Suite, experiment: dict[str, Any]) -> None:
    name, own = str(experiment["name"]), str(experiment["dataDirectory"])
    storage = str(experiment["storageUrl"]).partition("://")[0]
    words = ["dm-upload", "--experiment", name, "--data-directory"]
    for place, more, text in (
        (f"@{storage}:{Path(own).parent.parent}", [], "is not below"),
        (f"@{storage}:{own}/missing", [], "does not exist on this machine"),
        (f"@{storage}", ["removeSourceFiles:true"], "removeSourceFiles would remove"),
        (f"@{storage}", ["--dest-directory", "elsewhere"], "leave out destDirectory"),
        ("@nowhere", [], f"@{storage}"),
    ):
        assert text in suite.dm(*words, place, *more, status=8), place
