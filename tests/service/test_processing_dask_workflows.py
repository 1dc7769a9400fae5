"""The same workflow on ``local`` and on ``dask``: the same results; who may not run there is told."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.service import storage_fixtures as storage
from tests.service.dask_server import DaskServer
from tests.service.processing_fixtures import OWNER, PATIENCE, STAGE_ACCOUNT, Running, running_processing

STAGES: dict[str, Any] = {
    "1-words": {
        "command": "echo \"word: $word\"; echo number: 42; echo to-err >&2; printf 'no newline'",
        "outputVariableRegexList": [r"word: (?P<found>.*)\n", r"number: (?P<count>\d+)"],
    },
    "2-structured": {"command": 'printf \'{"mean": 1.5, "list": [1, 2]}\' >"$DM_OUTPUT_FILE"; id -un; pwd; umask'},
    "3-uses": {
        "command": "echo $found/$count/$mean/$list; env | cut -d= -f1 | sort | tr '\\n' ' '",
        "runIf": "$count > 40",
    },
    "4-skipped": {"command": "echo never", "runIf": "$count < 40"},
    "5-files": {"command": 'echo "<$filePath>"', "parallelExec": True, "workingDir": "/tmp"},
    "6-bytes": {"command": "head -c 100000 /dev/zero | tr '\\0' x; printf '\\377\\000'"},
    "7-fails": {"command": "/no/such/program; exit 7", "onFailure": "continue"},
    "8-killed": {"command": "kill -15 $$", "onFailure": "continue"},
    "9-slow": {"command": "echo begun; sleep 60", "timeout": 1, "onFailure": "continue"},
    "a-last": {"command": "echo $PATH; cat; exit 3"},
}


@pytest.fixture(scope="module")
def service(
    dask_server: DaskServer,
    postgres_url: str,
    mongo_url: str,
    certificates: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    dask = dask_server.settings().model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    executors = {"local": {"output_grace": 1.0}, "dask": dask}
    users = {"user_accounts": ["games"]} if STAGE_ACCOUNT else {}
    with (
        storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as site,
        running_processing(
            site,
            mongo_url,
            certificates,
            tmp_path_factory.mktemp("p"),
            executors=executors,
            concurrent_stages=8,
            **users,
        ) as running,
    ):
        yield running


def compared(job: dict[str, Any]) -> dict[str, Any]:
    """Return what of a record does not depend on when and under which key it ran."""
    stages = {
        name: {
            "status": stage["status"],
            "childProcesses": {
                number: {
                    key: process.get(key)
                    for key in ("command", "status", "exitStatus", "signal", "stdErr", "stdOut", "workingDir", "lost")
                }
                for number, process in stage["childProcesses"].items()
            },
        }
        for name, stage in job["workflow"]["stages"].items()
    }
    keys = ("status", "found", "count", "mean", "list", "errorMessage", "countFiles")
    return {"stages": stages, **{key: job.get(key) for key in keys}}


def result_on(service: Running, executor: str, more_time: bool = False) -> dict[str, Any]:
    """Return what the workflow gives on an executor.

    :param more_time: leave out the stage with a time limit: it counts from before the first worker is there.
    """
    stages = {name: {**stage, "executor": executor} for name, stage in STAGES.items()}
    if more_time:
        del stages["9-slow"]
    name = service.workflow(stages, name=f"on-{executor}")
    files = [f"/data/{name}" for name in ("a.h5", "with blank", "$(touch x)`y`", "ü'\"\\")]
    job = service.start(name, filePathList=files, word="some words; $(date)")
    return compared(json.loads(json.dumps(dict(service.finished(job)))))


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Say which process differs, if any does."""
    for name, stage in other["stages"].items():
        for number, process in stage["childProcesses"].items():
            assert one["stages"][name]["childProcesses"].get(number) == process, (name, number)
    assert one == other


def test_the_same_results(service: Running) -> None:
    here = result_on(service, "local")
    assert here["status"] == "failed" and here["found"] == "some words; $(date)"
    same(result_on(service, "dask"), here)


def test_output_kept_whole(service: Running) -> None:
    job = service.run({"1": {"command": "seq 200000; seq 10 >&2", "executor": "dask"}})
    assert job["status"] == "done"
    process = job["workflow"]["stages"]["1"]["childProcesses"]["0"]
    assert process["stdOut"].startswith("1\n2\n") and process["stdOut"].endswith("199999\n200000\n")
    whole = "".join(f"{number}\n" for number in range(1, 200_001)).encode()
    assert service.processing is not None
    kept = service.processing.engine.context.logs.path(job["id"], 0, "stdout")
    assert kept is not None and kept.read_bytes() == whole


def test_other_accounts_are_refused(service: Running) -> None:
    if STAGE_ACCOUNT is None:
        return  # only root can have stages of another account without setting up sudo
    name = service.workflow({"1": {"command": "id", "executor": "dask"}}, name="other", userAccount="games")
    job = service.finished(service.start(name))
    assert job["status"] == "failed"
    assert "Stages on dask run under 'nobody', the account of the workers, not under 'games'" in job["errorMessage"]


def test_an_abort_reaches_the_worker(service: Running) -> None:
    name = service.workflow({"1": {"command": "sleep 654", "executor": "dask"}}, name="long")
    job = service.start(name)
    deadline = time.monotonic() + PATIENCE
    while not sleeping():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    service.api().stopProcessingJob(OWNER, job["id"])
    assert service.finished(job)["status"] == "aborted"
    while sleeping():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sleeping() -> bool:
    return any(process.info["cmdline"] == ["sleep", "654"] for process in psutil.process_iter(["cmdline"]))
