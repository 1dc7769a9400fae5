"""Clients that connect and say nothing, half a TLS hello, or their request one byte at a time, freeze nobody.

How quickly others are served meanwhile is measured by ``benchmarks/tls_silent.py``; here it only has to work.
"""

from __future__ import annotations

import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dm.common import tls
from dm.common.web import connections
from tests.service.web_fixtures import Gate, application, client, raw, read_all, running

HALF_HELLO = bytes.fromhex("16030102000100") + b"\x01\xfc\x03\x03" + bytes(60)
THREADS = 4


@pytest.fixture
def server(certificates):
    with running(certificates, threads=THREADS, max_threads=THREADS) as started:
        yield started


@contextmanager
def bad_connections(port: int, kinds: list[bytes]) -> Iterator[None]:
    """Hold one connection per kind, each sending those bytes; reopen what the server closes and, at random, others."""
    stop = threading.Event()

    def hold() -> None:
        held: dict[int, tuple[socket.socket, bytes]] = {}
        with selectors.DefaultSelector() as selector:

            def open_one(first: bytes) -> None:
                sock = socket.create_connection(("127.0.0.1", port), 10)
                sock.sendall(first)
                held[sock.fileno()] = sock, first
                selector.register(sock, selectors.EVENT_READ)

            def close_one(number: int) -> bytes:
                sock, first = held.pop(number)
                selector.unregister(sock)
                sock.close()
                return first

            for kind in kinds:
                open_one(kind)
            ready.set()
            while not stop.is_set():
                for key, _ in selector.select(0.01):
                    open_one(close_one(key.fd))
                open_one(close_one(random.choice(list(held))))
            for number in list(held):
                close_one(number)

    ready = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        stop.set()
        holder.join(30)
    assert not holder.is_alive()


def test_silent_connections_and_half_hellos(server, certificates):
    """More bad connections than workers by far, and yet 200 new connections are all answered."""
    kinds = [b""] * 100 + [HALF_HELLO] * 20
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(25):
                with client(server, certificates) as http:
                    assert http.get("/status").status_code == 200
        except Exception as error:  # reported by the main thread
            failures.append(error)

    with bad_connections(server.port, kinds):
        clients = [threading.Thread(target=ask) for _ in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(90)
    assert not failures
    assert not any(thread.is_alive() for thread in clients)


def test_200_dripping_requests(server, certificates, monkeypatch):
    """Slow loris over TLS, in the headers and in the body: none holds a worker, all are closed."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 3.0)
    context = tls.client_context(certificates / "ca.pem")
    heads = [
        b"GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /dm/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        b"POST /dm/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ]
    slow: list[ssl.SSLSocket] = []
    try:
        for number in range(200):
            plain = socket.create_connection(("127.0.0.1", server.port), 30)
            slow.append(context.wrap_socket(plain, server_hostname="localhost"))
            slow[-1].sendall(heads[number % 3])
        with client(server, certificates) as http:
            for _ in range(20):
                for sock in slow:
                    _drip(sock)
                assert http.get("/status").status_code == 200
        for sock in slow:
            sock.settimeout(30)
            assert read_all(sock)[:12] in (b"", b"HTTP/1.1 400")
    finally:
        for sock in slow:
            sock.close()


def _drip(sock: ssl.SSLSocket) -> None:
    try:
        sock.send(b"1")
    except OSError:  # closed by the server already
        return


def test_a_half_request_on_a_kept_alive_connection_is_closed(server, certificates, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    with raw(server, certificates, timeout=30) as sock:
        sock.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\nGET /sta")
        assert read_all(sock).count(b"HTTP/1.1 200") == 1


def test_clients_that_do_not_read_their_reply_are_cut(server, certificates, monkeypatch):
    """More of them than workers ask for endless data and take none; they lose their workers at the deadline."""
    monkeypatch.setattr(connections, "WRITE_SECONDS", 1.0)
    monkeypatch.setattr(connections, "SLOWEST_WRITE", 100 << 20)
    context = tls.client_context(certificates / "ca.pem")
    with client(server, certificates, "d123456") as http:
        cookie = http.cookies["SESSIONID"]
    deaf = []
    try:
        for _ in range(THREADS + 2):
            plain = socket.create_connection(("127.0.0.1", server.port), 30)
            deaf.append(context.wrap_socket(plain, server_hostname="localhost"))
            deaf[-1].sendall(f"GET /dm/endless HTTP/1.1\r\nHost: x\r\nCookie: SESSIONID={cookie}\r\n\r\n".encode())
        with client(server, certificates) as http:
            assert http.get("/status").status_code == 200
    finally:
        for sock in deaf:
            sock.close()


def test_a_slow_handler_is_not_the_clients_fault(certificates, monkeypatch):
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.2)
    gate = Gate()
    with running(certificates, application(gate)) as server, client(server, certificates, "d123456") as http:
        timer = threading.Timer(0.6, gate.open.set)
        timer.start()
        assert http.get("/wait").json() == {"waited": True}
        timer.join()


def test_the_oldest_silent_connections_make_room(certificates, monkeypatch):
    monkeypatch.setattr("dm.common.web.server.MAX_CONNECTIONS", 50)
    with running(certificates) as server, client(server, certificates, "d123456") as http:
        silent = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(200)]
        try:
            assert http.get("/session").status_code == 200, "the connection that had proven itself is still there"
            closed = 0
            for sock in silent[:100]:
                sock.settimeout(5)
                closed += sock.recv(1) == b""
            assert closed == 100
        finally:
            for sock in silent:
                sock.close()


def test_memory_for_large_requests_is_bounded(certificates, monkeypatch):
    monkeypatch.setattr("dm.common.web.server.PUBLIC_BYTES", 2 << 20)
    head = b"POST /dm/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000
    line = b"GET /" + b"x" * 100_000
    with running(certificates) as server, raw(server, certificates) as one, raw(server, certificates) as two:
        one.sendall(head)
        two.sendall(head)
        with client(server, certificates) as http:
            assert _refused_soon(server, certificates, head)
            assert _refused_soon(server, certificates, line)
            assert http.get("/status").status_code == 200
            assert http.post("/login", data={"username": "d123456", "password": "right horse"}).status_code == 200
        one.close()
        two.close()


def _refused_soon(server, certificates, data: bytes) -> bool:
    """Whether the server answers 503, at the latest when it has seen the other two heads."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with raw(server, certificates, timeout=1) as sock:
            sock.sendall(data)
            try:
                return sock.recv(1000).startswith(b"HTTP/1.1 503")
            except TimeoutError:
                continue
    return False
