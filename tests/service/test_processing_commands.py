"""The dm-* commands of workflows and jobs, as processes against a running service."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.station.processing import specs
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Running, running_processing

SPEC = """
# An example with comments and joins
{
    'name': 'command-01',
    'owner': '%s',
    'stages': {
        '1-SAY': {'command': 'echo "V: ' + '$word"', 'outputVariableRegexList': ['V: (?P<said>.*)']},
    },
}
"""


@pytest.fixture(scope="module")
def service(
    postgres_url: str, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with (
        storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as site,
        running_processing(site, mongo_url, certificates, tmp_path_factory.mktemp("processing")) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def environment(service: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("home")
    login = directory / "login"
    login.write_text(f"{OWNER}|{storage.password_of(OWNER)}\n")
    login.chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DM_")}
    return kept | {
        "DM_HOME": str(directory / "dm"),
        "DM_LOGIN_FILE": str(login),
        "DM_CA_FILE": str(service.site.ca_file),
        "DM_PROC_WEB_SERVICE_URL": service.url,
    }


def run(environment: dict[str, str], command: str, *words: str, status: int = 0) -> str:
    """Run a command and return what it printed."""
    program = Path(sys.executable).parent / command
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stdout + done.stderr


def test_the_life_of_a_job_by_commands(environment: dict[str, str], tmp_path: Path) -> None:
    spec = tmp_path / "spec.py"
    spec.write_text(SPEC % OWNER)
    line = run(environment, "dm-add-workflow", f"--py-spec={spec}")
    assert re.fullmatch(rf"id=[0-9a-f]{{24}} name=command-01 owner={OWNER} \n", line)
    workflow_id = line[3:27]
    assert "already exists" in run(environment, "dm-add-workflow", "--py-spec", str(spec), status=15)
    (tmp_path / "spec.json").write_text(json.dumps(specs.read(spec) | {"description": "by JSON"}))
    run(environment, "dm-upsert-workflow", f"--json-spec={tmp_path / 'spec.json'}")
    assert run(environment, "dm-update-workflow", f"--py-spec={spec}")[3:27] == workflow_id
    assert line in run(environment, "dm-list-workflows", "--owner", OWNER)
    shown = run(environment, "dm-get-workflow", "--name=command-01", "-a", "-pp")
    assert ast.literal_eval(shown)["stages"]["1-SAY"]["command"] == 'echo "V: $word"'
    assert run(environment, "dm-get-workflow", "--id", workflow_id) == line

    started = run(
        environment,
        "dm-start-processing-job",
        "--workflow-name=command-01",
        f"--workflow-owner={OWNER}",
        "filePath:/dev/null",
        "word:two words: here",
    )
    found = re.match(rf"id=([0-9a-f-]{{36}}) owner={OWNER} status=(pending|running) ", started)
    assert found and started.endswith(" \n")
    job = found[1]
    ended = run(environment, "dm-wait-processing-job", "--id", job, "--timeout=60")
    assert re.fullmatch(
        rf"id={job} owner={OWNER} status=done stage=1-SAY startTime=\d+\.\d{{6}} endTime=\d+\.\d{{6}} "
        r"runTime=\d+\.\d\d startTimestamp=\S+ \S+ \S+ endTimestamp=\S+ \S+ \S+ \n",
        ended,
    )
    assert run(environment, "dm-get-processing-job", f"--id={job}", "--owner", OWNER) == ended
    text = run(environment, "dm-get-processing-job", "--id", job, "--display-keys", "ALL", "--display-format=pprint")
    record = ast.literal_eval(text)
    assert record["said"] == "two words: here" and "'said': 'two words: here'" in text
    assert record["workflow"]["stages"]["1-SAY"]["childProcesses"]["0"]["exitStatus"] == 0
    assert run(environment, "dm-get-last-processing-job", "--display-format=json").startswith('{"id": "' + job)
    assert run(environment, "dm-list-processing-jobs", f"--owner={OWNER}", f"id:{job}") == ended
    listed = run(environment, "dm-list-processing-jobs", "--display-keys=id,said,nothing", "said:two words: here")
    assert listed == f"id={job} said=two words: here \n"
    assert run(environment, "dm-list-processing-jobs", "status:failed") == ""
    assert "ended already" in run(environment, "dm-stop-processing-job", "--id", job, status=16)
    run(environment, "dm-delete-processing-job", "--id", job)
    assert "does not exist" in run(environment, "dm-get-processing-job", "--id", job, status=14)
    run(environment, "dm-delete-workflow", "--name=command-01")
    assert "does not exist" in run(environment, "dm-get-workflow", "--name=command-01", status=14)


def test_waiting_for_a_failing_job_fails(environment: dict[str, str], service: Running) -> None:
    job = service.start(service.workflow({"1": {"command": "exit 3"}}))
    output = run(environment, "dm-wait-processing-job", "--id", job["id"], status=11)
    assert f"id={job['id']}" in output and "Error: Job" in output and "failed" in output


def test_a_job_that_fails_goes_on_by_commands(
    environment: dict[str, str], service: Running, open_directory: Path
) -> None:
    command = f"echo out; echo err >&2; test -e {open_directory}/good"
    service.workflow({"1-A": {"command": "true"}, "2-B": {"command": command}}, "on")
    started = run(environment, "dm-start-processing-job", "--workflow-name=on", "--priority=7", "filePath:/dev/null")
    job = started[3:39]
    assert "failed" in run(environment, "dm-wait-processing-job", "--id", job, status=11)
    assert run(environment, "dm-get-processing-job-output", "--id", job) == "out\n"
    assert run(environment, "dm-get-processing-job-output", "--id", job, "--process=1", "--stderr") == "err\n"
    assert run(environment, "dm-get-processing-job-output", "--id", job, "--process=1", "--follow") == "out\n"
    assert run(environment, "dm-get-processing-job-output", "--id", job, "--process=0") == ""
    assert "does not exist" in run(environment, "dm-get-processing-job-output", "--id", job, "--process=9", status=14)
    assert "--process" in run(environment, "dm-get-processing-job-output", "--id", job, "--follow", status=2)
    open_directory.chmod(0o755)
    (open_directory / "good").touch()
    assert run(environment, "dm-resume-processing-job", f"--id={job}").startswith(f"id={job} ")
    assert f"id={job} " in run(environment, "dm-wait-processing-job", "--id", job)
    assert "is done" in run(environment, "dm-resume-processing-job", "--id", job, status=16)
    again = run(
        environment, "dm-restart-processing-job", "--id", job, "--from-stage", "2-B", "--display-keys=id,restarts"
    )
    assert again == f"id={job} restarts=2 \n"
    run(environment, "dm-wait-processing-job", "--id", job)
    assert "no-such" in run(environment, "dm-restart-processing-job", "--id", job, "--from-stage=no-such", status=14)
    logged = run(environment, "dm-list-processing-log")
    assert logged.count(f"id={job} ") == 1 and f" submittedBy={OWNER} via=REST workflowName=on " in logged
    assert run(environment, "dm-list-processing-log", "--date=2026-03-05") == ""
    assert "Date" in run(environment, "dm-list-processing-log", "--date=5.3.", status=8)


def test_waiting_for_several_jobs(environment: dict[str, str], service: Running) -> None:
    service.workflow({"1": {"command": "exit $x"}}, "several")
    service.workflow({"1": {"command": "sleep 300"}}, "sleeping")
    good, bad = service.start("several", x=0)["id"], service.start("several", x=1)["id"]
    sleeping, other = service.start("sleeping")["id"], service.start("sleeping")["id"]
    both = run(environment, "dm-wait-processing-job", "--id", good, "--id", good)
    assert both.count(f"id={good} ") == 2
    words = ("dm-wait-processing-job", "--timeout=1")
    assert "has not ended" in run(environment, *words, "--id", sleeping, "--id", good, status=22)
    assert run(environment, "dm-abort-processing-job", "--id", sleeping).startswith(f"id={sleeping} ")
    assert run(environment, "dm-stop-processing-job", "--id", other).startswith(f"id={other} ")
    assert "aborted" in run(environment, "dm-wait-processing-job", "--id", good, "--id", sleeping, status=16)
    failed = run(environment, "dm-wait-processing-job", "--id", sleeping, "--id", bad, "--id", good, status=11)
    assert [line[3:39] for line in failed.splitlines() if line.startswith("id=")] == [sleeping, bad, good]
    assert failed.splitlines()[-1].startswith(f"Error: Job {bad} is failed")


def test_waiting_shows_progress_on_a_terminal(environment: dict[str, str], service: Running) -> None:
    service.workflow({"1": {"command": "sleep 1"}, "2": {"command": "true"}}, "shown")
    first, second = service.start("shown")["id"], service.start("shown")["id"]
    program = Path(sys.executable).parent / "dm-wait-processing-job"
    terminal = environment | {"TERM": "xterm", "COLUMNS": "200"}
    for ids, description in (((first, second), "2 jobs"), ((first,), f"Job {first}")):
        words = [word for id in ids for word in ("--id", id)]
        master, slave = pty.openpty()
        process = subprocess.Popen([program, *words], env=terminal, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(master, 65536):
                shown += piece
        os.close(master)
        assert process.wait(30) == 0
        assert description in shown.decode() and all(f"id={id} " in shown.decode() for id in ids)


def test_listing_by_status_workflow_and_time(environment: dict[str, str], service: Running) -> None:
    service.workflow({"1": {"command": "exit $x"}}, "listed")
    jobs = [service.finished(service.start("listed", x=x))["id"] for x in (0, 1, 0)]

    def listed(*words: str) -> list[str]:
        lines = run(environment, "dm-list-processing-jobs", "--workflow-name=listed", *words, "--display-keys=id")
        return [line[3:39] for line in lines.splitlines()]

    assert listed() == jobs == listed("--status=done", "--status", "failed")
    assert listed("--status=failed") == jobs[1:2] and listed("--status=aborted") == []
    assert listed("--from=5m") == jobs == listed("--to", time.strftime("%Y-%m-%d"), "--from=2026-03-05T00:00")
    assert listed("--to=5m") == [] == listed("--from=2199-03-05")
    assert listed("--limit=1") == jobs[2:] and listed("--skip=2") == jobs[:1]
    assert listed("--limit=6000") == jobs and listed("--limit=6000", "--skip=1") == jobs[:2]
    assert "is no time" in run(environment, "dm-list-processing-jobs", "--from=soon", status=2)


def test_revisions_of_a_workflow_by_commands(environment: dict[str, str], tmp_path: Path) -> None:
    spec = tmp_path / "spec.py"
    spec.write_text(SPEC.replace("command-01", "command-02") % OWNER)
    stages = "stage=1-SAY waitsFor=[] sets=['said'] uses=['word'] \n"
    assert run({"PATH": environment["PATH"]}, "dm-check-workflow", f"--py-spec={spec}") == stages
    run(environment, "dm-upsert-workflow", f"--py-spec={spec}")
    spec.write_text(spec.read_text().replace("echo", "/bin/echo"))
    text = run(environment, "dm-diff-workflow", f"--py-spec={spec}")
    assert text.startswith("--- stored\n+++ file\n@@ stage 1-SAY @@\n-command: echo")
    run(environment, "dm-upsert-workflow", f"--py-spec={spec}")
    assert run(environment, "dm-diff-workflow", f"--py-spec={spec}") == ""
    listed = run(environment, "dm-list-workflow-versions", "--name=command-02")
    assert re.fullmatch(
        rf"revision=1 timestamp=.* username={OWNER} isCurrent=False .*\n"
        rf"revision=2 timestamp=.* username={OWNER} isCurrent=True .*\n",
        listed,
    )
    text = run(environment, "dm-diff-workflow", "--name=command-02", "--from-revision=1")
    assert '\n+command: /bin/echo "V: $word"\n' in text
    words = ["--name", "command-02", "--summary", "--from-revision", "2", "--to-revision", "1"]
    assert "changedStages={'1-SAY': ['command']}" in run(environment, "dm-diff-workflow", *words)
    old = run(environment, "dm-get-workflow", "--name=command-02", "--revision=1", "--display-format=json", "-a")
    assert json.loads(old)["stages"]["1-SAY"]["command"] == 'echo "V: $word"'
    line = run(environment, "dm-restore-workflow", "--name=command-02", "--revision=1", "--display-keys=name,revision")
    assert line == "name=command-02 revision=3 \n"
    assert "Revision 9" in run(environment, "dm-restore-workflow", "--name=command-02", "--revision=9", status=14)


def test_all_that_is_wrong_with_a_file_is_told(environment: dict[str, str], tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"name": "w", "stages": {"1": {"command": "x", "timeuot": 5}, "2": {"runIf": "$a =="}}}))
    printed = run(environment, "dm-check-workflow", f"--json-spec={spec}", status=8).splitlines()
    assert sorted(printed[:-1]) == [
        "Stage '1': key 'timeuot' is unknown; did you mean 'timeout'?",
        "Stage '2' has no command.",
        "Stage '2': runIf '$a ==' is not a valid expression: invalid syntax.",
    ]
    assert printed[-1] == f"Error: File {str(spec)!r} has 3 problems."
    spec.write_text(json.dumps({"name": "w", "stages": {"1": {"command": 'echo "$a'}, "2": {"command": "echo $b"}}}))
    printed = run(environment, "dm-check-workflow", f"--json-spec={spec}", status=8)
    assert printed.startswith("Stage '1': the shell cannot read the command: ") and "has a problem" in printed
    assert "Give either" in run(environment, "dm-check-workflow", status=2)
    assert "not both" in run(environment, "dm-diff-workflow", f"--json-spec={spec}", "--to-revision=1", status=2)
    assert "Give --name" in run(environment, "dm-diff-workflow", status=2)


def test_bad_usage_is_told(environment: dict[str, str], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    assert "not a plain value" in run(environment, "dm-add-workflow", f"--py-spec={tmp_path}/evil.py", status=8)
    assert not canary.exists()
    assert "--py-spec" in run(environment, "dm-add-workflow", status=2)
    assert "does not exist" in run(environment, "dm-upsert-workflow", "--py-spec=/no/such/file", status=14)
    assert "key:value" in run(environment, "dm-start-processing-job", "--workflow-name=x", "word", status=2)
    assert "does not exist" in run(environment, "dm-start-processing-job", "--workflow-name=x", "filePath:a", status=14)
    assert "--name or --id" in run(environment, "dm-get-workflow", status=2)
