"""ZeroMQ as an installation has it: keys made by dm-install, the commands, and the example of the reference page."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from tests.live import PROGRAMS, Suite

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "zeromq.md"
NAME = "zmq-say"


def workflow(suite: Suite, directory: Path) -> None:
    spec = directory / "say.json"
    spec.write_text(json.dumps({"name": NAME, "stages": {"1": {"command": "echo $word"}}}))
    suite.dm("dm-upsert-workflow", "--json-spec", spec)


def values(line: str) -> dict[str, str]:
    """Return the ``key=value`` pairs of a printed record."""
    return dict(re.findall(r"(\w+)=(\S+)", line))


def test_keys_of_an_installation(suite: Suite) -> None:
    keys = suite.installed.layout.zeromq
    manager = suite.manager[0]
    for name in ("server", manager):
        assert stat.S_IMODE((keys / f"{name}.key_secret").stat().st_mode) == 0o600
    assert "secret-key" not in (keys / "server.key").read_text()
    assert suite.environment["DM_ZMQ_SERVER_KEY"] == str(keys / "server.key")
    listed = [values(line) for line in suite.dm("dm-zmq-keys", "list").splitlines()]
    assert (manager, manager, "all") in [(key["name"], key["account"], key["events"]) for key in listed]


def test_submit_and_listen(suite: Suite, tmp_path: Path) -> None:
    workflow(suite, tmp_path)
    listener = subprocess.Popen(
        [PROGRAMS / "dm-zmq-listen", "--owner", suite.manager[0]],
        env=suite.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert listener.stdout is not None
        os.set_blocking(listener.stdout.fileno(), False)
        words = ("--workflow-name", NAME, "filePath:/dev/null", "word:hello")
        submitted = values(suite.dm("dm-zmq-submit", *words, "--idempotency-key", "zmq-1"))
        assert set(submitted) == set(values(suite.dm("dm-start-processing-job", *words)))
        assert values(suite.dm("dm-zmq-submit", *words, "--idempotency-key", "zmq-1"))["id"] == submitted["id"]
        suite.dm("dm-wait-processing-job", "--id", submitted["id"])
        seen = ""
        deadline = time.monotonic() + 60
        while "status=done" not in seen and time.monotonic() < deadline:  # the listener may have come late
            suite.dm("dm-zmq-submit", *words)
            seen += listener.stdout.read() or ""
        [first, *_] = [line for line in seen.splitlines() if "event=file" in line]
        assert values(first).items() >= {"stage": "1", "filePath": "/dev/null", "exitStatus": "0"}.items()
    finally:
        listener.send_signal(signal.SIGINT)
        assert listener.wait(30) == 130
        listener.stdout.close()


def test_a_user_has_a_key_authorised(suite: Suite, tmp_path: Path) -> None:
    workflow(suite, tmp_path)
    manager = suite.manager[0]
    secret = tmp_path / "mine.key_secret"
    made = values(suite.dm("dm-zmq-keys", "make", "--file", secret))
    assert made == {"keyFile": str(secret), "publicKeyFile": str(tmp_path / "mine.key")}
    assert "exist" in suite.dm("dm-zmq-keys", "make", "--file", secret, status=4)
    environment = suite.environment | {"DM_ZMQ_KEY_FILE": str(secret)}

    def submit() -> subprocess.CompletedProcess[str]:
        words = [PROGRAMS / "dm-zmq-submit", "--workflow-name", NAME, "filePath:/dev/null"]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=90)

    refused = submit()
    assert refused.returncode == 3 and "does not let this key in" in refused.stderr
    suite.dm("dm-zmq-keys", "authorise", "--account", manager, "--key", tmp_path / "mine.key", "--name", "test-mine")
    time.sleep(1.1)
    accepted = submit()
    assert accepted.returncode == 0, accepted.stderr
    suite.dm("dm-zmq-keys", "revoke", "--name", "test-mine")
    assert "test-mine" not in suite.dm("dm-zmq-keys", "list")
    suite.dm("dm-zmq-keys", "revoke", "--name", "test-mine", status=14)
    suite.dm("dm-wait-processing-job", "--id", values(accepted.stdout)["id"])


def test_the_example_of_the_page(suite: Suite, tmp_path: Path) -> None:
    workflow(suite, tmp_path)
    _before, _title, after = PAGE.read_text().partition("## Plain pyzmq")
    example = after.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", example],
        env=suite.environment | {"JOB": f"{suite.manager[0]} {NAME} /dev/null"},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert (done.stdout.strip(), done.returncode) == ("done", 0), done.stderr


def test_secret_keys_are_no_data(suite: Suite) -> None:
    """The acquisition service can read them; who starts a DAQ must not get at them through it."""
    suite.dm("dm-add-experiment", "--experiment", "zmq-keys", "--type", "TEST")
    words = ("--experiment", "zmq-keys", "--data-directory", suite.installed.layout.zeromq)
    assert "files of the DM installation itself" in suite.dm("dm-upload", *words, status=8)
    suite.dm("dm-delete-experiment", "--experiment", "zmq-keys", "--force")
