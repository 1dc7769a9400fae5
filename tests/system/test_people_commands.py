"""Tokens, sessions, inactive users and the audit log as people use them, on a whole running suite."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common import tokens
from dm.common.environment import write_login_file
from dm.common.errors import AuthenticationError, AuthorizationError, InvalidObjectState, InvalidSession, ObjectNotFound
from dm.deploy.install import ADMINISTRATOR
from tests.live import STATION, Suite

PASSWORD = "pass-word-1"
USAGE = 2
EXPERIMENT = "people-1"
SECONDS = 30.0


@pytest.fixture(scope="module")
def unattended(suite: Suite) -> Iterator[str]:
    """The name of a login file with a token of the station's manager, good for its services."""
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--type=TEST")
    file = suite.installed.layout.login_file("unattended")
    line = suite.dm(
        "dm-add-token", "--name", "night shift", "--scopes=read,acquisition,processing", "--station", STATION,
        "--days=30", "--login-file", file,
    )  # fmt: skip
    assert f" username={suite.manager[0]} " in line and "token=" not in line
    assert file.stat().st_mode & 0o777 == 0o600
    yield "unattended"
    file.unlink()


def test_a_token_does_what_its_scopes_say_without_a_password(suite: Suite, unattended: str, tmp_path: Path) -> None:
    assert EXPERIMENT in suite.dm("dm-list-experiments", user=unattended)
    assert suite.dm("dm-list-sessions", user=unattended) == suite.dm("dm-list-sessions", user=unattended)
    for words in (["dm-list-daqs"], ["dm-list-workflows"], ["dm-list-experiment-files", "--experiment", EXPERIMENT]):
        suite.dm(*words, user=unattended)
    (tmp_path / "f").write_bytes(b"1")
    suite.dm("dm-upload", "--experiment", EXPERIMENT, f"--data-directory={tmp_path}", "--wait", user=unattended)
    job = suite.dm(
        "dm-start-processing-job", "--workflow-name=example-01", "--workflow-owner=dm", "filePath:/dev/null",
        user=unattended, status=ObjectNotFound.code,
    )  # fmt: skip
    assert "example-01" in job  # it was let in: there is no such workflow
    zmq = suite.dm(
        "dm-zmq-submit", "--workflow-name=example-01", "filePath:/dev/null", user=unattended, status=ObjectNotFound.code
    )
    assert "example-01" in zmq
    error = suite.dm(
        "dm-add-experiment", "--experiment=x", "--type=TEST", user=unattended, status=AuthorizationError.code
    )
    assert "The API token is for acquisition, processing, read; this takes scope all or storage" in error
    error = suite.dm("dm-add-token", "--name=t", "--scopes=all", user=unattended, status=AuthorizationError.code)
    assert "log in with a password" in error


def test_curl_and_the_spec_macros_use_a_token(suite: Suite, unattended: str, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "tokens.md"
    (lines,) = [part for part in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL) if "curl" in part]
    file = str(suite.installed.layout.login_file(unattended))
    environment = suite.environment | {"DM_LOGIN_FILE": file}

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert isinstance(json.loads(run("sh", "-eu", "-c", lines)), list)
    assert (tmp_path / "bearer").stat().st_mode & 0o077 == 0
    (tmp_path / "spec").mkdir()
    spec = str(Path(__file__).parents[2] / "etc" / "spec" / "dm-spec")
    daq = json.loads(run("sh", spec, "start-daq", EXPERIMENT, str(tmp_path / "spec")))
    assert daq["experimentName"] == EXPERIMENT
    run("sh", spec, "stop-daq", EXPERIMENT, str(tmp_path / "spec"))
    suite.dm("dm-wait-daq", "--id", daq["id"], user=unattended)


