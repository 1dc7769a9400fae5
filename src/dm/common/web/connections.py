"""Connections that own a worker only while there is work.

cheroot hands a new connection to a worker (or, with TLS, shakes hands in its one accepting thread) and reads requests
blocking, so silent or slow clients freeze a service. Here a connection waits in the selector until bytes have come;
a worker then does what they allow - a piece of the handshake, a piece of the request - without blocking, and gives
the connection back. Only a complete request is answered, and only answering may block, under a deadline.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cheroot import server as cheroot_server

from dm.common.errors import DmException, ServiceUnavailable
from dm.common.web.wire import MAX_HEADERS, MAX_LINE, Head, Reader, Refused

if TYPE_CHECKING:
    from dm.common.web.server import HttpServer

HANDSHAKE_SECONDS = 9.0  # with the half second between two looks at the clock this stays below 10 s
REQUEST_SECONDS = 8.0
IDLE_SECONDS = 60.0
LINGER_SECONDS = 2.0
WRITE_SECONDS = 30.0
SLOWEST_READ = 64 * 1024  # bytes/s that buy a large body more time
SLOWEST_WRITE = 8 * 1024
READ_SIZE = 64 * 1024
READ_TURN = 1 << 20  # bytes read before another connection gets its turn
SMALL = 64 * 1024  # what a connection may keep in memory without asking
_PLAIN_BODY = b'{"errorCode":7,"errorClass":"InvalidRequest","errorMessage":"This port speaks HTTPS only."}'
PLAIN_REPLY = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nDm-Status-Code: 7\r\n"
    b"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_PLAIN_BODY), _PLAIN_BODY)
)
_log = logging.getLogger("dm.web")
# cheroot's type stubs leave out the internals this module builds on
_HTTPConnection: Any = cheroot_server.HTTPConnection


class _Reader:
    """What cheroot asks of a connection's input; the bytes come through :class:`~dm.common.web.wire.Reader`."""

    closed = False
    bytes_read = 0

    def close(self) -> None:
        self.closed = True


class _Writer:
    """A connection's output: blocking, but only as long as the client takes its reply at some speed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.bytes_written = 0
        self.held = b""
        self.holding = False
        self._patience = 0.0  # seconds we will still wait for the client; what the handler takes does not count

    def begin(self) -> None:
        """Begin a reply."""
        self._patience = WRITE_SECONDS

    def write(self, data: bytes) -> int:
        """Send all of it; while :attr:`holding`, only keep it, so that headers and body leave together.

        :raises TimeoutError: the client takes less than 8 KiB/s.
        """
        if self.holding:
            self.held += data
            return len(data)
        sock = self._connection.socket
        view = memoryview(self.held + data if self.held else data)
        self.held = b""
        while view:
            if self._patience <= 0:
                raise TimeoutError("the client does not take its reply")
            sock.settimeout(self._patience)
            began = time.monotonic()
            sent = sock.send(view[: 1 << 18])
            view = view[sent:]
            self.bytes_written += sent
            waited = time.monotonic() - began
            self._patience = min(WRITE_SECONDS, self._patience - waited + sent / SLOWEST_WRITE)
        return len(data)


class Budget:
    """Bytes that requests under way may take together.

    :param size: how many.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Reserve bytes; returns whether there were that many."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._left += size


