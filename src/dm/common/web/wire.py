"""Requests as bytes: an incremental, strict HTTP/1.1 reader that never blocks and is linear in what it is given.

The server feeds it whatever has arrived; only a complete request reaches a worker's application code, so a client that
drips its request owns no worker. What is ambiguous (both Content-Length and Transfer-Encoding, bare line feeds, folded
headers) is refused, because two readers could disagree about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from dm.common.errors import DmException, InvalidRequest, ServiceLimit

MAX_LINE = 512 * 1024
MAX_HEADERS = 16 * 1024
MAX_HEADER_COUNT = 200
MAX_CHUNK_LINE = 256
_END = b"\r\n\r\n"
_METHOD = re.compile(rb"[A-Z]{1,20}\Z")
_TARGET = re.compile(rb"/[^\x00-\x20\x7f#]*\Z")
_VERSION = re.compile(rb"HTTP/1\.([01])\Z")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*(.*?)[ \t]*\Z", re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,12})[ \t]*(;.*)?\Z", re.DOTALL)
_SINGLE = frozenset({b"host", b"content-length", b"transfer-encoding", b"content-type", b"range", b"expect"})


class Refused(Exception):  # noqa: N818 - an outcome, not a defect
    """The bytes are no request we serve.

    :param error: what to answer. :param status: with which HTTP status.
    """

    def __init__(self, error: DmException, status: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.status = status


def _bad(message: str) -> Refused:
    return Refused(InvalidRequest(message), 400)


@dataclass
class Head:
    """The first part of a request.

    :param target: raw request target. :param minor: 0 or 1 of HTTP/1.x. :param headers: lower-case name -> value.
    :param length: announced body length, ``None`` when chunked.
    """

    method: str
    target: str
    minor: int
    headers: dict[str, str]
    length: int | None

    @property
    def keep_alive(self) -> bool:
        """Whether the client wants to go on using the connection."""
        options = {option.strip().lower() for option in self.headers.get("connection", "").split(",")}
        return "close" not in options if self.minor else "keep-alive" in options

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for a go-ahead before it sends the body."""
        return self.minor == 1 and self.headers.get("expect", "").strip().lower() == "100-continue"


def parse_head(data: bytes) -> Head:
    """Parse request line and headers, without the empty line at the end.

    :raises Refused: anything malformed.
    """
    line, *rows = data.split(b"\r\n")
    parts = line.split(b" ")
    if len(parts) != 3 or not _METHOD.match(parts[0]):
        raise _bad("The request line is malformed; send 'METHOD /path HTTP/1.1'.")
    version = _VERSION.match(parts[2])
    if version is None:
        if parts[2].startswith(b"HTTP/"):
            raise Refused(InvalidRequest("Only HTTP/1.0 and HTTP/1.1 are spoken here."), 505)
        raise _bad("The request line is malformed; it must end in HTTP/1.1.")
    if not _TARGET.match(parts[1]):
        raise _bad("The request target must be a path that starts with '/' and is percent-encoded.")
    if len(rows) > MAX_HEADER_COUNT:
        raise Refused(ServiceLimit(f"The request has more than {MAX_HEADER_COUNT} headers."), 431)
    minor = int(version[1])
    headers = _headers(rows)
    if minor and "host" not in headers:
        raise _bad("The request has no Host header.")
    return Head(parts[0].decode("ascii"), parts[1].decode("latin-1"), minor, headers, _length(headers, minor))