def test_a_revoked_token_is_of_no_use_anywhere(suite: Suite) -> None:
    made = json.loads(suite.dm("dm-add-token", "--name=short", "--scopes=all", "-a", "--display-format=json"))
    parsed = tokens.parse(made["token"])
    assert parsed is not None and parsed.id == made["id"]
    file = suite.installed.layout.login_file("revoked")
    write_login_file(file, suite.manager[0], made["token"])
    services = (["dm-list-stations"], ["dm-list-daqs"], ["dm-list-workflows"])
    for words in services:
        suite.dm(*words, user="revoked")
    assert f"id={parsed.id} name=short " in suite.dm("dm-list-tokens")
    assert " status=revoked " in suite.dm("dm-revoke-token", "--id", parsed.id)
    assert parsed.id not in suite.dm("dm-list-tokens")
    assert parsed.id in suite.dm("dm-list-tokens", "--ended", "--username", suite.manager[0])
    suite.dm(*services[0], user="revoked", status=InvalidSession.code)  # at the site at once
    deadline = time.monotonic() + SECONDS
    for words in services[1:]:  # at stations when what they know is five seconds old
        while True:
            try:
                suite.dm(*words, user="revoked", status=InvalidSession.code)
                break
            except AssertionError:
                assert time.monotonic() < deadline
    suite.dm("dm-revoke-token", "--id", "00000000-0000-4000-8000-000000000000", status=ObjectNotFound.code)
    file.unlink()


def test_an_inactive_user_is_nobody(suite: Suite) -> None:
    name = "d610001"
    suite.dm("dm-add-user", "--username", name, "--password-file=-", user=ADMINISTRATOR, stdin=f"{PASSWORD}\n")
    write_login_file(suite.installed.layout.login_file(name), name, PASSWORD)
    suite.dm("dm-add-user-experiment-role", "--username", name, "--experiment", EXPERIMENT, "--role=User")
    assert EXPERIMENT in suite.dm("dm-list-experiments", user=name)
    line = suite.dm("dm-update-user", "--username", name, "--active=no", "-a", user=ADMINISTRATOR)
    assert " active=False " in line
    suite.dm("dm-list-experiments", user=name, status=AuthenticationError.code)
    suite.dm("dm-update-user", "--username", name, "--active=yes", user=ADMINISTRATOR)
    assert EXPERIMENT in suite.dm("dm-list-experiments", user=name)
    words = ["dm-update-user", "--username", ADMINISTRATOR, "--active=no"]
    assert "last administrator" in suite.dm(*words, user=ADMINISTRATOR, status=InvalidObjectState.code)
    suite.dm(*words, status=AuthorizationError.code)
    suite.dm("dm-update-user", "--username", name, "--active=perhaps", user=ADMINISTRATOR, status=USAGE)


def test_one_s_own_sessions(suite: Suite) -> None:
    name = "d610002"
    suite.dm("dm-add-user", "--username", name, "--password-file=-", user=ADMINISTRATOR, stdin=f"{PASSWORD}\n")
    write_login_file(suite.installed.layout.login_file(name), name, PASSWORD)
    line = suite.dm("dm-list-sessions", user=name)
    assert line.count("created=") == 1 and " current=True " in line
    suite.dm("dm-list-stations", user=name)
    assert suite.dm("dm-end-sessions", user=name) == "0 sessions ended.\n"
    assert suite.dm("dm-list-sessions", user=name).count("created=") == 1


@pytest.mark.usefixtures("unattended")
def test_the_audit_log_says_who_did_what(suite: Suite) -> None:
    manager = suite.manager[0]
    lines = suite.dm("dm-list-audit-events", "--event=experiment.added", f"--subject={EXPERIMENT}/{STATION}")
    assert f" actor={manager} " in lines and " remote=127.0.0.1 " in lines
    rows = [
        ast.literal_eval(line)
        for line in suite.dm(
            "dm-list-audit-events", "--username", manager, "--event=token", "--since=2020-01-01", "--until=2100-01-01",
            "--limit=2000", "--display-format=dict", "-a", user=ADMINISTRATOR,
        ).splitlines()
    ]  # fmt: skip
    (made,) = [row for row in rows if row["details"].get("name") == "night shift"]
    assert (made["event"], made["subject"], made["service"]) == ("token.added", manager, "storage")
    assert made["details"]["scopes"] == ["acquisition", "processing", "read"] and made["requestId"]
    suite.dm("dm-list-audit-events", user="d610002", status=AuthorizationError.code)
