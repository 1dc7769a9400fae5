"""The request reader: the same result however the bytes are cut, and strict about what is ambiguous."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dm.common.web.wire import MAX_HEADERS, MAX_LINE, Reader, Refused

LIMIT = 100_000


def read(data: bytes, cuts: list[int] | None = None, limit: int = LIMIT) -> Reader:
    """Feed data cut at the given places, as long as the request is incomplete; keep the rest in the buffer."""
    reader = Reader(lambda head: limit)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts or [])})
    for begin, end in itertools.pairwise(edges):
        if reader.complete:
            reader.buffer += data[begin:end]
        else:
            reader.feed(data[begin:end])
    return reader


SIMPLE = (
    b"GET /status?a=1 HTTP/1.1\r\nHost: x\r\nCookie: a=1\r\nX-Y:  v w \r\ncookie: b=2\r\naccept: a\r\naccept: b\r\n\r\n"
)
FIXED = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\nhello\r\n\r\nyou"
CHUNKED = (
    b"PUT /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;ext=1\r\n \r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
)


def test_head():
    head = read(SIMPLE).head
    assert (head.method, head.target, head.minor, head.length) == ("GET", "/status?a=1", 1, 0)
    assert head.headers == {"host": "x", "cookie": "a=1; b=2", "x-y": "v w", "accept": "a, b"}
    assert head.keep_alive
    assert not head.expects_continue


@pytest.mark.parametrize(
    ("data", "body"), [(SIMPLE, b""), (FIXED, b"hello\r\n\r\nyou"), (CHUNKED, b"hello 0123456789")]
)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_cutting_changes_nothing(data, body, cuts):
    reader = read(data + b"GET /next", cuts)
    assert reader.complete
    assert bytes(reader.body) == body
    assert bytes(reader.buffer) == b"GET /next"


@pytest.mark.parametrize("data", [SIMPLE, FIXED, CHUNKED])
def test_byte_by_byte(data):
    reader = Reader(lambda head: LIMIT)
    for number, byte in enumerate(data):
        assert not reader.complete, number
        reader.feed(bytes([byte]))
    assert reader.complete


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        ("1.1", "", True),
        ("1.1", "close", False),
        ("1.1", "TE, Close", False),
        ("1.0", "", False),
        ("1.0", "Keep-Alive", True),
    ],
)
def test_keep_alive(version, connection, keep):
    assert read(f"GET / HTTP/{version}\r\nHost: x\r\nConnection: {connection}\r\n\r\n".encode()).head.keep_alive is keep


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / FTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nnocolon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 300, 400),
        (b"GET /" + b"a" * MAX_LINE, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * MAX_HEADERS + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * (1 << 20), 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 201 + b"\r\n", 431),
        (b"\x00\xff\n\x13\x37" * 10, 400),
    ],
)
def test_refused(data, status):
    for cuts in ([], [7], list(range(0, min(len(data), 3000), 13))):
        with pytest.raises(Refused) as caught:
            read(data, cuts)
        assert caught.value.status == status
        assert len(str(caught.value)) < 200


@given(data=st.binary(max_size=500))
def test_random_bytes_never_crash(data):
    try:
        reader = read(data, list(range(0, 500, 7)))
    except Refused as refused:
        assert 400 <= refused.status < 600
    else:
        assert not reader.complete


def test_a_request_line_of_256_kib_is_accepted():
    target = b"/x/" + b"a" * (256 * 1024)
    assert read(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n", [5, 70_000]).head.target == target.decode()


def test_headers_just_under_the_limit_are_accepted():
    assert read(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * (MAX_HEADERS - 20) + b"\r\n\r\n").complete


def test_many_bytes_one_at_a_time_take_linear_time():
    """200,000 feeds of one byte; a quadratic reader would need minutes and run into the time limit."""
    reader = Reader(lambda head: LIMIT)
    for _ in range(200_000):
        reader.feed(b"a" if reader.buffer else b"G")
    assert not reader.complete


def test_empty_lines_before_a_request_are_passed_over():
    assert read(b"\r\n\r\n" + SIMPLE).complete


def test_expect_continue():
    head = read(b"PUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n").head
    assert head.expects_continue
