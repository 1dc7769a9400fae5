"""Job records, statement by statement as published: keys, types, counters, numbers, times, lists and queries."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common import timestamps
from dm.common.errors import InvalidArgument, InvalidRequest
from dm.station.processing.accounts import default
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, PATIENCE, STAGE_ACCOUNT, Running, running_processing

TIMESTAMP = re.compile(r"\d{4}/\d{2}/\d{2} \d{2}:\d{2}:\d{2} \S+")
OF_THE_ENGINE = {
    "id",
    "owner",
    "status",
    "stage",
    "submissionTime",
    "submissionTimestamp",
    "startTime",
    "startTimestamp",
    "endTime",
    "endTimestamp",
    "runTime",
    "countFiles",
}
OF_A_CHILD = {
    "childProcessNumber",
    "stageId",
    "command",
    "userAccount",
    "workingDir",
    "status",
    "submitTime",
    "startTime",
    "endTime",
    "runTime",
    "exitStatus",
    "stdOut",
    "stdErr",
}
COUNTERS = {"nRunningChildProcesses", "nQueuedChildProcesses"}
THREE = {
    "1-A": {"command": "echo 'a: $x'", "outputVariableRegexList": ["a: (?P<heard>.*)"], "workingDir": "/tmp"},
    "2-B": {
        "command": "echo n: $stage",
        "repeatPeriod": 0,
        "repeatUntil": '"$again" == "3-"',
        "maxRepeats": 3,
        "outputVariableRegexList": ["n: (?P<seen>.)"],
    },
    "3-C": {"command": "echo done"},
}


@pytest.fixture(scope="module")
def service(
    storage_site: storage.Site, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("processing")
    with running_processing(storage_site, mongo_url, certificates, directory, concurrent_stages=4) as running:
        yield running


@pytest.fixture(scope="module")
def raw(service: Running) -> Callable[..., Any]:
    """Ask for JSON without any class of ours between."""
    client = service.rest()
    return client.get


@pytest.fixture(scope="module")
def finished(service: Running, raw: Callable[..., Any]) -> dict[str, Any]:
    """The record of a job with three stages that is done."""
    stages = THREE | {"2-B": THREE["2-B"] | {"repeatUntil": '"$seen" == "2"'}}
    job = service.finished(service.start(service.workflow(stages, "three"), x="y z", n=5, f=1.5, b=True))
    return dict(raw(f"/processingJobsByOwner/{OWNER}/{job['id']}"))


def children(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [child for stage in job["workflow"]["stages"].values() for child in stage["childProcesses"].values()]


def accepted_by_strict_models(job: dict[str, Any]) -> None:
    """What published clients insist on (a missing key costs them the whole list)."""
    assert isinstance(job["countFiles"], int) and isinstance(job["submissionTime"], float)
    assert all(isinstance(job[key], str) for key in ("id", "owner", "status"))
    workflow = job["workflow"]
    assert all(isinstance(workflow[key], str) for key in ("name", "owner", "userAccount", "description", "id"))
    int(workflow.get("version") or 0)
    for stage in workflow["stages"].values():
        assert isinstance(stage["command"], str)
    for child in children(job):
        assert isinstance(child["exitStatus"], int) and isinstance(child["childProcessNumber"], int)
        assert all(isinstance(child[key], str) for key in ("command", "status", "stdErr", "stdOut"))
        assert all(isinstance(child[key], float) for key in ("submitTime", "startTime", "endTime"))
        assert child["workingDir"] is None or isinstance(child["workingDir"], str)
    assert "errorCode" not in job


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_the_reply_to_a_submission_is_complete(service: Running) -> None:
    service.workflow(THREE, "reply", version=3)
    job = service.rest().post(
        f"/processingJobsByWorkflow/{OWNER}/reply/startProcessingJob", {"argsDict": {"filePath": "/dev/null", "x": "1"}}
    )
    accepted_by_strict_models(job)
    assert uuid.UUID(job["id"]).version == 4 and job["owner"] == OWNER and job["status"] == "pending"
    assert set(job) - {"workflow"} == {
        "id", "owner", "status", "submissionTime", "submissionTimestamp", "countFiles", "filePath", "x",
    }  # fmt: skip
    assert all(stage["childProcesses"] == {} for stage in job["workflow"]["stages"].values())
    service.finished(job)


def test_a_record_has_what_is_published_and_no_more(finished: dict[str, Any]) -> None:
    accepted_by_strict_models(finished)
    given = {"filePath", "x", "n", "f", "b"}
    captured = {"heard", "seen"}
    assert set(finished) == OF_THE_ENGINE | given | captured | {"workflow"}
    assert (finished["status"], finished["stage"], finished["countFiles"]) == ("done", "3-C", 1)
    assert (finished["x"], finished["n"], finished["f"], finished["b"]) == ("y z", 5, 1.5, True)
    assert (finished["heard"], finished["seen"]) == ("y z", "2")


def test_times_are_epoch_seconds_and_texts(finished: dict[str, Any]) -> None:
    for name in ("submission", "start", "end"):
        moment, text = finished[f"{name}Time"], finished[f"{name}Timestamp"]
        assert isinstance(moment, float) and abs(moment - time.time()) < 600
        assert TIMESTAMP.fullmatch(text) and text == timestamps.text(moment)
    assert finished["submissionTime"] <= finished["startTime"] <= finished["endTime"]
    assert isinstance(finished["runTime"], float)
    assert finished["runTime"] == pytest.approx(finished["endTime"] - finished["startTime"])


def test_processes_are_numbered_across_stages_and_repeats(service: Running, raw: Callable[..., Any]) -> None:
    stages = {
        "1": {"command": "echo 1"},
        "2": {
            "command": "echo x",
            "repeatPeriod": 0,
            "repeatUntil": '"$filePath" == "never"',
            "maxRepeats": 3,
            "onFailure": "continue",
        },
        "3": {"command": "echo 3"},
    }
    job = service.finished(service.start(service.workflow(stages, "numbers"), filePath=None, filePathList="a,b"))
    record = raw(f"/processingJobsById/{job['id']}")
    found = {name: list(stage["childProcesses"]) for name, stage in record["workflow"]["stages"].items()}
    assert found == {"1": ["0", "1"], "2": [str(number) for number in range(2, 8)], "3": ["8", "9"]}
    for name, stage in record["workflow"]["stages"].items():
        for key, child in stage["childProcesses"].items():
            assert (child["childProcessNumber"], child["stageId"]) == (int(key), name)
    assert list(record["workflow"]["stages"]) == ["1", "2", "3"]


def test_a_process_has_what_is_published_and_no_more(finished: dict[str, Any]) -> None:
    for child in children(finished):
        assert set(child) == OF_A_CHILD
        assert child["status"] == "done" and child["exitStatus"] == 0 and child["stdErr"] == ""
        assert child["submitTime"] <= child["startTime"] <= child["endTime"]
        assert child["runTime"] == pytest.approx(child["endTime"] - child["startTime"])
    first, *others = children(finished)
    assert first["workingDir"] == "/tmp" and all(child["workingDir"] is None for child in others)
    assert first["command"].endswith("echo 'a: y z'") and first["stdOut"] == "a: y z\n"
    assert first["userAccount"] == OWNER


def test_a_user_account_shows_in_the_command(service: Running) -> None:
    account = default(STAGE_ACCOUNT)
    service.workflow({"1": {"command": "echo $x"}}, "account", userAccount=account.name)
    (child,) = children(service.finished(service.start("account", x=1)).data)
    assert child["userAccount"] == account.name
    assert child["command"] == (f"sudo -u {account.name} -- echo 1" if account.prefix else "echo 1")


def test_counters_are_those_that_occurred(service: Running) -> None:
    done = {"nRunningChildProcesses": 0, "nQueuedChildProcesses": 0, "nCompletedChildProcesses": 2}

    def counters(stage: dict[str, Any]) -> dict[str, int]:
        return {key: value for key, value in stage.items() if key.endswith("ChildProcesses") and key[0] == "n"}

    job = service.finished(
        service.start(service.workflow({"1": {"command": "true"}}), filePath=None, filePathList="a,b")
    )
    assert counters(job["workflow"]["stages"]["1"]) == done
    mixed = {"1": {"command": "test $filePath = a", "parallelExec": True, "onFailure": "continue"}}
    job = service.finished(service.start(service.workflow(mixed), filePath=None, filePathList="a,b"))
    stage = job["workflow"]["stages"]["1"]
    assert counters(stage) == done | {"nCompletedChildProcesses": 1, "nFailedChildProcesses": 1}
    job = service.run({"1": {"command": "false"}})
    assert counters(job["workflow"]["stages"]["1"]) == {
        "nRunningChildProcesses": 0,
        "nQueuedChildProcesses": 0,
        "nFailedChildProcesses": 1,
    }


def test_a_process_that_failed_leaves_no_message(service: Running) -> None:
    job = service.run({"1": {"command": "echo no >&2; exit 9"}, "2": {"command": "true"}}).data
    accepted_by_strict_models(job)
    assert set(job) - {"workflow"} == OF_THE_ENGINE | {"filePath"}
    first, second = job["workflow"]["stages"].values()
    assert (job["status"], job["stage"], first["status"]) == ("failed", "1", "failed")
    assert (first["childProcesses"]["0"]["exitStatus"], first["childProcesses"]["0"]["stdErr"]) == (9, "no\n")
    assert second["childProcesses"] == {} and not COUNTERS & set(second)


def test_bad_input_fails_the_job(service: Running) -> None:
    for arguments in (
        {},
        {"filePath": ""},
        {"filePathList": []},
        {"filePathPattern": "/no/such/*"},
        {"dataDir": "/no"},
    ):
        given = {"filePath": None, **arguments}
        job = service.finished(service.start(service.workflow(THREE), **given)).data
        accepted_by_strict_models(job)
        assert job["status"] == "failed" and job["countFiles"] == 0 and "stage" not in job
        assert job["errorMessage"].startswith("Invalid input file specification.")
        assert 0 <= job["runTime"] < 5 and children(job) == []


def test_a_file_need_not_exist_and_each_has_its_process(service: Running) -> None:
    service.workflow({"1": {"command": "echo $filePath"}, "2": {"command": "true"}}, "dummies")
    job = service.finished(service.start("dummies", filePath="README.md"))
    assert (job["countFiles"], job["status"]) == (1, "done")
    job = service.finished(service.start("dummies", filePath=None, filePathList=["a", "b", "c"]))
    assert job["countFiles"] == 3 and job["filePathList"] == ["a", "b", "c"]
    assert [len(stage["childProcesses"]) for stage in job["workflow"]["stages"].values()] == [3, 3]
    assert [child["stdOut"] for child in children(job.data)[:3]] == ["a\n", "b\n", "c\n"]


def test_a_stage_whose_condition_is_false_is_skipped(service: Running) -> None:
    job = service.run({"1": {"command": "true", "runIf": "1 == 2"}, "2": {"command": "true"}})
    skipped = job["workflow"]["stages"]["1"]
    assert skipped["status"] == "skipped" and skipped["childProcesses"] == {}
    assert job["status"] == "done" and list(job["workflow"]["stages"]["2"]["childProcesses"]) == ["0"]


def test_a_running_process_is_counted_but_not_listed(service: Running, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    command = f"touch {open_directory}/begun; until test -e {open_directory}/go; do sleep 0.05; done"
    job = service.start(service.workflow({"1": {"command": command}, "2": {"command": "true"}}, "waiting"))
    deadline = time.monotonic() + PATIENCE
    while not (open_directory / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    while "stage" not in (record := service.api().getProcessingJobById(OWNER, job["id"]).data):
        assert time.monotonic() < deadline
    accepted_by_strict_models(record)
    first, second = record["workflow"]["stages"].values()
    assert (record["status"], record["stage"], first["status"]) == ("running", "1", "running")
    assert first["childProcesses"] == {} and first["nRunningChildProcesses"] == 1 and "status" not in second
    assert isinstance(record["runTime"], float) and not {"endTime", "endTimestamp"} & set(record)
    running = service.api().getChildProcess(OWNER, job["id"], 0)
    assert running["status"] == "running" and running["exitStatus"] is None and running["endTime"] is None
    (open_directory / "go").touch()
    assert service.finished(job)["status"] == "done"


def test_an_aborted_job(service: Running) -> None:
    job = service.start(service.workflow({"1": {"command": "sleep 60"}}, "sleeps"))
    assert service.api().stopProcessingJob(OWNER, job["id"])["status"] in ("aborting", "aborted")
    ended = service.finished(job).data
    accepted_by_strict_models(ended)
    assert ended["status"] == "aborted" and TIMESTAMP.fullmatch(ended["endTimestamp"])


def test_keys_beyond_the_published_ones_appear_only_where_they_say_something(service: Running) -> None:
    stages = {"1": {"command": "kill -9 $$", "retry": {"count": 1, "backoff": 0}}}
    service.workflow(stages, "beyond", priority=5)
    job = service.finished(service.start("beyond")).data
    assert job["priority"] == 5 and "restarts" not in job
    first, second = children(job)
    assert first["signal"] == 9 and first["exitStatus"] == 137 and "attempt" not in first and second["attempt"] == 1
    assert set(first) == OF_A_CHILD | {"signal"} and set(second) == OF_A_CHILD | {"signal", "attempt"}
    resumed = service.finished(service.api().resumeProcessingJob(OWNER, job["id"])).data
    assert resumed["restarts"] == 1 and resumed["id"] == job["id"]


def test_the_engines_own_keys_are_nobody_elses(service: Running) -> None:
    for name in ("status", "id", "workflow", "stage", "countFiles", "errorMessage"):
        with pytest.raises(InvalidArgument, match=name):
            service.start("three", **{name: "x"})
    job = service.run({"1": {"command": "echo S=mine", "outputVariableRegexList": ["S=(?P<status>.*)"]}})
    assert job["status"] == "done"


# --- lists --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(service: Running) -> list[str]:
    """Ids of jobs that are done, oldest first."""
    service.workflow({"1": {"command": "echo v: $x", "outputVariableRegexList": ["v: (?P<v>.*)"]}}, "many")
    started = [service.start("many", x=number, word=f"w{number % 2}", mark="many") for number in range(7)]
    for job in started:
        assert service.finished(job)["status"] == "done"
    return [job["id"] for job in started]


def test_key_lists(raw: Callable[..., Any], many: list[str]) -> None:
    def keys(**query: Any) -> set[str]:
        (job,) = raw(f"/processingJobsByOwner/{OWNER}", queryDict={"id": many[0]}, **query)
        return set(job)

    assert keys() == keys(keyList='"DEFAULT"') == keys(keyList="DEFAULT") == OF_THE_ENGINE
    everything = OF_THE_ENGINE | {"filePath", "x", "word", "mark", "v", "workflow"}
    assert keys(keyList="ALL") == keys(keyList='"ALL"') == everything
    assert keys(keyList=["id", "v", "nothing"]) == {"id", "v"}
    assert keys(keyList="status,x") == {"status", "x"}
    (job,) = raw(f"/processingJobsByOwner/{OWNER}", queryDict={"id": many[0]}, keyList="ALL")
    accepted_by_strict_models(job)


def test_skip_and_limit_count_from_the_newest(raw: Callable[..., Any], many: list[str]) -> None:
    def ids(**query: Any) -> list[str]:
        return [job["id"] for job in raw("/processingJobs", queryDict={"mark": "many"}, **query)]

    assert ids() == many == ids(limit=5000) == ids(limit=1_000_000)
    assert ids(limit=2) == many[-2:]
    assert ids(skip=3, limit=2) == many[2:4]
    assert ids(skip=100) == [] == ids(limit=0)
    with pytest.raises(InvalidRequest, match="skip"):
        ids(skip=-1)


def test_pages_by_cursor(service: Running, raw: Callable[..., Any], many: list[str]) -> None:
    newest_first = many[::-1]
    for path in ("/processingJobPages", f"/processingJobPagesByOwner/{OWNER}"):
        found, after, pages = [], None, 0
        while True:
            page = raw(path, after=after, limit=3, queryDict={"mark": "many"}, keyList=["id"])
            assert set(page) == {"jobs", "after"}
            found += [job["id"] for job in page["jobs"]]
            pages, after = pages + 1, page["after"]
            if after is None:
                break
            # what is submitted meanwhile moves no page
            service.finished(service.start("many", x="later", mark="many" if pages == 0 else "other"))
        assert found == newest_first and pages == 3
    assert [job["id"] for job in service.api().iterateProcessingJobs(None, {"mark": "many"})] == newest_first
    some = service.api().iterateProcessingJobs(OWNER, {"mark": "many"}, limit=4, keyList="ALL")
    assert [job["x"] for job in some] == [6, 5, 4, 3]
    assert list(service.api(storage.BOB).iterateProcessingJobs()) == []
    for after in ("x", "-1", "1" * 30, "1;"):
        with pytest.raises(InvalidArgument, match="Cursor"):
            raw("/processingJobPages", after=after)


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({"x": 3}, [3]),
        ({"x": {"$eq": 3}}, [3]),
        ({"x": {"$ne": 3}}, [0, 1, 2, 4, 5, 6]),
        ({"x": {"$gt": 2, "$lte": 4}}, [3, 4]),
        ({"x": {"$gte": 5}}, [5, 6]),
        ({"x": {"$lt": 1}}, [0]),
        ({"x": {"$in": [1, 2, 99]}}, [1, 2]),
        ({"x": {"$nin": [0, 1, 2, 3, 4]}}, [5, 6]),
        ({"v": "4"}, [4]),
        ({"word": "w1", "x": {"$gt": 1}}, [3, 5]),
        ({"v": {"$exists": True}, "x": 0}, [0]),
        ({"nothing": {"$exists": True}}, []),
        ({"status": "failed"}, []),
        ({"status": {"$in": ["done", "failed"]}, "workflow.name": "many", "x": 6}, [6]),
        ({"submissionTime": {"$gt": 0}, "owner": OWNER, "stage": "1", "countFiles": 1, "x": 1}, [1]),
        ({"submissionTime": {"$lt": 5}}, []),
        ({"submissionTime": {"$gte": 1_700_000_000.5}, "x": 2}, [2]),
        ({"submissionTime": {"$gt": 1_700_000_000, "$lt": 5e9, "$ne": 3}, "x": {"$lt": 2}}, [0, 1]),
        ({"submissionTime": {"$gt": 1e300}}, []),
        ({"submissionTime": 5}, []),
        ({"submissionTime": "text"}, []),
    ],
)
def test_queries(raw: Callable[..., Any], many: list[str], query: dict[str, Any], numbers: list[int]) -> None:
    asked = {"mark": "many", **query}
    found = raw(f"/processingJobsByOwner/{OWNER}", queryDict=asked, keyList=["id"])
    assert [many.index(job["id"]) for job in found] == numbers
    page = raw("/processingJobPages", queryDict=asked, keyList=["id"])
    assert [many.index(job["id"]) for job in page["jobs"]] == numbers[::-1]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"$where": "1"}, r"\$where"),
        ({"$or": [{"x": 1}]}, r"\$or"),
        ({"$expr": {}}, r"\$expr"),
        ({"x": {"$regex": ".*"}}, r"\$regex"),
        ({"x": {"$not": {"$gt": 1}}}, r"\$not"),
        ({"x": {"$where": "1"}}, r"\$where"),
        ({"x": {"a": 1}}, "'a'"),
        ({"x": {}}, "empty condition"),
        ({"x": [1]}, "not a number"),
        ({"x": {"$in": 5}}, "list"),
        ({"x": {"$in": [{"$gt": 1}]}}, "not a number"),
        ({"x": {"$gt": {"$gt": 1}}}, "not a number"),
        ({"a.b": 1}, "a.b"),
        ({"x": 1 << 70}, "not a number"),
        ({f"k{number}": 1 for number in range(51)}, "more than 50"),
    ],
)
def test_other_operators_are_refused_by_name(raw: Callable[..., Any], query: dict[str, Any], named: str) -> None:
    for path in ("/processingJobs", "/processingJobPages", f"/processingJobsByOwner/{OWNER}"):
        with pytest.raises(InvalidArgument, match=named):
            raw(path, queryDict=query)
