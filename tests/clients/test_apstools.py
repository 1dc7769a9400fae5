"""apstools: its data-management functions and its workflow connector on a RunEngine, unmodified and live."""

import hashlib

import pytest


@pytest.fixture(scope="module")
def seen(suite, drive, run_directory):
    suite.dm("dm-add-experiment", "--experiment", "apstools-exp", "--type", "TEST")
    source = run_directory / "apstools"
    (source / "watched").mkdir(parents=True)
    (source / "upload").mkdir()
    (source / "upload" / "uploaded.txt").write_text("twelve bytes")
    for directory in (source, source / "watched", source / "upload"):
        directory.chmod(0o755)
    return drive("apstools_live.py", suite.installed.layout.setup, "apstools-exp", source)


def test_setup(seen):
    assert (seen["owner"], seen["station"]) == ("25idc", "25idc")
    assert seen["rootHandlersKept"]


def test_experiments(seen):
    assert "apstools-exp" in seen["experiments"]
    assert "apstools-exp" in seen["table"]
    assert seen["experimentPath"].endswith("/25IDC/apstools-exp")


def test_daq(seen):
    assert seen["daq"]["status"] in {"pending", "running"}
    assert seen["daq"]["sample"] == "silver behenate"
    assert seen["activeDaq"] == seen["daq"]["id"]
    assert seen["daq"]["id"] in seen["daqs"]
    assert seen["watchedFile"] == "while-watched.txt"


def test_upload(seen):
    uploaded = seen["uploaded"]
    assert (uploaded["fileName"], uploaded["experimentFilePath"]) == ("uploaded.txt", "uploaded.txt")
    assert int(uploaded["fileSize"]) == 12
    assert uploaded["md5Sum"] == hashlib.md5(b"twelve bytes").hexdigest()
    assert seen["uploadStatus"] == "done"
    assert seen["ready"] is True
    assert seen["missingReady"] in {False, "ObjectNotFound"}


def test_workflow(seen):
    assert seen["added"] == seen["workflow"] == "apstools-01"
    assert seen["updated"] == "counts bytes"
    assert seen["lastStage"] == "03-DONE"


def test_connector_runs_as_a_plan(seen):
    assert seen["connector"]["status"] == "done"
    assert seen["connector"]["stage"] == "03-DONE"
    assert seen["connector"]["id"] in seen["connectorJobs"]
    assert "apstools-01" in seen["connectorWorkflows"]
    assert "counted 12" in seen["report"]
    assert "01-Count" in seen["report"]
    assert "counted 12" in seen["cacheReport"]


def test_bluesky_run_becomes_a_dataset(seen):
    assert seen["dataset"]["bluesky_run_uid"] == seen["runUid"]
    assert seen["dataset"]["datasetName"] == f"run_uid8_{seen['runUid'][:8]}"
    assert "primary" in seen["datasetStreams"]
