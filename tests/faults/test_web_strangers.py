"""F-39, F-40, F-44: what strangers and fuzzers send costs the service little, and nobody else notices."""

from __future__ import annotations

import gzip
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from dm.common import tls
from tests.service.web_fixtures import USERS

MEGABYTE = 1 << 20
REQUESTS = [1_200, pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]


@dataclass
class Service:
    """The kit's test service as a process, so that its memory can be seen."""

    process: psutil.Process
    url: str
    context: ssl.SSLContext

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(self.process.memory_info().rss)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.context, timeout=30, trust_env=False)


@pytest.fixture(scope="module")
def service(certificates: Path) -> Iterator[Service]:
    words = [sys.executable, "-m", "tests.service.web_process", str(certificates)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            context = tls.client_context(certificates / "ca.pem")
            yield Service(psutil.Process(process.pid), f"https://localhost:{port}/dm", context)
        finally:
            process.terminate()
            process.communicate(timeout=30)


@pytest.mark.parametrize("count", REQUESTS)
def test_f39_requests_without_a_session_leave_nothing_behind(service: Service, count: int) -> None:
    def ask(number: int) -> None:
        with service.client() as http:
            for turn in range(number):
                kind = turn % 4
                if kind == 0:
                    reply = http.get("/session")
                elif kind == 1:
                    reply = http.get("/session", headers={"Cookie": f"SESSIONID={turn:043d}"})
                elif kind == 2:
                    reply = http.get(f"/no-such-path-{turn}")
                else:
                    reply = http.get("/session", headers={"Authorization": f"Bearer dmt_{turn:032x}_{'A' * 43}"})
                assert reply.status_code == (404 if kind == 2 else 401)

    def all_of(total: int) -> None:
        threads = [threading.Thread(target=ask, args=(total // 4,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_of(200)  # what the first ones need stays
    before = service.memory
    all_of(count)
    assert service.memory - before < 10 * MEGABYTE


BODIES = {
    "not utf-8": (b'{"name": "\xff\xfe"}', "application/json"),
    "no json": (b'{"name": ', "application/json"),
    "NaN": (b'{"limit": NaN}', "application/json"),
    "1e999": (b'{"limit": 1e999}', "application/json"),
    "a number of 100,000 digits": (b'{"limit": ' + b"9" * 100_000 + b"}", "application/json"),
    "a key twice": (b'{"limit": 1, "limit": 2}', "application/json"),
    "depth 100,000": (b'{"queryDict": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "application/json"),
    "300,000 keys": (b"{" + b",".join(b'"k%d":1' % n for n in range(250_000)) + b"}", "application/json"),
    "nul in a value": (b'{"name": "a\\u0000b", "limit": 1}', "application/json"),
    "more than the route takes": (b'{"name": "' + b"x" * (4 * MEGABYTE) + b'"}', "application/json"),
    "a form of a million pairs": (b"&".join([b"a=b"] * 700_000), "application/x-www-form-urlencoded"),
    "a multipart form": (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x"),
}


@pytest.mark.parametrize("name", BODIES)
def test_f44_malformed_bodies_are_refused_shortly_and_cheaply(service: Service, name: str) -> None:
    body, kind = BODIES[name]
    with service.client() as http:
        assert http.post("/login", data={"username": "d123456", "password": USERS["d123456"]}).status_code == 200
        before = service.memory
        reply = http.put("/echo/x", content=body, headers={"Content-Type": kind})
        assert reply.status_code in (400, 413)
        assert len(reply.content) < 1000
        assert service.memory - before < 100 * MEGABYTE
        assert http.get("/session").status_code == 200 or reply.status_code == 413


def test_f44_a_compressed_bomb_is_not_unpacked(service: Service) -> None:
    bomb = gzip.compress(b'{"name": "' + b"x" * (100 * MEGABYTE) + b'"}', 1)
    assert len(bomb) < 2 * MEGABYTE
    with service.client() as http:
        http.post("/login", data={"username": "d123456", "password": USERS["d123456"]})
        before = service.memory
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        reply = http.put("/echo/x", content=bomb, headers=headers)
        assert reply.status_code == 400 and "not supported" in reply.json()["errorMessage"]
        assert service.memory - before < 20 * MEGABYTE


@pytest.mark.parametrize("value", ["b'!!!!'", "b'YQ'", "b'YQ=='", "b'/w=='", "b'" + "A" * 50_000 + "'"])
def test_f44_malformed_base64_in_the_url_names_the_argument(service: Service, value: str) -> None:
    with service.client() as http:
        http.post("/login", data={"username": "d123456", "password": USERS["d123456"]})
        reply = http.get("/echo/x", params={"keyList": value})
        assert reply.status_code == 400
        assert "keyList" in reply.json()["errorMessage"] and len(reply.content) < 500


def test_f40_a_slow_stranger_does_not_hold_up_others(service: Service, certificates: Path) -> None:
    """Connections that say a byte now and then; all the while others are answered."""
    opened = []
    try:
        for _ in range(50):
            plain = socket.create_connection(("localhost", int(service.url.rsplit(":", 1)[1].split("/")[0])), 10)
            sock = service.context.wrap_socket(plain, server_hostname="localhost")
            sock.sendall(b"GET /dm/status HTTP/1.1\r\nHost: x\r\nX: ")
            opened.append(sock)
        with service.client() as http:
            for _ in range(20):
                for sock in opened[:10]:
                    sock.sendall(b"a")
                assert http.get("/status").status_code == 200
    finally:
        for sock in opened:
            sock.close()
