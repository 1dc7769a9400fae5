"""The dm-* commands of workflows and jobs, as processes against a running service."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
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
    """Run a command by its module and return what it printed."""
    module = "dm.station.processing.commands." + command.removeprefix("dm-").replace("-", "_")
    code = f"import sys; from {module} import main; sys.argv[0] = {command!r}; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
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