def _headers(rows: list[bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in rows:
        match = _HEADER.match(row)
        if match is None or _CONTROL.search(match[2]):
            raise _bad("A request header is malformed.")
        raw_name = match[1].lower()
        name, value = raw_name.decode("ascii"), match[2].decode("latin-1")
        if name not in found:
            found[name] = value
        elif raw_name in _SINGLE:
            raise _bad(f"The request header {name} occurs twice.")
        else:
            found[name] += ("; " if name == "cookie" else ", ") + value
    return found


def _length(headers: dict[str, str], minor: int) -> int | None:
    encoding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if encoding is not None:
        if length is not None or not minor:
            raise _bad("The request has both Content-Length and Transfer-Encoding, or the latter in HTTP/1.0.")
        if encoding.strip().lower() != "chunked":
            raise Refused(InvalidRequest("Only the transfer encoding 'chunked' is supported."), 501)
        return None
    if length is None:
        return 0
    if not _LENGTH.match(length.encode("latin-1")):
        raise _bad("The Content-Length is not a number.")
    return int(length)


@dataclass
class Reader:
    """Collects one request after the other from a connection's bytes.

    :param admit: called as soon as the head is there; returns the largest body to read, or raises :class:`Refused`.
    """

    admit: Callable[[Head], int]
    buffer: bytearray = field(default_factory=bytearray)
    head: Head | None = None
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    _searched: int = 0
    _line_end: int = -1
    _limit: int = 0
    _left: int = 0
    _stage: str = "head"

    @property
    def started(self) -> bool:
        """Whether any byte of the current request has arrived."""
        return self.head is not None or bool(self.buffer)

    @property
    def waiting_for_body(self) -> bool:
        """Whether the head is there and the body is not."""
        return self.head is not None and not self.complete

    def feed(self, data: bytes) -> None:
        """Add bytes and go as far as they allow.

        :raises Refused: the request is malformed or too large.
        """
        self.buffer += data
        self.advance()

    def advance(self) -> None:
        """Go as far as the bytes in the buffer allow."""
        stages = {"head": self._read_head, "fixed": self._read_fixed, "size": self._read_size}
        stages |= {"chunk": self._read_chunk, "trailer": self._read_trailer}
        while not self.complete and stages[self._stage]():
            continue

    def _read_head(self) -> bool:
        while self._line_end < 0 and self.buffer[:2] == b"\r\n":  # an empty line before the request line
            del self.buffer[:2]
        end = self.buffer.find(_END, self._searched)
        self._check_head_size(end)
        if end < 0:
            self._searched = max(0, len(self.buffer) - 3)
            return False
        data = bytes(self.buffer[:end])
        self.head = head = parse_head(data)
        del self.buffer[: end + 4]
        self._limit = self.admit(head)
        if head.length is None:
            self._stage = "size"
        elif head.length > self._limit:
            raise self._too_large()
        else:
            self._left = head.length
            self._stage = "fixed"
        return True

    def _check_head_size(self, end: int) -> None:
        """Look at the size so far; each byte is searched once, however many pieces it comes in."""
        size = len(self.buffer) if end < 0 else end
        if self._line_end < 0:
            self._line_end = self.buffer.find(b"\n", self._searched)
            if self._line_end == 0 or (self._line_end > 0 and self.buffer[self._line_end - 1] != 13):
                raise _bad("Lines of a request end in CR LF.")
        if (size if self._line_end < 0 else self._line_end) > MAX_LINE:
            raise Refused(ServiceLimit(f"The request line is longer than {MAX_LINE} bytes."), 414)
        if self._line_end >= 0 and size - self._line_end > MAX_HEADERS:
            raise Refused(ServiceLimit(f"The request headers are larger than {MAX_HEADERS} bytes."), 431)

    def _read_fixed(self) -> bool:
        self._take()
        self.complete = self._left == 0
        return False

    def _take(self) -> None:
        part = self.buffer[: self._left]
        self.body += part
        del self.buffer[: len(part)]
        self._left -= len(part)

    def _line(self, limit: int) -> bytes | None:
        end = self.buffer.find(b"\r\n", 0, limit + 2)
        if end < 0:
            if len(self.buffer) > limit:
                raise _bad("A line of the chunked body is too long.")
            return None
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    def _read_size(self) -> bool:
        line = self._line(MAX_CHUNK_LINE)
        if line is None:
            return False
        match = _CHUNK.match(line)
        if match is None:
            raise _bad("The size of a body chunk is malformed.")
        size = int(match[1], 16)
        if len(self.body) + size > self._limit:
            raise self._too_large()
        self._left = size + 2 if size else 0
        self._stage = "chunk" if size else "trailer"
        return True

    def _read_chunk(self) -> bool:
        if self._left > 2:
            self._left -= 2
            self._take()
            self._left += 2
        if self._left > 2 or len(self.buffer) < 2:
            return False
        if self.buffer[:2] != b"\r\n":
            raise _bad("A body chunk does not end where its size says.")
        del self.buffer[:2]
        self._stage = "size"
        return True

    def _read_trailer(self) -> bool:
        line = self._line(MAX_HEADERS)
        if line is None:
            return False
        self.complete = line == b""
        return not self.complete

    def _too_large(self) -> Refused:
        return Refused(ServiceLimit(f"The request body is larger than {self._limit} bytes."), 413)
