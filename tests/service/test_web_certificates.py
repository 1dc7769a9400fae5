"""Certificates that are renewed while the service runs, TLS versions, and callers behind proxies."""

from __future__ import annotations

import datetime
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from dm.common import tls
from dm.common.web import certificates as kit
from dm.common.web.certificates import ServerCertificate
from dm.common.web.server import Server
from tests.service.web_fixtures import USERS, application, client, raw, running


@pytest.fixture
def folder(certificates: Path, tmp_path: Path) -> Path:
    """A copy of the authority with a server certificate of its own."""
    for name in ("ca.pem", "ca.key"):
        shutil.copy(certificates / name, tmp_path / name)
    tls.issue(tmp_path, ["localhost", "127.0.0.1"])
    return tmp_path


@contextmanager
def connected(port: int, context: ssl.SSLContext, name: str = "localhost") -> Iterator[ssl.SSLSocket]:
    """A TLS connection to a port of this host."""
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with plain, context.wrap_socket(plain, server_hostname=name) as sock:
        yield sock


def serial(server: Server, folder: Path) -> int:
    """Return the serial number of the certificate a new connection is shown."""
    with raw(server, folder) as sock:
        return int(sock.getpeercert()["serialNumber"], 16)


def test_a_renewed_certificate_is_taken_up_without_a_restart(folder, monkeypatch, caplog):
    monkeypatch.setattr(kit, "LOOK_SECONDS", 0.0)
    with running(folder) as server, client(server, folder, "d123456") as http:
        before = serial(server, folder)
        (folder / "server.key").write_bytes(b"half a renewal")
        with caplog.at_level(logging.WARNING, "dm.web"):
            server.certificate.look()
        assert serial(server, folder) == before, "the one that works stays"
        tls.issue(folder, ["localhost", "127.0.0.1"])
        server.certificate.look()
        assert serial(server, folder) != before
        assert http.get("/session").status_code == 200, "open connections go on"


def test_sighup_takes_it_up_at_once(folder):
    with subprocess.Popen(
        [sys.executable, "-m", "tests.service.web_process", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[-1])

            def shown() -> str:
                with connected(port, tls.client_context(folder / "ca.pem")) as sock:
                    return str(sock.getpeercert()["serialNumber"])

            before = shown()
            tls.issue(folder, ["localhost", "127.0.0.1"])
            os.kill(process.pid, signal.SIGHUP)
            after = before
            while after == before and process.poll() is None:
                after = shown()
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(20)


def test_health_warns_before_the_certificate_ends(folder, monkeypatch):
    monkeypatch.setattr(tls, "CERTIFICATE_DAYS", 20)
    tls.issue(folder, ["localhost", "127.0.0.1"])
    with running(folder) as server, client(server, folder) as http:
        checks = {check["name"]: check for check in http.get("/status").json()["checks"]}
        assert checks["certificate"]["status"] == "warning"
        assert checks["certificate"]["message"].startswith("valid until 20")
    patient = ServerCertificate(folder / "server.pem", folder / "server.key", warning_days=5)
    assert patient.check()[0] == "ok"
    patient._ends = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    level, message = patient.check()
    assert level == "critical" and message.startswith("was valid until")


def test_f42_versions_and_ciphers(folder):
    with running(folder, tls_minimum="1.3") as server:
        context = tls.client_context(folder / "ca.pem")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol version|alert"), connected(server.port, context):
            pytest.fail("was let in")
        with raw(server, folder) as sock:
            assert sock.version() == "TLSv1.3"
    with running(folder) as server:
        context = tls.client_context(folder / "ca.pem")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AES128-GCM-SHA256:ECDHE+AES:AES256-SHA:@SECLEVEL=0")
        with connected(server.port, context) as sock:
            assert "GCM" in sock.cipher()[0] and sock.cipher()[0].startswith("ECDHE")
        context.set_ciphers("AES128-GCM-SHA256:AES256-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
        with socket.create_connection(("127.0.0.1", server.port), 10) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="localhost")


def test_f42_our_client_refuses_the_wrong_name_behind_any_sni(folder):
    with running(folder) as server:
        context = tls.client_context(folder / "ca.pem")
        for name in ("other.example.org", "x" * 60 + ".example.org"):
            with pytest.raises(ssl.SSLCertVerificationError), connected(server.port, context, name):
                pytest.fail("was believed")
        with client(server, folder) as http:
            assert http.get("/status").status_code == 200


def test_callers_behind_a_trusted_proxy_are_told_apart(folder, caplog):
    app = application()
    with running(folder, app, trusted_proxies=["127.0.0.1"]) as server, client(server, folder) as http:

        def login(address: str, password: str = "wrong") -> httpx.Response:
            form = {"username": "d123456", "password": password}
            return http.post("/login", data=form, headers={"X-Forwarded-For": f"10.9.9.9, {address}"})

        assert [login("192.0.2.1").status_code for _ in range(12)] == [401] * 10 + [429] * 2
        with caplog.at_level(logging.INFO, "dm.access"):
            assert login("192.0.2.2", USERS["d123456"]).status_code == 200
    assert any(record.getMessage().startswith("192.0.2.2 ") for record in caplog.records if record.name == "dm.access")


def test_nobody_else_can_say_who_they_are(folder):
    with running(folder, trusted_proxies=["192.0.2.0/24"]) as server, client(server, folder) as http:
        form = {"username": "d123456", "password": "wrong"}
        statuses = [
            http.post("/login", data=form, headers={"X-Forwarded-For": f"10.0.0.{number}"}).status_code
            for number in range(12)
        ]
        assert statuses == [401] * 10 + [429] * 2
