"""The server itself: several in one process, TLS versions, plain HTTP, stopping, a service process and its signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import httpx
import pytest

from dm.common import tls
from dm.common.errors import ConfigurationError
from dm.common.web.server import Server
from tests.service.web_fixtures import Gate, application, client, raw, read_all, running


def test_several_servers_in_one_process(certificates):
    with running(certificates) as one, running(certificates) as two:
        assert one.port != two.port
        with client(one, certificates, "d123456") as http, client(two, certificates) as other:
            assert http.get("/session").status_code == 200
            assert (
                other.get("/session", headers={"Cookie": f"SESSIONID={http.cookies['SESSIONID']}"}).status_code == 401
            )


def test_a_taken_port_is_a_configuration_error(certificates):
    with running(certificates) as server:
        files = certificates / "server.pem", certificates / "server.key"
        second = Server(application(), "127.0.0.1", server.port, *files)
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1 port {server.port}"):
            second.start()


def test_bad_certificate_files_are_a_configuration_error(certificates, tmp_path):
    tls.make_authority(tmp_path)
    _, other_key = tls.issue(tmp_path, ["localhost"])
    for certificate, key in [
        (tmp_path / "missing.pem", other_key),
        (certificates / "server.pem", other_key),
        (other_key, other_key),
    ]:
        with pytest.raises(ConfigurationError, match="TLS"):
            Server(application(), "127.0.0.1", 0, certificate, key)


def test_it_can_start_again_on_the_same_port(certificates):
    with running(certificates) as server:
        port = server.port
        with client(server, certificates) as http:
            assert http.get("/status").status_code == 200
    again = Server(application(), "127.0.0.1", port, certificates / "server.pem", certificates / "server.key")
    with again, client(again, certificates) as http:
        assert http.get("/status").status_code == 200


def test_plain_http_is_refused_at_once(certificates):
    with running(certificates) as server, socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = read_all(sock)
    assert reply.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"speaks HTTPS" in body
    assert int(re.search(rb"Content-Length: (\d+)", head)[1]) == len(body)


def test_other_protocols_are_dropped(certificates):
    with running(certificates) as server, socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(b"\x00\x01\x02")
        assert read_all(sock) == b""


@pytest.mark.parametrize(("version", "works"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_versions(certificates, version, works):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates / "ca.pem")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")
    with running(certificates) as server, socket.create_connection(("127.0.0.1", server.port), 10) as plain:
        if not works:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(plain, server_hostname="localhost")
            return
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(b"GET /status HTTP/1.0\r\n\r\n")
            assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_a_client_refuses_a_certificate_of_another_authority_or_name(certificates, tmp_path):
    other = tls.make_authority(tmp_path)
    with running(certificates) as server:
        ours = tls.client_context(certificates / "ca.pem")
        for context, name in [(tls.client_context(other), "localhost"), (ours, "elsewhere.example")]:
            plain = socket.create_connection(("127.0.0.1", server.port), 10)
            with plain, pytest.raises(ssl.SSLCertVerificationError):
                context.wrap_socket(plain, server_hostname=name)


def test_workers_multiply_while_handlers_wait(certificates):
    gate = Gate()
    few = running(certificates, application(gate), threads=2, max_threads=40)
    with few as server, client(server, certificates, "d123456") as http:
        cookie = http.cookies["SESSIONID"]
        waiting = [threading.Thread(target=_wait, args=(server, certificates, cookie)) for _ in range(30)]
        for thread in waiting:
            thread.start()
        for _ in range(30):
            assert gate.entered.acquire(timeout=30)
        assert http.get("/status").status_code == 200
        gate.open.set()
        for thread in waiting:
            thread.join(30)


def _wait(server, certificates, cookie):
    with client(server, certificates) as http:
        http.get("/wait", headers={"Cookie": f"SESSIONID={cookie}"})


def test_it_stops_with_clients_hanging_everywhere(certificates):
    gate = Gate()
    server = Server(application(gate), "127.0.0.1", 0, certificates / "server.pem", certificates / "server.key")
    server.start()
    with client(server, certificates, "d123456") as http:
        cookie = http.cookies["SESSIONID"]
        silent = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(5)]
        with raw(server, certificates) as half, raw(server, certificates) as stuck, raw(server, certificates) as deaf:
            half.sendall(b"GET /status HT")
            stuck.sendall(f"GET /dm/wait HTTP/1.1\r\nHost: x\r\nCookie: SESSIONID={cookie}\r\n\r\n".encode())
            deaf.sendall(f"GET /dm/endless HTTP/1.1\r\nHost: x\r\nCookie: SESSIONID={cookie}\r\n\r\n".encode())
            assert deaf.recv(1)
            assert gate.entered.acquire(timeout=30)
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 10
            assert server.application.stopping.is_set()
        for sock in silent:
            assert read_all(sock) == b""
            sock.close()
    gate.open.set()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 1)


def test_accept_survives_running_out_of_descriptors(certificates):
    """A connection flood uses up the descriptors; the oldest silent connections make room for a new client."""
    script = Path(__file__).with_name("web_process.py")
    process = _start(script, certificates, "--descriptors", "120")
    try:
        port = int(process.stdout.readline())
        silent = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(300)]
        with httpx.Client(verify=tls.client_context(certificates / "ca.pem"), timeout=30) as http:
            assert http.get(f"https://127.0.0.1:{port}/status").status_code == 200
        for sock in silent:
            sock.close()
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_process_stops_on_signals(certificates, number):
    process = _start(Path(__file__).with_name("web_process.py"), certificates)
    try:
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), 10):
            process.send_signal(number)
            assert process.wait(30) == 0
        assert process.stdout.read() == "stopped\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _start(script: Path, certificates: Path, *arguments: str) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", str(script), str(certificates), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )
