"""After everything the run did: no log of the whole suite has a password, a session, a token or a grant in it.

Named so that it comes last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common.client import RestClient
from dm.common.environment import URL_VARIABLES, read_login_file
from dm.common.errors import AuthenticationError
from tests.live import Suite

LOOKS_LIKE = re.compile(
    rb"SESSIONID=[A-Za-z0-9_-]{20}|dmt_[0-9a-f]{32}_[A-Za-z0-9_-]{10}|Bearer [A-Za-z0-9_-]{16}"
    rb"|://[^:/@\s]+:(?!\*\*\*)[^@/\s]+@|password=[^&\s*'\"]{6}|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def logs(suite: Suite) -> Iterator[tuple[Path, bytes]]:
    for file in sorted(suite.installed.layout.var.rglob("*")):
        if file.is_file() and (file.suffix in (".log", ".out") or ".log." in file.name):
            yield file, file.read_bytes()


@pytest.fixture(scope="module")
def secrets(suite: Suite) -> set[bytes]:
    """Passwords and sessions that the run used."""
    found: set[bytes] = set()
    layout = suite.installed.layout
    for file in layout.etc.glob(".*.login"):
        found.add(read_login_file(file)[1].encode())
    for file in (layout.root / "home").rglob("*"):
        if file.is_file():
            found |= set(re.findall(rb"[A-Za-z0-9_-]{43}", file.read_bytes()))
    environment = suite.environment
    for service in ("storage", "catalog", "acquisition", "processing", "facility"):
        url = environment[URL_VARIABLES[service]]
        with RestClient(url, *suite.manager, ca_file=environment["DM_CA_FILE"]) as client:
            client.login()
            assert client.cookie
            found.add(client.cookie.encode())
        with RestClient(url, suite.manager[0], "hunter2-hunter2", ca_file=environment["DM_CA_FILE"]) as client:
            with pytest.raises(AuthenticationError):
                client.login()
            client.send("GET", "/session?password=hunter2-hunter2", headers={"Authorization": "Bearer hunter2-hunter2"})
            found.add(b"hunter2-hunter2")
    return {secret for secret in found if len(secret) >= 8}


def test_no_log_has_a_secret(suite: Suite, secrets: set[bytes]) -> None:
    assert len(secrets) >= 8
    seen = dict(logs(suite))
    assert len(seen) >= 6
    for file, content in seen.items():
        for secret in secrets:
            assert secret not in content, f"{file.name} has a secret: {_line(content, content.index(secret))}"


def test_no_log_has_what_looks_like_one(suite: Suite) -> None:
    for file, content in logs(suite):
        match = LOOKS_LIKE.search(content)
        assert match is None, f"{file.name}: {_line(content, match.start())}"


def test_files_of_secrets_are_private(suite: Suite) -> None:
    layout = suite.installed.layout
    files = [*layout.etc.glob(".*.login"), *layout.certificates.glob("*.key")]
    assert len(files) >= 4
    for file in files:
        assert file.stat().st_mode & 0o077 == 0, file


def _line(content: bytes, at: int) -> str:
    """Return the line without what makes it secret."""
    begin = content.rfind(b"\n", 0, at) + 1
    return content[begin:at].decode("utf-8", "replace") + "..."