class Connection(_HTTPConnection):
    """One client's connection and where it stands: handshake, request, reply or lingering."""

    def __init__(self, server: HttpServer, sock: socket.socket, address: Any) -> None:
        # cheroot's own constructor makes blocking, pure-Python file objects; none of them is needed
        self.server = server
        self.socket: Any = sock
        self.remote_addr = address[0] if isinstance(address, tuple) else ""
        self.remote_port = address[1] if isinstance(address, tuple) else 0
        self.ssl_env = {"wsgi.url_scheme": "https", "HTTPS": "on"}
        self.rfile: Any = _Reader()
        self.wfile: Any = _Writer(self)
        self.requests_seen = 0
        self.reader = Reader(self._admit)
        self._claim: tuple[Budget, int] = (server.public_budget, MAX_LINE + MAX_HEADERS)
        self._budget: tuple[Budget, int] | None = None
        self.events = selectors.EVENT_READ
        self.again = False
        self.proven = False  # whether it ever sent a whole request
        self.deadline = time.monotonic() + HANDSHAKE_SECONDS
        self._step: Callable[[], bool] = self._hello
        self._began = 0.0
        self._received = 0
        self._continued = False

    def communicate(self) -> bool:
        """Do what the bytes at hand allow; called by a worker.

        :returns: whether the connection stays open, waiting for :attr:`events` (or, with :attr:`again`, for its turn).
        """
        self.again = False
        self.events = selectors.EVENT_READ
        try:
            return self._step()
        except ssl.SSLWantReadError:
            return True
        except ssl.SSLWantWriteError:
            self.events = selectors.EVENT_WRITE
            return True
        except (ssl.SSLError, OSError, EOFError) as error:
            _log.debug("%s:%s lost: %r", self.remote_addr, self.remote_port, error)
            return False

    def _hello(self) -> bool:
        """Look at the first byte: only a TLS handshake record is welcome."""
        try:
            first = self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        if first != b"\x16":
            if first.isalpha():
                self.socket.recv(READ_SIZE)
                self.socket.send(PLAIN_REPLY)
                return self._begin_linger()
            return False
        self.socket = self.server.ssl_adapter.wrap(self.socket)[0]
        self._step = self._handshake
        return self._handshake()

    def _handshake(self) -> bool:
        self.socket.do_handshake()
        self.deadline = time.monotonic() + REQUEST_SECONDS
        self._step = self._read
        return self._read()

    def _read(self) -> bool:
        """Read what is there; answer when a request is complete."""
        turn = 0
        reader = self.reader
        try:
            if reader.buffer and reader.head is None:
                reader.advance()
            while not reader.complete:
                data = self.socket.recv(READ_SIZE)
                if not data:
                    return False
                turn += len(data)
                self._note(len(data), not reader.started)
                reader.feed(data)
                if self._budget is None and len(reader.buffer) + len(reader.body) > SMALL:
                    self._reserve()
                if reader.waiting_for_body and not self._continued:
                    self._continue()
                if turn >= READ_TURN and not reader.complete:
                    self.again = True
                    return True
        except Refused as refusal:
            return self._answer(refusal)
        return self._answer(None)

    def _note(self, size: int, first: bool) -> None:
        """Move the deadline: a request has its seconds, and more only as fast as its bytes come."""
        if first:
            self._began = time.monotonic()
            self._received = 0
        self._received += size
        self.deadline = self._began + REQUEST_SECONDS + self._received / SLOWEST_READ

    def _admit(self, head: Head) -> int:
        """Ask the application about the body to come."""
        self._release()
        try:
            remote = self.server.proxies.caller(self.remote_addr, head.headers)
            limit, known = self.server.wsgi_app.admit(head.method, head.target, head.headers, head.length, remote)
        except DmException as error:
            raise Refused(error, error.http_status) from error
        budget = self.server.known_budget if known else self.server.public_budget
        self._claim = budget, limit if head.length is None else head.length
        return int(limit)

    def _reserve(self) -> None:
        """Claim the memory the request may come to need, once it has shown to be a large one."""
        budget, size = self._claim
        if not budget.take(size):
            raise Refused(ServiceUnavailable("Too many large requests are under way; try again in a moment."), 503)
        self._budget = (budget, size)

    def _release(self) -> None:
        if self._budget is not None:
            budget, size = self._budget
            self._budget = None
            budget.give(size)

    def _continue(self) -> None:
        self._continued = True
        head = self.reader.head
        if head is not None and head.expects_continue:
            self.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer(self, refusal: Refused | None) -> bool:
        """Let the application answer; this may block, in sending the reply."""
        self.proven = True
        self.wfile.begin()
        request = self.RequestHandlerClass(self.server, self)
        request.take(self.reader, refusal)
        request.respond()
        self.requests_seen += 1
        if refusal is not None or request.close_connection:
            return self._begin_linger()
        self._release()
        self._continued = False
        self.socket.settimeout(0)
        self.deadline = time.monotonic() + IDLE_SECONDS
        self._next_request()
        self.again = bool(self.reader.buffer) or self.socket.pending() > 0
        return True

    def _next_request(self) -> None:
        rest = self.reader.buffer
        self.reader = Reader(self._admit, rest)
        self._claim = (self.server.public_budget, MAX_LINE + MAX_HEADERS)
        if rest:
            self._note(len(rest), first=True)

    def _begin_linger(self) -> bool:
        """Say that no more comes, but read on for a moment: closing on unread bytes would discard our last reply."""
        self._step = self._linger
        self.socket.settimeout(0)
        self.deadline = time.monotonic() + LINGER_SECONDS
        try:
            if isinstance(self.socket, ssl.SSLSocket):
                with contextlib.suppress(ssl.SSLWantReadError):
                    self.socket.unwrap()  # sends our goodbye; the client's is not waited for
            socket.socket.shutdown(self.socket, socket.SHUT_WR)
        except OSError:
            return False
        return True

    def _linger(self) -> bool:
        for _ in range(16):
            try:
                if not socket.socket.recv(self.socket, READ_SIZE):
                    return False
            except BlockingIOError:
                return True
        self.again = True
        return True

    def close(self) -> None:
        """Close the connection."""
        self._release()
        self.rfile.close()
        try:
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF, errno.ECONNRESET, errno.EPIPE):
                _log.debug("closing %s: %r", self.remote_addr, error)
        self.socket.close()
