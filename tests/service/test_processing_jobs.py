"""Jobs over HTTPS: what a workflow does, and what its record says."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common.errors import (
    InvalidArgument,
    InvalidObjectState,
    InvalidRequest,
    ObjectNotFound,
    TaskTimeout,
)
from dm.station.processing import specs
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, STAGE_ACCOUNT, Running, running_processing

CHILD_KEYS = {
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
HOSTILE = [
    "; touch {canary}",
    "$(touch {canary})",
    "`touch {canary}`",
    "a\ntouch {canary}",
    "'; touch {canary}; '",
    '"; touch {canary}; "',
    "| touch {canary}",
    "> {canary}",
    "$IFS$other",
    "--help",
    "a\udcff b",
]


@pytest.fixture(scope="module")
def service(
    storage_site: storage.Site, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("processing")
    with running_processing(storage_site, mongo_url, certificates, directory, concurrent_stages=4) as running:
        yield running


def processes(job: object) -> list[dict[str, object]]:
    stages = job["workflow"]["stages"].values()  # type: ignore[index]
    return [child for stage in stages for child in stage["childProcesses"].values()]


def test_the_published_example_runs_and_its_record_is_complete(service: Running) -> None:
    service.api().upsertWorkflow({**specs.EXAMPLE, "owner": OWNER})
    submitted = service.start("example-01", run_uid="abc", count=5, flag=True)
    assert submitted["status"] in ("pending", "running")
    assert {"id", "owner", "submissionTime", "submissionTimestamp", "countFiles", "workflow"} <= set(submitted)
    assert uuid.UUID(submitted["id"]).version == 4 and submitted["countFiles"] == 1
    assert all(stage["childProcesses"] == {} or stage["status"] for stage in submitted["workflow"]["stages"].values())
    job = service.finished(submitted)
    assert job["status"] == "done" and job["stage"] == "06-DONE" and "errorMessage" not in job
    assert (job["run_uid"], job["flag"], job["filePath"]) == ("abc", True, "/dev/null")
    assert job["md5Sum"] == "d41d8cd98f00b204e9800998ecf8427e"
    assert job["count"] != 5, "a captured variable overrides the argument of its name"
    assert isinstance(job["runTime"], float) and job["endTime"] >= job["startTime"] >= job["submissionTime"]
    stages = job["workflow"]["stages"]
    assert list(stages) == sorted(stages)
    found = processes(job)
    assert [child["childProcessNumber"] for child in found] == list(range(len(found)))
    for child in found:
        assert set(child) == CHILD_KEYS and child["exitStatus"] == 0 and child["workingDir"] is None
    assert job["id"] in stages["03-ECHO"]["childProcesses"]["2"]["command"]
    assert stages["06-DONE"]["childProcesses"]["5"]["stdOut"] == f"DONE: {job['md5Sum']}\n"
    for stage in stages.values():
        assert (stage["nRunningChildProcesses"], stage["nQueuedChildProcesses"]) == (0, 0)
        assert stage["nCompletedChildProcesses"] == 1 and "nFailedChildProcesses" not in stage
    assert job.getWorkflowStage("01-START")["childProcesses"]["0"]["stageId"] == "01-START"
    with pytest.raises(ObjectNotFound, match="no stage 'x'"):
        job.getWorkflowStage("x")


def test_a_failing_process_fails_its_stage_and_job_without_a_message(service: Running) -> None:
    job = service.run({"1": {"command": "echo out; echo err >&2; exit 7"}, "2": {"command": "echo never"}})
    assert job["status"] == "failed" and job["stage"] == "1" and "errorMessage" not in job
    first, second = job["workflow"]["stages"].values()
    child = first["childProcesses"]["0"]
    assert (child["exitStatus"], child["stdOut"], child["stdErr"], child["status"]) == (7, "out\n", "err\n", "failed")
    assert first["status"] == "failed" and first["nFailedChildProcesses"] == 1
    assert "nCompletedChildProcesses" not in first
    assert second["childProcesses"] == {} and "status" not in second


@pytest.mark.parametrize(
    "arguments",
    [{"filePath": None}, {"filePath": "", "dataDir": "/no/such/directory"}, {"filePath": 5}],
)
def test_a_bad_input_specification_is_accepted_and_fails_the_job(
    service: Running, arguments: dict[str, object]
) -> None:
    job = service.run({"1": {"command": "true"}}, **arguments)
    assert job["status"] == "failed" and job["errorMessage"].startswith("Invalid input file specification.")
    assert job["countFiles"] == 0 and "stage" not in job and job["runTime"] < 5 and processes(job) == []


def test_variables_conditions_and_skipped_stages(service: Running) -> None:
    job = service.run(
        {
            "1": {"command": "echo 'Machine: polaris'", "outputVariableRegexList": ["Machine: (?P<machine>.*)"]},
            "2": {"command": "false", "runIf": '"$machine" != "polaris"'},
            "3": {"command": 'echo "$machine/$stage/$owner/$filePath/$unset/"', "runIf": '"$machine" == "polaris"'},
        },
        machine="local",
        filePath="/a b",
    )
    assert job["status"] == "done" and job["machine"] == "polaris"
    stages = job["workflow"]["stages"]
    assert stages["2"]["status"] == "skipped" and stages["2"]["childProcesses"] == {}
    assert stages["3"]["childProcesses"]["1"]["stdOut"] == f"polaris/3/{OWNER}//a b//\n"


def test_a_condition_that_cannot_be_evaluated_fails_the_job_with_a_message(service: Running) -> None:
    job = service.run({"1": {"command": "true", "runIf": "$a < 5"}}, a="text")
    assert job["status"] == "failed" and job["errorMessage"].startswith("Stage '1' failed: Stage '1': runIf '$a < 5'")
    assert job["workflow"]["stages"]["1"]["status"] == "failed"


def test_several_files_one_process_each(service: Running) -> None:
    stages = {
        "1": {"command": "echo $filePath", "parallelExec": True, "outputVariableRegexList": ["(?P<last>.+)"]},
        "2": {"command": 'test "$filePath" != c', "runIf": '"$filePath" not in ["b"]'},
        "3": {"command": "echo never"},
    }
    job = service.run(stages, filePath=None, filePathList=["a", "b", "c", "d e"])
    assert job["countFiles"] == 4 and job["status"] == "failed" and job["last"] == "d e"
    first, second, third = job["workflow"]["stages"].values()
    assert sorted(child["stdOut"] for child in first["childProcesses"].values()) == ["a\n", "b\n", "c\n", "d e\n"]
    assert first["nCompletedChildProcesses"] == 4
    assert [child["exitStatus"] for child in second["childProcesses"].values()] == [0, 1]
    assert (second["nQueuedChildProcesses"], second["nFailedChildProcesses"]) == (1, 1)
    assert sorted(int(number) for number in [*first["childProcesses"], *second["childProcesses"]]) == list(range(6))
    assert third["childProcesses"] == {}


def test_repeats_until_the_condition_holds_or_the_repeats_run_out(service: Running, work: Path) -> None:
    count = {"command": f'echo x >>"{work}/$id"; wc -l <"{work}/$id"', "outputVariableRegexList": ["(?P<lines>[0-9]+)"]}
    repeat = {"repeatPeriod": 0.05, "repeatUntil": "$lines == 3", "maxRepeats": 999999}
    job = service.run({"1": {**count, **repeat}, "2": {"command": "echo $lines"}})
    assert job["status"] == "done" and job["lines"] == "3"
    assert [child["childProcessNumber"] for child in processes(job)] == [0, 1, 2, 3]
    first, second, *_ = processes(job)
    assert second["startTime"] - first["endTime"] >= 0.04
    job = service.run({"1": {**count, **repeat, "repeatUntil": "$lines == 99", "maxRepeats": 4}})
    assert job["status"] == "failed" and "did not come true in 4 executions" in job["errorMessage"]
    assert job["workflow"]["stages"]["1"]["nCompletedChildProcesses"] == 4


def test_many_repeats_stay_readable(service: Running) -> None:
    # more processes than fit into the job's own document
    stage = {"command": "echo $childNumber", "repeatPeriod": 0, "repeatUntil": "False", "maxRepeats": 80}
    job = service.run({"1": stage})
    assert job["status"] == "failed"
    assert [int(number) for number in job["workflow"]["stages"]["1"]["childProcesses"]] == list(range(80))
    api = service.api()
    assert [child["childProcessNumber"] for child in api.listChildProcesses(None, job["id"], 60, 10)] == list(
        range(60, 70)
    )
    assert [child["childProcessNumber"] for child in api.listChildProcesses(None, job["id"], 70, 99)] == list(
        range(70, 80)
    )


def test_hostile_values_are_data_everywhere(service: Running, work: Path) -> None:
    canary = work / "canary"
    values = [value.replace("{canary}", str(canary)) for value in HOSTILE]
    stages = {
        "1": {
            "command": "printf 'V: %s\\n' \"$x\" '$x' $filePath",
            "outputVariableRegexList": ["V: (?P<y>(?s:.*))"],
            "runIf": '"$x" != ""',
        },
        "2": {"command": 'for word in $y; do echo "$word"; done; echo "$y" `echo $y`', "workingDir": "/$x"},
    }
    service.workflow(stages)
    jobs = [(value, service.start(x=value, other="OTHER", filePath=value)) for value in values]
    for value, job in jobs:
        record = service.finished(job)
        first = record["workflow"]["stages"]["1"]["childProcesses"]["0"]
        shown = value.replace("\udcff", "\\xff")
        assert first["stdOut"] == f"V: {shown}\n" * 3, value
        assert record["x"] == value
        assert (
            record["status"] == "failed"
            and record["workflow"]["stages"]["2"]["childProcesses"]["1"]["exitStatus"] == 126
        )
    stages["2"].pop("workingDir")
    service.workflow(stages)
    for value in values:
        assert service.finished(service.start(x=value, other="OTHER", filePath=value))["status"] == "done"
    assert not canary.exists() and not Path("/tmp/canary").exists()


def test_a_value_for_a_second_interpreter_must_be_plain(service: Running, work: Path) -> None:
    stages = {"1": {"command": "bash -c 'echo \"got $x\"'"}}
    assert processes(service.run(stages, x="plain-1.2"))[0]["stdOut"] == "got plain-1.2\n"
    job = service.run(stages, x=f"$(touch {work}/canary)")
    assert job["status"] == "failed" and "second shell or interpreter" in job["errorMessage"] and processes(job) == []
    assert list(work.iterdir()) == []


def test_arguments_no_job_can_have(service: Running) -> None:
    service.workflow({"1": {"command": "true"}})
    for arguments, reason in (
        ({"workflow": "x"}, "'workflow' is reserved"),
        ({"status": "done"}, "'status' is reserved"),
        ({"": "x"}, "Argument name"),
        ({"x": "\ud800"}, "'x' is not valid text"),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            service.start(**arguments)
    with pytest.raises(InvalidRequest, match="NUL"):
        service.start(x="a\0b")
    with pytest.raises(ObjectNotFound, match=r"'nope' of owner .* does not exist"):
        service.start("nope")


def test_a_megabyte_of_argument_and_of_output(service: Running) -> None:
    job = service.run(
        {"1": {"command": 'printf %s "$x" | wc -c; printf %s "$x"', "outputVariableRegexList": ["(?P<n>[0-9]+)"]}},
        x="a" * (1 << 20),
    )
    assert job["status"] == "done" and job["n"] == str(1 << 20)
    child = processes(job)[0]
    assert child["outputTruncated"] and len(child["stdOut"]) < 40_000 and "bytes left out" in child["stdOut"]
    assert len(child["command"]) < 20_000


def test_captured_text_has_its_limit(service: Running) -> None:
    regexes = ["(?P<a>(?s:.*))", "(?P<b>(?s:.*))", "(?P<c>(?s:.*))"]
    job = service.run({"1": {"command": "head -c 1000000 /dev/zero | tr '\\0' x", "outputVariableRegexList": regexes}})
    assert job["status"] == "failed" and "gave 3000000 characters" in job["errorMessage"] and "a" not in job


def test_binary_output_statuses_and_signals(service: Running) -> None:
    stages = {
        "1": {"command": "printf '\\000\\377\\303\\274'", "outputVariableRegexList": ["(?P<x>.)$"]},
        "2": {"command": "exit 255"},
    }
    job = service.run(stages)
    first, second = processes(job)
    assert first["stdOut"] == "\\x00\\xffü" and second["exitStatus"] == 255
    assert processes(service.run({"1": {"command": "kill -9 $$"}}))[0]["exitStatus"] == 137
    child = processes(service.run({"1": {"command": "no-such-program"}}))[0]
    assert child["exitStatus"] == 127 and "not found" in child["stdErr"]
    assert processes(service.run({"1": {"command": "echo 'unclosed"}}))[0]["exitStatus"] == 2


def test_a_stage_runs_in_a_clean_environment_and_never_as_root(service: Running) -> None:
    os.environ["DM_TEST_SECRET"] = "must not leak"
    try:
        job = service.run({"1": {"command": "id -u; umask; env | cut -d= -f1 | sort; cat; pwd"}})
    finally:
        del os.environ["DM_TEST_SECRET"]
    uid, mask, *names, where = processes(job)[0]["stdOut"].splitlines()
    assert uid != "0" and mask == "0027" and Path(where).is_absolute()
    ours = {"DM_PROCESSING_KEY", "DM_JOB_ID", "DM_STAGE", "DM_ATTACH_KEY", "DM_OUTPUT_FILE"}
    assert set(names) - {"PWD", "OLDPWD", "SHLVL", "_"} == ours | {"PATH", "HOME", "USER", "LOGNAME", "LANG"}


def test_another_user_account_must_be_listed(service: Running) -> None:
    service.workflow({"1": {"command": "true"}}, userAccount="daemon")
    job = service.finished(service.start())
    assert job["status"] == "failed" and "'daemon' is not listed in processing.user_accounts" in job["errorMessage"]
    for name in (OWNER, STAGE_ACCOUNT or OWNER):
        service.workflow({"1": {"command": "true"}}, userAccount=name)
        assert service.finished(service.start())["status"] == "done"


def test_a_time_limit_ends_the_whole_group_even_when_it_resists(service: Running, work: Path) -> None:
    resist = f"trap '' TERM; (trap '' TERM; while :; do sleep 0.1; date >>{work}/beat; done) & setsid sleep 300 & wait"
    job = service.run({"1": {"command": resist, "timeout": 0.5}, "2": {"command": "true"}})
    child = processes(job)[0]
    assert job["status"] == "failed" and child["status"] == "failed" and child["exitStatus"] == 137
    assert "'1' was stopped after 0.5 s" in job["errorMessage"]
    marker = f"DM_PROCESSING_KEY={job['id']}".encode()
    left = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            left += [place] if marker in place.read_bytes() else []
        except OSError:
            continue
    assert left == []


def test_what_a_stage_leaves_running_does_not_hold_it_for_ever(service: Running) -> None:
    job = service.run({"1": {"command": "sleep 300 & echo started"}})
    assert job["status"] == "done" and processes(job)[0]["stdOut"] == "started\n"


def test_stopping_a_job(service: Running, work: Path) -> None:
    job = service.start(
        service.workflow({"1": {"command": f"touch {work}/begun; sleep 300"}, "2": {"command": "true"}})
    )
    deadline = time.monotonic() + 30
    while not (work / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(InvalidObjectState, match="stop it first"):
        service.api().deleteProcessingJob(None, job["id"])
    with pytest.raises(TaskTimeout, match="'running'"):
        service.api().waitProcessingJob(None, job["id"], 0.1)
    assert service.api().stopProcessingJob(None, job["id"])["status"] in ("aborting", "aborted")
    job = service.finished(job)
    assert job["status"] == "aborted" and "errorMessage" not in job
    first, second = job["workflow"]["stages"].values()
    assert first["status"] == first["childProcesses"]["0"]["status"] == "aborted" and second["childProcesses"] == {}
    with pytest.raises(InvalidObjectState, match="has ended already; its status is 'aborted'"):
        service.api().stopProcessingJob(OWNER, job["id"])
    assert service.api().deleteProcessingJob(OWNER, job["id"])["id"] == job["id"]
    with pytest.raises(ObjectNotFound, match="does not exist"):
        service.api().getProcessingJobById(OWNER, job["id"])


def test_stopping_a_job_that_waits_for_its_next_repeat(service: Running) -> None:
    stage = {"command": "true", "repeatPeriod": 3600, "repeatUntil": "False", "maxRepeats": 99}
    job = service.start(service.workflow({"1": stage}))
    deadline = time.monotonic() + 30
    while not processes(service.api().getProcessingJobById(None, job["id"])) and time.monotonic() < deadline:
        time.sleep(0.01)
    service.api().stopProcessingJob(None, job["id"])
    job = service.finished(job)
    assert job["status"] == "aborted" and processes(job)[0]["status"] == "done"


def test_the_same_key_gives_the_same_job_however_many_ask_at_once(service: Running, work: Path) -> None:
    service.workflow({"1": {"command": f"echo x >>{work}/runs"}})
    found: list[str] = []
    gate = threading.Barrier(50)

    def ask() -> None:
        gate.wait()
        job = service.api().startProcessingJob(OWNER, "w", {"filePath": "/dev/null"}, idempotencyKey="daq-1/a.h5")
        found.append(job["id"])

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 50 and len(set(found)) == 1
    service.finished({"id": found[0]})
    assert (work / "runs").read_text() == "x\n"
    other = service.api().startProcessingJob(OWNER, "w", {"filePath": "/dev/null"}, idempotencyKey="daq-1/b.h5")
    assert other["id"] != found[0]
    service.finished(other)


def test_listing_jobs(service: Running) -> None:
    service.workflow({"1": {"command": "echo N: $n", "outputVariableRegexList": ["N: (?P<found>.*)"]}}, name="listed")
    jobs = [service.finished(service.start("listed", n=n, experiment="x" if n else "y")) for n in range(4)]
    ids = [job["id"] for job in jobs]
    api = service.api()

    def listed(**options: object) -> list[str]:
        query = {"workflow.name": "listed", **options.pop("query", {})}  # type: ignore[arg-type]
        return [job["id"] for job in api.listProcessingJobs(OWNER, query, **options)]  # type: ignore[arg-type]

    assert listed() == ids
    assert [job["id"] for job in api.listProcessingJobs(limit=4)] == ids, "without owner, the newest last"
    assert listed(limit=2) == ids[2:] and listed(skip=1, limit=2) == ids[1:3] and listed(skip=9) == []
    assert listed(query={"n": 2}) == [ids[2]] == listed(query={"found": "2"}) == listed(query={"id": ids[2]})
    assert listed(query={"n": {"$gte": 1, "$lt": 3}, "experiment": "x"}) == ids[1:3]
    assert listed(query={"status": {"$in": ["failed"]}}) == []
    assert api.getLastProcessingJob(OWNER)["id"] == ids[-1]
    with pytest.raises(ObjectNotFound, match="does not exist"):
        api.getLastProcessingJob(OWNER, {"n": 99})
    (short,) = api.listProcessingJobs(OWNER, {"id": ids[0]})
    assert "workflow" not in short and "n" not in short and short["submissionTimestamp"] and short["runTime"] >= 0
    (full,) = api.listProcessingJobs(OWNER, {"id": ids[0]}, keyList="ALL")
    assert full == service.finished(jobs[0])
    (chosen,) = api.listProcessingJobs(OWNER, {"id": ids[0]}, keyList=["id", "n", "nothing"])
    assert chosen == {"id": ids[0], "n": 0}
    for query in ({"$where": "1"}, {"n": {"$regex": "x"}}, {"a.b": 1}):
        with pytest.raises(InvalidArgument):
            api.listProcessingJobs(OWNER, query)


def test_a_job_of_an_experiment_finds_its_data_directory(service: Running, storage_site: storage.Site) -> None:
    name = "e" + uuid.uuid4().hex[:8]
    storage_site.experiments(storage.MANAGER).addExperiment(name, typeName="TEST")
    data = Path(storage_site.experiments(storage.MANAGER).getExperimentByName(name)["dataDirectory"])
    service.workflow({"1": {"command": 'echo "$filePath"; pwd'}})
    job = service.finished(service.start(experimentName=name, filePath="a/b.h5"))
    path, where = processes(job)[0]["stdOut"].splitlines()
    assert path == "a/b.h5" and job["filePath"] == "a/b.h5" and job["experimentName"] == name
    assert where == str(data) or not os.access(data, os.X_OK) or STAGE_ACCOUNT
    job = service.finished(service.start(experimentName=name, filePath="../../x"))
    assert job["status"] == "failed" and "leaves the experiment" in job["errorMessage"]
    with pytest.raises(ObjectNotFound, match="does not exist"):
        service.start(experimentName="no-such-experiment")


def test_many_small_jobs_of_several_owners_all_end(service: Running) -> None:
    service.workflow({"1": {"command": "true"}}, name="small")
    api = service.api()
    ids = [
        api.startProcessingJob(OWNER, "small", {"filePath": "x"}, jobOwner=f"d20000{number % 3}")["id"]
        for number in range(60)
    ]
    assert {service.finished({"id": job})["status"] for job in ids} == {"done"}
    assert [job["id"] for job in api.listProcessingJobs("d200001")] == ids[1::3]


def test_status_and_metrics_tell_how_it_goes(service: Running) -> None:
    status = service.rest(None).get("/status")
    assert status["status"] == "ok" and {check["name"] for check in status["checks"]} >= {
        "database",
        "engine",
        "stage account",
        "spool",
    }
    assert "secret" not in json.dumps(status)
    assert service.rest().delete("/status")["service"] == "processing"
