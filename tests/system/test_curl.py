"""The curl page of the documentation, run as it stands."""

import json
import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "curl.md"


@pytest.fixture(scope="module")
def answers(suite, run_directory):
    suite.dm("dm-add-experiment", "--experiment", "by-curl", "--type", "TEST")
    source, here = run_directory / "curl-source", run_directory / "curl"
    source.mkdir()
    here.mkdir()
    (source / "spec scan.dat").write_text("#F by hand\n")
    username, password = suite.manager
    environment = suite.environment | {
        "DM_USER": username,
        "DM_PASSWORD": password,
        "EXPERIMENT": "by-curl",
        "SOURCE": str(source),
    }
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stderr + "".join(file.read_text() for file in here.glob("*.json"))
    found = {file.stem: json.loads(file.read_text()) for file in here.glob("*.json")}
    return found | {"source": str(source), "output": (here / "output.txt").read_text()}


def test_login(answers, suite):
    assert answers["daq-login"]["username"] == answers["proc-login"]["username"] == suite.manager[0]


def test_daq(answers):
    daq = answers["daq"]
    assert (daq["experimentName"], daq["dataDirectory"]) == ("by-curl", answers["source"])
    assert answers["daq-info"]["id"] == daq["id"] == answers["daq-stop"]["id"]
    assert answers["daq-info"]["status"] in {"pending", "running"}


def test_job(answers):
    assert answers["job"]["status"] == "pending"
    job = answers["job-done"]
    assert (job["id"], job["status"]) == (answers["job"]["id"], "done")
    assert int(job["nLines"]) > 0


def test_output(answers):
    assert int(answers["output"]) == int(answers["job-done"]["nLines"])


def test_lines_of_a_macro(answers):
    job = answers["spec-done"]
    assert (job["id"], job["status"], job["filePath"]) == (answers["spec-job"]["id"], "done", "/etc/hosts")
