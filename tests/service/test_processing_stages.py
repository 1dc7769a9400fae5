"""Stages beyond the published ones: graphs, further attempts, tolerated failures, cleanup, jobs that go on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import AuthorizationError, InvalidObjectState, InvalidRequest, ObjectNotFound
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Running, lines, running_processing


@pytest.fixture(scope="module")
def service(
    storage_site: storage.Site, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("processing")
    with running_processing(storage_site, mongo_url, certificates, directory, concurrent_stages=4) as running:
        yield running


def children(job: Any, stage: str) -> list[dict[str, Any]]:
    return list(job["workflow"]["stages"][stage]["childProcesses"].values())


def statuses_of(job: Any) -> dict[str, str | None]:
    return {name: stage.get("status") for name, stage in job["workflow"]["stages"].items()}


def resume(running: Running, job: Any) -> Any:
    running.api().resumeProcessingJob(None, job["id"])
    return running.finished(job)


def restart(running: Running, job: Any, stage: str | None = None) -> Any:
    running.api().restartProcessingJob(None, job["id"], stage)
    return running.finished(job)


# --- the graph ----------------------------------------------------------------------------------------------------


def test_stages_without_a_path_between_them_run_side_by_side(service: Running, work: Path) -> None:
    meet = "touch {0}/$stage; for i in $(seq 200); do test -e {0}/{1} && exit 0; sleep 0.05; done; exit 1"
    job = service.run(
        {
            "a": {"command": f"echo a >>{work}/log; echo A: 1", "outputVariableRegexList": ["A: (?P<x>.*)"]},
            "b": {"command": meet.format(work, "c"), "dependsOn": ["a"]},
            "c": {"command": meet.format(work, "b"), "dependsOn": ["a"]},
            "d": {"command": 'echo "$x/$y/"', "dependsOn": ["b", "c"]},
            "e": {"command": 'echo Y: e; echo "$x/"', "dependsOn": [], "outputVariableRegexList": ["Y: (?P<y>.*)"]},
        }
    )
    assert job["status"] == "done" and set(statuses_of(job).values()) == {"done"}
    assert children(job, "d")[0]["stdOut"] == "1//\n", "a stage sees what it waits for, and nothing else"
    assert children(job, "e")[0]["stdOut"] == "Y: e\n/\n"
    assert (job["x"], job["y"]) == ("1", "e")


def test_a_failure_lets_nothing_new_begin_but_ends_what_runs(service: Running, work: Path) -> None:
    job = service.run(
        {
            "a": {"command": "sleep 0.2; exit 3", "dependsOn": []},
            "b": {"command": f"sleep 0.6; echo b >>{work}/log", "dependsOn": []},
            "c": {"command": f"echo c >>{work}/log", "dependsOn": ["b"]},
        }
    )
    assert job["status"] == "failed" and lines(work / "log") == ["b"]
    assert statuses_of(job) == {"a": "failed", "b": "done", "c": None}
    assert resume(service, job)["status"] == "failed"
    assert lines(work / "log") == ["b"] or lines(work / "log") == ["b", "c"]


# --- policies -----------------------------------------------------------------------------------------------------


def test_a_stage_is_tried_again_after_growing_pauses(service: Running, work: Path) -> None:
    command = f"echo x >>{work}/log; test $(wc -l <{work}/log) -ge 3"
    job = service.run({"1": {"command": command, "retry": {"count": 5, "backoff": 0.2}}})
    assert job["status"] == "done" and "errorMessage" not in job
    found = children(job, "1")
    assert [child["status"] for child in found] == ["failed", "failed", "done"]
    assert [child.get("attempt") for child in found] == [None, 1, 2]
    pauses = [later["startTime"] - earlier["endTime"] for earlier, later in itertools.pairwise(found)]
    assert pauses[0] >= 0.19 and pauses[1] >= 0.39
    stage = job["workflow"]["stages"]["1"]
    assert (stage["nCompletedChildProcesses"], stage["nFailedChildProcesses"]) == (1, 2)
    job = service.run({"1": {"command": "exit 4", "retry": {"count": 2, "backoff": 0}}})
    assert job["status"] == "failed" and [child["exitStatus"] for child in children(job, "1")] == [4, 4, 4]


def test_each_file_has_its_own_attempts(service: Running, work: Path) -> None:
    command = f'echo x >>"{work}/$filePath"; test "$filePath" = a || test $(wc -l <"{work}/$filePath") -ge 2'
    job = service.run(
        {"1": {"command": command, "retry": {"count": 1, "backoff": 0}, "parallelExec": True}},
        filePath=None,
        filePathList=["a", "b", "c"],
    )
    assert job["status"] == "done" and [len(lines(work / name)) for name in "abc"] == [1, 2, 2]


def test_a_tolerated_failure(service: Running) -> None:
    job = service.run({"1": {"command": "exit 1", "onFailure": "continue"}, "2": {"command": "echo on"}})
    assert job["status"] == "done" and statuses_of(job) == {"1": "failed", "2": "done"}
    assert children(job, "2")[0]["stdOut"] == "on\n"


@pytest.mark.parametrize(("command", "status", "failed"), [("true", "done", ""), ("exit 2", "failed", "1")])
def test_cleanup_comes_last_whatever_became_of_the_job(
    service: Running, command: str, status: str, failed: str
) -> None:
    stages = {
        "0-CLEAN": {"command": 'echo "$jobStatus/$failedStage/$errorMessage"', "cleanup": True},
        "1": {"command": command},
        "2": {"command": "echo two"},
    }
    job = service.run(stages)
    assert job["status"] == status and children(job, "0-CLEAN")[0]["stdOut"] == f"{status}/{failed}/\n"
    numbers = [child["childProcessNumber"] for name in ("1", "2", "0-CLEAN") for child in children(job, name)]
    assert numbers == list(range(len(numbers)))


def test_cleanup_runs_for_a_stopped_job_and_may_fail_a_good_one(service: Running, work: Path) -> None:
    stages = {
        "1": {"command": f"echo b >>{work}/log; sleep 300"},
        "9": {"command": f'echo "$jobStatus" >>{work}/log', "cleanup": True},
    }
    job = service.start(service.workflow(stages))
    while not lines(work / "log"):
        time.sleep(0.02)
    service.api().stopProcessingJob(None, job["id"])
    ended = service.finished(job)
    assert ended["status"] == "aborted" and lines(work / "log") == ["b", "aborted"]
    assert statuses_of(ended) == {"1": "aborted", "9": "done"}
    job = service.run({"1": {"command": "true"}, "9": {"command": "exit 5", "cleanup": True}})
    assert job["status"] == "failed" and statuses_of(job) == {"1": "done", "9": "failed"}


def test_structured_output_becomes_variables(service: Running) -> None:
    job = service.run(
        {
            "1": {
                "command": """echo 'N: 1'; printf '{"n": 12, "name": "a b", "deep": {"x": [1]}}' >"$DM_OUTPUT_FILE" """,
                "outputVariableRegexList": ["N: (?P<n>.*)"],
            },
            "2": {"command": 'echo "$n/$name/$deep"', "runIf": "$n == 12"},
        }
    )
    assert job["status"] == "done" and (job["n"], job["name"]) == (12, "a b")
    assert children(job, "2")[0]["stdOut"] == '12/a b/{"x": [1]}\n'
    job = service.run({"1": {"command": """printf '{"n": ' >"$DM_OUTPUT_FILE" """}})
    assert job["status"] == "failed" and "Stage '1' failed" in job["errorMessage"]


# --- jobs that go on ------------------------------------------------------------------------------------------------


def test_a_failed_job_goes_on_where_it_stopped(service: Running, work: Path) -> None:
    stages = {
        "1": {"command": f"echo one >>{work}/log; echo V: 7", "outputVariableRegexList": ["V: (?P<v>.*)"]},
        "2": {
            "command": f'echo two-$filePath >>{work}/log; test "$filePath" != b || test -e {work}/go',
            "parallelExec": True,
        },
        "3": {"command": f"echo three-$v >>{work}/log"},
        "9": {"command": f"echo clean >>{work}/log", "cleanup": True},
    }
    job = service.run(stages, filePath=None, filePathList=["a", "b"])
    assert job["status"] == "failed"
    assert sorted(lines(work / "log")) == ["clean", "clean", "one", "one", "two-a", "two-b"]
    (work / "go").touch()
    (work / "log").unlink()
    again = resume(service, job)
    assert again["status"] == "done" and again["restarts"] == 1 and again["id"] == job["id"]
    assert "errorMessage" not in again and again["endTime"] > job["endTime"]
    assert sorted(lines(work / "log")) == ["clean", "clean", "three-7", "three-7", "two-b"]
    stage = again["workflow"]["stages"]["2"]
    assert (stage["nCompletedChildProcesses"], stage.get("nFailedChildProcesses")) == (2, None)
    with pytest.raises(InvalidObjectState, match="nothing to resume"):
        service.api().resumeProcessingJob(None, job["id"])


def test_a_stage_and_all_after_it_run_anew(service: Running, work: Path) -> None:
    stages = {
        "1": {"command": f"echo one >>{work}/log; echo V: 1", "outputVariableRegexList": ["V: (?P<v>.*)"]},
        "2": {
            "command": f'echo two-$v-$w >>{work}/log; echo "W: $(wc -l <{work}/log)"',
            "outputVariableRegexList": ["W: (?P<w>.*)"],
        },
        "3": {"command": f"echo three-$w >>{work}/log"},
    }
    job = service.run(stages)
    assert lines(work / "log") == ["one", "two-1-", "three-2"]
    again = restart(service, job, "2")
    assert again["status"] == "done" and lines(work / "log")[3:] == ["two-1-", "three-4"]
    assert again["w"] == "4" and [child["childProcessNumber"] for child in children(again, "2")] == [1, 3]
    assert again["workflow"]["stages"]["2"]["nCompletedChildProcesses"] == 1
    whole = restart(service, again)
    assert whole["restarts"] == 2 and lines(work / "log")[5:] == ["one", "two-1-", "three-7"]
    with pytest.raises(ObjectNotFound, match="Stage 'x' does not exist"):
        restart(service, job, "x")


def test_what_cannot_go_on(service: Running, work: Path) -> None:
    api = service.api()
    job = service.start(service.workflow({"1": {"command": "sleep 300"}, "2": {"command": "true"}}))
    for call in (api.resumeProcessingJob, api.restartProcessingJob):
        with pytest.raises(InvalidObjectState, match="only when it has ended"):
            call(None, job["id"])
    api.stopProcessingJob(None, job["id"])
    service.finished(job)
    with pytest.raises(InvalidObjectState, match="Stage '1', which comes before '2', is not done"):
        api.restartProcessingJob(None, job["id"], "2")
    bad = service.run({"1": {"command": "true"}}, filePath=None)
    with pytest.raises(InvalidObjectState, match="no input files"):
        api.resumeProcessingJob(None, bad["id"])


def test_fifty_who_resume_one_job_make_it_go_on_once(service: Running, work: Path) -> None:
    job = service.run({"1": {"command": f"echo x >>{work}/log; test -e {work}/go"}})
    (work / "go").touch()
    answers: list[str] = []

    def call() -> None:
        try:
            answers.append(service.api().resumeProcessingJob(None, job["id"])["status"])
        except InvalidObjectState as error:
            answers.append(type(error).__name__)

    service.api()
    threads = [threading.Thread(target=call) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("InvalidObjectState") == 11
    assert service.finished(job)["status"] == "done" and lines(work / "log") == ["x", "x"]


# --- whose turn it is -----------------------------------------------------------------------------------------------


def test_urgent_jobs_first_and_so_many_of_a_workflow_at_a_time(
    storage_site: storage.Site, new_mongo_database: Callable[[], str], certificates: Path, tmp_path: Path, work: Path
) -> None:
    with running_processing(
        storage_site, new_mongo_database(), certificates, tmp_path / "p", concurrent_stages=1
    ) as running:
        gate = {"1": {"command": f"echo gate >>{work}/log; while test ! -e {work}/go; do sleep 0.02; done"}}
        first = running.start(running.workflow(gate, "gate"))
        while not lines(work / "log"):
            time.sleep(0.02)
        running.workflow({"1": {"command": f"echo $n >>{work}/log"}}, "w")
        api = running.api()
        jobs = [
            api.startProcessingJob(OWNER, "w", {"filePath": "/dev/null", "n": n}, priority=priority)
            for n, priority in (("low", -5), ("usual", None), ("high", 50), ("higher", 60))
        ]
        assert [job.get("priority") for job in jobs] == [-5, None, 50, 60]
        time.sleep(0.3)
        (work / "go").touch()
        for job in [first, *jobs]:
            assert running.finished(job)["status"] == "done"
        assert lines(work / "log") == ["gate", "higher", "high", "usual", "low"]
        with pytest.raises(InvalidRequest, match="priority"):
            api.startProcessingJob(OWNER, "w", {"filePath": "/dev/null"}, priority=101)
        user = running.api(storage.ALICE)
        with pytest.raises((AuthorizationError, ObjectNotFound)):
            user.startProcessingJob(OWNER, "w", {"filePath": "/dev/null"}, priority=5)


def test_a_workflow_may_limit_its_jobs(service: Running, work: Path) -> None:
    command = f"mkdir {work}/$id; ls -d {work}/*-* | wc -l; sleep 0.2; rmdir {work}/$id"  # how many are under way
    service.workflow({"1": {"command": command}}, "narrow", maxConcurrentJobs=2)
    jobs = [service.start("narrow") for _ in range(8)]
    seen = [int(children(service.finished(job), "1")[0]["stdOut"]) for job in jobs]
    assert max(seen) == 2


def test_owners_have_a_limit_of_their_own(
    storage_site: storage.Site, new_mongo_database: Callable[[], str], certificates: Path, tmp_path: Path, work: Path
) -> None:
    with running_processing(
        storage_site, new_mongo_database(), certificates, tmp_path / "p", concurrent_stages=8, owner_stages=1
    ) as running:
        command = f"mkdir {work}/$id; ls -d {work}/*-* | wc -l; sleep 0.1; rmdir {work}/$id"
        running.workflow({"1": {"command": command}}, "w")
        jobs = [running.start("w") for _ in range(4)]
        assert {children(running.finished(job), "1")[0]["stdOut"].strip() for job in jobs} == {"1"}


def test_what_happens_is_told_once_it_is_on_disk(
    storage_site: storage.Site, new_mongo_database: Callable[[], str], certificates: Path, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    with running_processing(storage_site, new_mongo_database(), certificates, tmp_path / "p") as running:
        assert running.processing is not None
        running.processing.listeners.append(told.append)
        job = running.run({"1": {"command": "true"}, "2": {"command": "exit 3"}})
    kinds = [(event["event"], event.get("stage"), event["status"]) for event in told]
    assert kinds == [
        ("job", "1", "running"),
        ("file", "1", "done"),
        ("job", "2", "running"),
        ("file", "2", "failed"),
        ("job", "2", "failed"),
    ]
    assert {event["id"] for event in told} == {job["id"]} and told[1]["filePath"] == "/dev/null"
    assert told[3]["exitStatus"] == 3 and all(event["owner"] == OWNER for event in told)


def test_a_cleanup_that_hangs_can_be_stopped_too(service: Running, work: Path) -> None:
    stages = {"1": {"command": "true"}, "9": {"command": f"echo b >>{work}/log; sleep 300", "cleanup": True}}
    job = service.start(service.workflow(stages))
    while not lines(work / "log"):
        time.sleep(0.02)
    assert service.api().getProcessingJobById(None, job["id"])["status"] == "finalizing"
    service.api().stopProcessingJob(None, job["id"])
    ended = service.finished(job)
    assert ended["status"] == "aborted" and statuses_of(ended) == {"1": "done", "9": "aborted"}
