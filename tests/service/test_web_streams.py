"""Downloads: ranges, conditions, names, and clients that go away."""

from __future__ import annotations

import logging
import threading
import time

import httpx
import pytest

from tests.service.web_fixtures import CONTENT, application, client, raw, running

TOTAL = len(CONTENT)


@pytest.fixture(scope="module")
def server(certificates):
    with running(certificates) as started:
        yield started


@pytest.fixture
def http(server, certificates):
    with client(server, certificates, "d123456") as session:
        yield session


def test_whole(http):
    reply = http.get("/files/data.h5")
    assert reply.status_code == 200
    assert reply.content == CONTENT
    assert reply.headers["Content-Length"] == str(TOTAL)
    assert reply.headers["ETag"] == '"v1"'
    assert reply.headers["Accept-Ranges"] == "bytes"
    assert reply.headers["Last-Modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert reply.headers["Content-Disposition"] == 'attachment; filename="data.h5"'
    assert reply.headers["Content-Type"] == "application/octet-stream"
    assert reply.headers["Dm-Status-Code"] == "0"


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=100-70000", 100, 70000), (f"bytes={TOTAL - 1}-", TOTAL - 1, TOTAL - 1),
     ("bytes=5-99999999999", 5, TOTAL - 1), ("bytes=-4", TOTAL - 4, TOTAL - 1), ("bytes=-99999999", 0, TOTAL - 1),
     ("BYTES = 1-2", 1, 2)],
)  # fmt: skip
def test_ranges(http, header, first, last):
    reply = http.get("/files/x", headers={"Range": header})
    assert reply.status_code == 206
    assert reply.content == CONTENT[first : last + 1]
    assert reply.headers["Content-Range"] == f"bytes {first}-{last}/{TOTAL}"


@pytest.mark.parametrize("header", [f"bytes={TOTAL}-", "bytes=99999999-99999999", "bytes=-0"])
def test_ranges_outside(http, header):
    reply = http.get("/files/x", headers={"Range": header})
    assert reply.status_code == 416
    assert reply.headers["Content-Range"] == f"bytes */{TOTAL}"
    assert reply.json()["errorCode"] == 7


@pytest.mark.parametrize(
    "header", ["bytes=5-3", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes=-", f"bytes={'9' * 30}-"]
)
def test_ranges_that_are_ignored(http, header):
    assert http.get("/files/x", headers={"Range": header}).status_code == 200


@pytest.mark.parametrize(
    ("condition", "status"),
    [('"v1"', 206), ('"v2"', 200), ('W/"v1"', 200), ("Tue, 14 Nov 2023 22:13:20 GMT", 206),
     ("Tue, 14 Nov 2023 22:13:19 GMT", 200), ("rubbish", 200)],
)  # fmt: skip
def test_if_range(http, condition, status):
    assert http.get("/files/x", headers={"Range": "bytes=1-2", "If-Range": condition}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"If-None-Match": '"v1"'}, 304), ({"If-None-Match": '"v0", W/"v1"'}, 304), ({"If-None-Match": "*"}, 304),
     ({"If-None-Match": '"v2"'}, 200), ({"If-Modified-Since": "Tue, 14 Nov 2023 22:13:20 GMT"}, 304),
     ({"If-Modified-Since": "Tue, 14 Nov 2023 22:13:19 GMT"}, 200), ({"If-Modified-Since": "never"}, 200),
     ({"If-Match": '"v1"'}, 200), ({"If-Match": '"v2"'}, 412), ({"If-Match": "*"}, 200)],
)  # fmt: skip
def test_conditions(http, headers, status):
    reply = http.get("/files/x", headers=headers)
    assert reply.status_code == status
    assert reply.headers.get("ETag", '"v1"') == '"v1"'
    assert reply.content == (CONTENT if status == 200 else b"") or status == 412
    assert http.get("/status").status_code == 200, "the connection is still in step"


@pytest.mark.parametrize(
    ("name", "header"),
    [("a%20b.txt", 'attachment; filename="a b.txt"'),
     ("%22%5C%0D%0A.h5", "attachment; filename=\"____.h5\"; filename*=UTF-8''%22%5C%0D%0A.h5"),
     ("%E6%97%A5%FF.h5", "attachment; filename=\"____.h5\"; filename*=UTF-8''%E6%97%A5%FF.h5"),
     ("50%25", "attachment; filename=\"50%\"; filename*=UTF-8''50%25")],
)  # fmt: skip
def test_names_of_any_bytes(http, name, header):
    assert http.get(f"/files/{name}").headers["Content-Disposition"] == header


def test_a_stream_that_ends_early_breaks_the_connection(http, caplog):
    with caplog.at_level(logging.CRITICAL), pytest.raises(httpx.RemoteProtocolError):
        http.get("/broken")
    assert http.get("/status").status_code == 200


def test_a_stream_without_a_length(http):
    for headers in ({}, {"Range": "bytes=0-9"}):
        reply = http.get("/unmeasured/list.txt", headers=headers)
        assert reply.status_code == 200
        assert reply.text.splitlines() == [str(number) for number in range(1000) for _ in range(50)]
        assert "Content-Length" not in reply.headers and reply.headers["Content-Type"] == "text/plain"
        assert reply.headers["Content-Disposition"] == 'attachment; filename="list.txt"'
    assert http.get("/status").status_code == 200, "the connection is still in step"


def test_a_stream_without_a_length_that_fails_is_noticed(http, caplog):
    with caplog.at_level(logging.CRITICAL), pytest.raises(httpx.RemoteProtocolError):
        http.get("/unmeasured/broken")
    assert http.get("/status").status_code == 200


def test_a_stream_without_a_length_for_an_old_client(server, http, certificates):
    cookie = http.cookies["SESSIONID"]
    with raw(server, certificates) as sock:
        sock.sendall(f"GET /dm/unmeasured/x HTTP/1.0\r\nHost: x\r\nCookie: SESSIONID={cookie}\r\n\r\n".encode())
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head and body.count(b"999\n") == 50


def test_a_client_that_goes_away_is_no_event(server, http, certificates, caplog):
    cookie = http.cookies["SESSIONID"]
    closed = threading.Event()
    real = server.application._log_access

    def note(call, status, size):
        real(call, status, size)
        closed.set()

    server.application._log_access = note
    try:
        with caplog.at_level(logging.INFO, "dm"):
            with raw(server, certificates) as sock:
                sock.sendall(f"GET /dm/endless HTTP/1.1\r\nHost: x\r\nCookie: SESSIONID={cookie}\r\n\r\n".encode())
                assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            assert closed.wait(30), "the stream was closed"
    finally:
        del server.application._log_access
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert http.get("/status").status_code == 200


def test_more_streams_than_places_are_told_to_wait(certificates):
    few = running(certificates, application(streams=2))
    with few as server, client(server, certificates, "d123456") as http, http.stream("GET", "/endless"):
        with http.stream("GET", "/endless"):
            reply = http.get("/endless")
            assert (reply.status_code, reply.json()["errorCode"]) == (503, 9)
            assert reply.headers["Retry-After"] == "5"
            assert http.get("/status").status_code == 200
        assert _finishes(http), "its place is free again"


def _finishes(http: httpx.Client) -> bool:
    """Whether a download works again soon: the server notices a lost client when it next writes."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if http.get("/files/x").status_code == 200:
            return True
        time.sleep(0.02)
    return False
