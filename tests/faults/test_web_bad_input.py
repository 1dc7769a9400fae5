"""Garbage on the wire: answered with an error or closed, and nobody else notices."""

from __future__ import annotations

import contextlib
import random
import re
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dm.common.web import connections
from tests.service.web_fixtures import client, raw, read_all, running

GET = b"GET /dm/session HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /dm/login HTTP/1.1\r\nHost: x\r\n"
CASES = {
    "random bytes": random.Random(1).randbytes(5000) + b"\r\n\r\n",
    "nul bytes": bytes(5000) + b"\r\n\r\n",
    "both lengths": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "a 1 GB body declared": POST + b"Content-Length: 1073741824\r\n\r\nabc",
    "a length beyond 64 bits": POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "a 1 MB header": GET + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "10,000 headers": GET + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n",
    "a chunk of endless size": POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    "a negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "pipelined garbage": GET + b"\r\n" + random.Random(2).randbytes(3000) + b"\r\n\r\n",
    "a connect request": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an absolute target": b"GET https://example.org/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a header with a line feed": GET + b"X: a\nSESSIONID: b\r\n\r\n",
    "a million carriage returns": b"\r" * 1_000_000 + b"\r\n\r\n",
    "a path of 100,000 segments": b"GET /dm" + b"/a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "a form of a million pairs": POST + b"Content-Length: 1000000\r\nConnection: close\r\n\r\n" + b"&" * 1_000_000,
    "json of depth 100,000": POST + b"Content-Length: 200000\r\nConnection: close\r\n\r\n" + b'{"a":' + b"[" * 199_995,
}


@pytest.fixture(scope="module")
def server(certificates):
    with running(certificates) as started:
        yield started


def send(server, certificates, data: bytes) -> bytes:
    """Send bytes on a connection of their own; return what came back until the server closed it (within 15 s)."""
    with raw(server, certificates, timeout=15) as sock:
        with contextlib.suppress(OSError):  # refused while we were still sending
            sock.sendall(data)
        return read_all(sock)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_the_connection_closed(server, certificates, name):
    reply = send(server, certificates, CASES[name])
    status = re.findall(rb"HTTP/1\.1 (\d{3}) ", reply)[-1]
    assert status[:1] in b"45", reply[:200]
    assert status != b"500"
    assert b'"errorCode"' in reply
    assert b"Traceback" not in reply


@pytest.mark.parametrize(
    "data",
    [
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        POST + b"Content-Length: 100\r\n\r\nusername=x",
        b"GET /status HT",
        b"",
    ],
    ids=["chunks without end", "body shorter than declared", "half a line", "nothing after the handshake"],
)
def test_what_never_ends_is_closed_in_time(certificates, monkeypatch, data):
    assert connections.REQUEST_SECONDS + 0.5 < 10
    assert connections.HANDSHAKE_SECONDS + 0.5 < 10
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    with running(certificates) as server:
        assert send(server, certificates, data) == b""


def test_a_cookie_of_20_000_back_slashes_is_cheap(server, certificates):
    with client(server, certificates) as http:
        for size in (15_000, 20_000):
            reply = http.get("/session", headers={"Cookie": 'SESSIONID="' + "\\" * size + '"'})
            assert reply.status_code == (401 if size < 16_000 else 431)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(min_size=1, max_size=300),
        st.builds(
            lambda method, target, headers, body: (
                b" ".join([method, target, b"HTTP/1.1\r\nHost: x\r\n"])
                + b"\r\n".join(headers)
                + b"\r\nConnection: close\r\n\r\n"
                + body
            ),
            st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH"]),
            st.binary(max_size=60).map(lambda tail: b"/dm/" + tail),
            st.lists(st.binary(max_size=60).map(lambda value: b"X: " + value), max_size=3),
            st.binary(max_size=100),
        ),
    )
)
def test_fuzz(server, certificates, data):
    """Whatever is sent and then ended: no 500, no hang, and the service lives."""
    with raw(server, certificates, timeout=15) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            socket.socket.shutdown(sock, socket.SHUT_WR)
        reply = read_all(sock)
    assert b"HTTP/1.1 500" not in reply
    assert reply[:9] in (b"", b"HTTP/1.1 ")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=300), record=st.booleans())
def test_fuzz_below_tls(server, certificates, data, record):
    with socket.create_connection(("127.0.0.1", server.port), 15) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(b"\x16\x03\x01" + data if record else data)
            sock.shutdown(socket.SHUT_WR)
        reply = read_all(sock)
    assert not reply.startswith(b"HTTP") or reply.startswith(b"HTTP/1.1 400")


def test_and_after_all_that_it_serves(server, certificates):
    with client(server, certificates, "d123456") as http:
        assert http.get("/session").status_code == 200
