"""The acquisition commands as a beamline's scripts call them, on a whole running suite, with jobs."""

from __future__ import annotations

import ast
import getpass
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import ObjectNotFound, TaskTimeout
from dm.site.storage.api import ExperimentDsApi
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.catalog.api import FileCatApi
from dm.station.processing.api import WorkflowProcApi
from tests.live import STATION, Suite

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def api(suite: Suite) -> Iterator[Callable[[type], Any]]:
    """A factory of API objects under the station manager's account."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in suite.environment.items():
            if name.startswith("DM_"):
                patch.setenv(name, value)

        def make(cls: type) -> Any:
            made.append(cls(*suite.manager))
            return made[-1]

        yield make
        for client in made:
            client.close()


@pytest.fixture
def experiment(api: Callable[[type], Any]) -> str:
    name = f"commands-{next(_numbers)}"
    api(ExperimentDsApi).addExperiment(name, stationName=STATION, typeName="TEST")
    return name


@pytest.fixture
def source(open_directory: Path) -> Path:
    (open_directory / "run1").mkdir()
    for path, content in (("a.dat", b"a"), ("run1/b.dat", b"bb"), ("run1/c.txt", b"ccc"), (".hidden", b"h")):
        (open_directory / path).write_bytes(content)
    return open_directory


def records(text: str) -> list[dict[str, Any]]:
    """Read what ``--display-format dict`` printed."""
    return [ast.literal_eval(line) for line in text.splitlines()]


def test_upload_from_start_to_clear(suite: Suite, api: Callable[[type], Any], experiment: str, source: Path) -> None:
    line = suite.dm(
        "dm-upload", "--experiment", experiment, f"--data-directory={source}", "--wait", "--timeout", "2m",
        "--dest-directory", "d1", "--exclude-file-extensions", "txt", "sample:Cu 3", "note:a:b",
    )  # fmt: skip
    first = line.split()
    assert first[0].startswith("id=") and "status=done" in first and line.endswith(" \n")
    assert [word.partition("=")[0] for word in first[:8]] == [
        "id", "experimentName", "dataDirectory", "status", "nProcessedFiles", "nProcessingErrors", "countFiles",
        "startTime",
    ]  # fmt: skip
    upload = first[0].removeprefix("id=")
    found = api(FileCatApi).getExperimentFiles(experiment)
    assert sorted(record["experimentFilePath"] for record in found) == ["d1/a.dat", "d1/run1/b.dat"]
    assert {record["sample"] for record in found} == {"Cu 3"} and {record["note"] for record in found} == {"a:b"}
    assert {replica["type"] for record in found for replica in record["replicas"]} == {"storage", "source"}
    (info,) = records(suite.dm("dm-get-upload-info", "--id", upload, "-a", "--display-format", "dict"))
    assert info["destDirectory"] == "d1" and info["nCompletedFiles"] == 2 and info["sample"] == "Cu 3"
    files = records(suite.dm("dm-list-daq-files", "--id", upload, "--display-format=dict"))
    assert sorted(record["path"] for record in files) == ["a.dat", "run1/b.dat"]
    assert {record["state"] for record in files} == {"done"}
    assert suite.dm("dm-list-daq-files", "--id", upload, "--state", "failed") == ""
    assert len(records(suite.dm("dm-list-daq-files", "--id", upload, "--limit=1", "--display-format=dict"))) == 1
    assert f"id={upload} " in suite.dm("dm-wait-upload", "--id", upload)
    assert f"id={upload} " in suite.dm("dm-list-uploads", "--experiment", experiment, "--status=done")
    assert suite.dm("dm-list-uploads", "--experiment", experiment, "--status=failed") == ""
    assert f"id={upload} " in suite.dm("dm-stop-upload", "--id", upload)
    suite.dm("dm-clear-upload", "--id", upload)
    assert suite.dm("dm-list-uploads", "--experiment", experiment) == ""
    assert f"id={upload} " in suite.dm("dm-list-upload-records", "--experiment", experiment)
    assert suite.dm("dm-list-upload-records", f"experimentName:{experiment}", "--skip=1") == ""


def test_nothing_new_and_reprocess(suite: Suite, experiment: str, source: Path) -> None:
    words = ["dm-upload", "--experiment", experiment, "--data-directory", source, "--wait", "--display-format=dict"]
    keys = ["--display-keys", "countFiles,status,errorMessage"]
    assert records(suite.dm(*words, *keys))[0]["countFiles"] == 3
    again = records(suite.dm(*words, *keys))[0]
    assert again["countFiles"] == 0 and "no new files" in again["errorMessage"].lower()
    assert records(suite.dm(*words, *keys, "--reprocess"))[0]["countFiles"] == 3


def test_daq_from_start_to_clear(suite: Suite, api: Callable[[type], Any], experiment: str, source: Path) -> None:
    words = ["--experiment", experiment, "--data-directory", str(source)]
    line = suite.dm("dm-start-daq", *words, "--duration", "1d", "--process-existing", "beamtime:x")
    daq = line.split()[0].removeprefix("id=")
    assert suite.dm("dm-start-daq", *words, "--duration", "1d").split()[0] == f"id={daq}"
    (source / "new.dat").write_bytes(b"new")
    assert f"id={daq} " in suite.dm("dm-list-daqs", "--experiment", experiment, "--status", "running")
    (info,) = records(suite.dm("dm-get-daq-info", "--id", daq, "--display-keys=ALL", "--display-format=dict"))
    assert info["maxRunTimeInHours"] == 24 and info["processExistingFiles"] is True and info["beamtime"] == "x"
    with pytest.raises(TaskTimeout, match=f"{daq} is not finished after 0.2 s: its status is 'running'"):
        api(ExperimentDaqApi).waitDaq(daq, 0.2)
    stopped = suite.dm("dm-stop-daq", *words, "--wait")
    assert f"id={daq} " in stopped and "status=done" in stopped and "nProcessedFiles=4" in stopped
    assert len(api(FileCatApi).getExperimentFiles(experiment)) == 4
    suite.dm("dm-clear-daq", "--id", daq)
    assert suite.dm("dm-list-daqs", "--experiment", experiment) == ""
    assert "does not exist" in suite.dm("dm-get-daq-info", "--id", daq, status=ObjectNotFound.code)


def test_refusals_are_one_line_with_the_code_as_exit_status(suite: Suite, experiment: str, source: Path) -> None:
    cases = [
        (["--experiment", "no-such-one", "--data-directory", source], 14, "'no-such-one'"),
        (["--experiment", experiment, "--data-directory", "/no/such/folder"], 8, "'/no/such/folder'"),
        (["--experiment", experiment, "--data-directory", "relative"], 8, "'relative'"),
        (["--experiment", experiment, "--data-directory", source, "--dest-directory", "../x"], 8, "'../x'"),
        (["--experiment", experiment, "--data-directory", source, "--workflow-name", "w"], 8, "workflowOwner"),
        (
            ["--experiment", experiment, "--data-directory", source, "--workflow-name=none", "--workflow-owner=d1"],
            14,
            "none",
        ),
        (["--experiment", experiment, "--data-directory", source, "skipCatalog:perhaps"], 8, "'perhaps'"),
        (["--experiment", experiment, "--data-directory", source, "--skip-plugins", "nonsense"], 8, "nonsense"),
        (["--experiment", experiment, "--data-directory", source, "word"], 2, "'word'"),
    ]
    for words, status, text in cases:
        error = suite.dm("dm-upload", *words, status=status)
        assert text in error, (words, error)
        assert status == 2 or (error.startswith("Error: ") and error.count("\n") == 1)
    assert suite.dm("dm-list-uploads", "--experiment", experiment) == ""


def test_failed_files_are_listed_and_retried(
    suite: Suite, api: Callable[[type], Any], experiment: str, source: Path, open_directory: Path
) -> None:
    suite.dm("dm-upload", "--experiment", experiment, "--data-directory", source, "--wait")
    other = open_directory / "other"
    other.mkdir()
    (other / "a.dat").write_bytes(b"other bytes at the same place")
    (other / "z.dat").write_bytes(b"z")
    error = suite.dm("dm-upload", "--experiment", experiment, "--data-directory", other, "--wait", status=11)
    assert error.startswith("Error: ") and error.count("\n") == 1
    upload = api(ExperimentDaqApi).listUploads(experiment)[-1]["id"]
    (failed,) = records(suite.dm("dm-list-daq-files", "--id", upload, "--state=failed", "--display-format=dict"))
    assert failed["path"] == "a.dat" and failed["lastError"]
    assert upload in suite.dm("dm-wait-upload", "--id", upload, status=11)


def test_failed_files_of_a_daq_are_tried_again(
    suite: Suite, api: Callable[[type], Any], experiment: str, source: Path, open_directory: Path
) -> None:
    suite.dm("dm-upload", "--experiment", experiment, "--data-directory", source, "--wait")
    other = open_directory / "other"
    other.mkdir()
    (other / "a.dat").write_bytes(b"other bytes at the same place")
    words = ["--experiment", experiment, "--data-directory", other]
    daq = suite.dm("dm-start-daq", *words, "--process-existing").split()[0].removeprefix("id=")
    deadline = time.monotonic() + 60
    while not api(ExperimentDaqApi).listDaqFiles(daq, "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert suite.dm("dm-retry-daq-files", "--id", daq, "--path", "a.dat") == "count=1 \n"
    assert "does not exist" in suite.dm("dm-retry-daq-files", "--id", "none", status=14)
    suite.dm("dm-stop-daq", *words)
    assert api(ExperimentDaqApi).waitDaq(daq, 60)["nProcessingErrors"] == 1


def test_where_is_my_file(
    suite: Suite, api: Callable[[type], Any], experiment: str, source: Path, open_directory: Path
) -> None:
    """Asked, waited for, exported, left out, tried again and processed again, during and after a DAQ."""
    words = ["--experiment", experiment, "--data-directory", source]
    daq = suite.dm("dm-start-daq", *words, "--process-existing").split()[0].removeprefix("id=")
    waited = suite.dm(
        "dm-wait-file", "--experiment", experiment, "--path=run1/b.dat", "--until=cataloged", "--timeout=2m"
    )
    assert waited.startswith("path=run1/b.dat state=")
    sentence, facts = suite.dm("dm-explain-file", "--source", source / "run1" / "b.dat").splitlines()
    assert sentence.startswith("It is there: 'data/run1/b.dat'; the DAQ ") and sentence.endswith(".")
    assert facts.startswith(f"reason=done daqId={daq} ")
    assert "processHiddenFiles" in suite.dm("dm-explain-file", "--id", daq, "--path", ".hidden").splitlines()[0]
    assert suite.dm("dm-skip-daq-files", "--id", daq, "--path", "later.dat", "--reason", "shutter") == "count=1 \n"
    (source / "later.dat").write_bytes(b"later")
    assert "is skipped: Left out by" in suite.dm("dm-wait-file", "--id", daq, "--path", "later.dat", status=11)
    suite.dm("dm-stop-daq", *words)
    assert "status=done" in suite.dm("dm-wait-daq", "--id", daq, "--timeout", "2m")
    (counts,) = records(suite.dm("dm-list-daq-files", "--id", daq, "--counts", "--display-format=dict"))
    assert (counts["countFiles"], counts["done"], counts["skipped"]) == (4, 3, 1)
    assert suite.dm(
        "dm-list-daq-files", "--id", daq, "--pattern=*.txt", "--since=1h", "--display-keys=path"
    ).split() == ["path=run1/c.txt"]
    timeline = suite.dm("dm-get-daq-file", "--id", daq, "--path", "later.dat", "--timeline")
    assert "event=skipped" in timeline and suite.manager[0] in timeline and "shutter" in timeline
    table = open_directory / "files.csv"
    suite.dm("dm-export-daq-files", "--id", daq, "--output", table)
    assert len(table.read_text().splitlines()) == 5 and not list(open_directory.glob(".*.part"))
    assert '"path": "later.dat"' in suite.dm("dm-export-daq-files", "--id", daq, "--format=jsonl", "--state=skipped")
    assert suite.dm("dm-reprocess-daq-files", "--id", daq, "--plugins=catalog", "--pattern=*.dat") == "count=2 \n"
    assert "status=done" in suite.dm("dm-wait-daq", "--id", daq)
    assert suite.dm("dm-retry-daq-files", "--id", daq, "--state=skipped") == "count=1 \n"
    assert "nProcessedFiles=4" in suite.dm("dm-wait-daq", "--id", daq)
    assert api(FileCatApi).getExperimentFile(experiment, "later.dat")["fileSize"] == 5
    assert "is not 'done'" not in suite.dm("dm-wait-file", "--id", daq, "--path", "none", status=14)
    assert "is no time" in suite.dm("dm-list-daq-files", "--id", daq, "--since", "yesterday", status=2)


def test_plugins_are_listed_in_their_order(suite: Suite) -> None:
    names = suite.dm("dm-list-processing-plugins", "--display-keys", "name").split()
    assert names == ["name=metadata", "name=catalog", "name=workflow"]


def test_a_job_per_file_and_one_per_directory(
    suite: Suite, api: Callable[[type], Any], experiment: str, source: Path
) -> None:
    owner = suite.manager[0]
    jobs = api(WorkflowProcApi)
    command = "echo File: $filePath, is $experimentFilePath of $experimentName, colour $colour"
    jobs.upsertWorkflow({"name": "tell", "owner": owner, "stages": {"1": {"command": command}}})
    words = [
        "--experiment", experiment, "--data-directory", source, "--workflow-name", "tell", "--workflow-owner", owner,
        "--workflow-args", "colour:red experimentFilePath:none", "--wait",
    ]  # fmt: skip
    suite.dm("dm-upload", *words)
    started = [job for job in jobs.listProcessingJobs(owner, keyList="ALL") if job.get("experimentName") == experiment]
    assert sorted(job["experimentFilePath"] for job in started) == ["a.dat", "run1/b.dat", "run1/c.txt"]
    root = api(ExperimentDsApi).getExperimentByName(experiment, STATION)["dataDirectory"]
    for job in started:
        assert job["filePath"] == os.path.join(root, job["experimentFilePath"]) and job["colour"] == "red"
        done = jobs.waitProcessingJob(owner, job["id"], 60)
        assert done["status"] == "done" and done["owner"] == owner
        (child,) = jobs.getProcessingJobById(owner, job["id"]).getWorkflowStage("1")["childProcesses"].values()
        assert f"File: {job['filePath']}, is {job['experimentFilePath']}" in child["stdOut"]
    suite.dm("dm-upload", *words, "--reprocess", "--processing-mode=directory", "run:second")
    further = [
        job
        for job in jobs.listProcessingJobs(owner, keyList="ALL")
        if job.get("experimentName") == experiment and job["id"] not in {known["id"] for known in started}
    ]
    assert [job["filePath"] for job in further] == [root]


def test_jobs_of_a_daq_belong_to_whom_its_keys_name(
    suite: Suite, api: Callable[[type], Any], experiment: str, source: Path
) -> None:
    owner = suite.manager[0]
    jobs = api(WorkflowProcApi)
    jobs.upsertWorkflow({"name": "whose", "owner": owner, "stages": {"1": {"command": "echo $filePath"}}})
    words = ["--experiment", experiment, "--data-directory", source]
    daq = suite.dm(
        "dm-start-daq", *words, "--process-existing", "workflowName:whose", f"workflowOwner:{owner}",
        "workflowJobOwner:d123456", "processingMode:Directory",
    ).split()[0].removeprefix("id=")  # fmt: skip
    (info,) = records(suite.dm("dm-get-daq-info", "--id", daq, "-a", "--display-format=dict"))
    assert info["workflowJobOwner"] == "d123456" and info["processingMode"] == "directory"
    suite.dm("dm-stop-daq", *words, "--wait")
    (job,) = jobs.listProcessingJobs("d123456", keyList="ALL")
    root = api(ExperimentDsApi).getExperimentByName(experiment, STATION)["dataDirectory"]
    assert (job["owner"], job["daqId"], job["filePath"]) == ("d123456", daq, root)


def test_a_host_that_cannot_be_reached_is_refused_at_once(suite: Suite, experiment: str, source: Path) -> None:
    directory = f"@{getpass.getuser()}@host.invalid:{source}"
    error = suite.dm("dm-upload", "--experiment", experiment, "--data-directory", directory, status=3)
    assert "host.invalid" in error
