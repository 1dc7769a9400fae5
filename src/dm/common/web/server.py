"""The HTTPS server: cheroot with connections that wait in the selector (see :mod:`dm.common.web.connections`)."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from cheroot import server as cheroot_server
from cheroot import wsgi
from cheroot.ssl import Adapter
from cheroot.workers import threadpool

from dm.common.errors import ConfigurationError
from dm.common.settings import WebSettings
from dm.common.web.application import Application, Call
from dm.common.web.certificates import ServerCertificate
from dm.common.web.connections import Budget, Connection
from dm.common.web.manager import Manager
from dm.common.web.proxies import Proxies
from dm.common.web.wire import Reader, Refused

THREADS = 16
MAX_THREADS = 200
PUBLIC_BYTES = 64 << 20
KNOWN_BYTES = 512 << 20
BACKLOG = 1024
MAX_CONNECTIONS = 4096
STOP_SECONDS = 4.0
_log = logging.getLogger("dm.web")
# cheroot's type stubs leave out the internals this module builds on
_HTTPRequest: Any = cheroot_server.HTTPRequest
_WsgiGateway: Any = wsgi.Gateway_10
_WsgiServer: Any = wsgi.Server
_threads: Any = threadpool


class _Tls(Adapter):
    """Wraps sockets without shaking hands; the connection does that when bytes have come."""

    def __init__(self, certificate: ServerCertificate) -> None:
        self._certificate = certificate

    @property
    def context(self) -> ssl.SSLContext:
        """The context of new connections."""
        return self._certificate.context

    def bind(self, sock: socket.socket) -> socket.socket:
        """Return the listening socket as it is."""
        return sock

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        """Return the TLS socket, before its handshake."""
        wrapped = self.context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        return wrapped, self.get_environ()

    def get_environ(self) -> dict[str, str]:
        """Return nothing: the connection knows its own."""
        return {}

    def makefile(self, sock: socket.socket, mode: str = "r", bufsize: int = -1) -> Any:
        """Return the plain file object; unused, connections read themselves."""
        return sock.makefile(mode, bufsize)  # type: ignore[call-overload]


class _Request(_HTTPRequest):
    """A request that was read completely before it is answered."""

    def take(self, reader: Reader, refusal: Refused | None) -> None:
        """Fill in what cheroot's own parser would have read from the socket."""
        head = reader.head
        self.ready = True
        self.rfile = None
        self.request_protocol = b"HTTP/1.1"
        self.response_protocol = "HTTP/1.1"
        self.method, self.uri, self.path, self.qs, self.authority = b"GET", b"/", b"/", b"", b""
        headers: dict[str, str] = {}
        if head is not None:
            headers = head.headers
            self.method = head.method.encode("ascii")
            self.request_protocol = f"HTTP/1.{head.minor}".encode("ascii")
            self.response_protocol = f"HTTP/1.{head.minor}"
            self.close_connection = not head.keep_alive
        self.call = Call(
            method=head.method if head is not None else "-",
            target=head.target if head is not None else "-",
            headers=headers,
            body=b"" if refusal is not None else bytes(reader.body),
            remote=self.server.proxies.caller(self.conn.remote_addr, headers),
            refusal=None if refusal is None else (refusal.error, refusal.status),
        )
        if refusal is not None:
            self.close_connection = True

    def respond(self) -> None:
        """Answer."""
        self.server.gateway(self).respond()
        self.ensure_headers_sent()
        self.conn.wfile.write(b"0\r\n\r\n" if self.chunked_write else b"")

    def send_headers(self) -> None:
        """Prepare the headers; they leave with the first part of the body."""
        self.conn.wfile.holding = True
        super().send_headers()
        self.conn.wfile.holding = False


class _Gateway(_WsgiGateway):
    """WSGI with the request attached as ``dm.call``."""

    def get_environ(self) -> dict[str, Any]:
        """Return an environment with what CherryPy needs; the application reads the call."""
        request = self.req
        return {
            "ACTUAL_SERVER_PROTOCOL": request.server.protocol,
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "REMOTE_ADDR": request.conn.remote_addr,
            "REMOTE_PORT": str(request.conn.remote_port),
            "REQUEST_METHOD": request.method.decode("ascii"),
            "SCRIPT_NAME": "",
            "SERVER_NAME": request.server.server_name,
            "SERVER_PORT": str(request.server.bind_addr[1]),
            "SERVER_PROTOCOL": request.request_protocol.decode("ascii"),
            "wsgi.input": None,
            "wsgi.multiprocess": False,
            "wsgi.multithread": True,
            "wsgi.run_once": False,
            "wsgi.url_scheme": "https",
            "wsgi.version": self.version,
            "dm.call": request.call,
        }


class _Pool(_threads.ThreadPool):
    """Workers that multiply while all are busy, and cannot keep the process from ending."""

    def __init__(self, server: HttpServer, min: int, max: int) -> None:
        super().__init__(server, min=min, max=max)
        self._growing = threading.Lock()
        self._numbers = itertools.count(1)

    def put(self, connection: Connection) -> None:
        """Queue a connection; start another worker when none is free for it."""
        super().put(connection)
        if self.qsize > self.idle and len(self._threads) < self.max and self._growing.acquire(blocking=False):
            try:
                if self.server.ready:
                    self._threads.append(self._spawn_worker())
            finally:
                self._growing.release()

    def _spawn_worker(self) -> threading.Thread:
        worker: threading.Thread = _threads.WorkerThread(self.server)
        worker.name = f"{self.server.server_name} worker {next(self._numbers)}"
        worker.daemon = True
        worker.start()
        return worker

    def stop(self, timeout: float | None = 5) -> None:
        """Let workers finish; after ``timeout`` break their connections; leave those that are stuck even then."""
        workers = list(self._clear_threads())
        for _ in workers:
            self._queue.put(_threads._SHUTDOWNREQUEST)
        end = time.monotonic() + (timeout or 0)
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()))
        stuck = [worker for worker in workers if worker.is_alive()]
        for worker in stuck:
            self._force_close(worker.conn)
        for worker in stuck:
            worker.join(max(0.0, end + 1.0 - time.monotonic()))
        self._close_queued()
        left = sum(worker.is_alive() for worker in stuck)
        for _ in range(left):
            self._queue.put(_threads._SHUTDOWNREQUEST)  # for when they come back
        if left:
            _log.warning("%d workers of %s are still busy while it stops", left, self.server.server_name)

    def _close_queued(self) -> None:
        """Close connections that came after the last worker had gone."""
        with contextlib.suppress(queue.Empty):
            while True:
                connection = self._queue.get_nowait()
                if connection is not _threads._SHUTDOWNREQUEST:
                    connection.close()

    @staticmethod
    def _force_close(conn: Connection | None) -> None:
        if conn is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(conn.socket, socket.SHUT_RDWR)


class HttpServer(_WsgiServer):
    """cheroot's server with our connections, manager and pool."""

    ConnectionClass = Connection

    def __init__(
        self,
        address: tuple[str, int],
        application: Application,
        *,
        certificate: ServerCertificate,
        proxies: Proxies,
        threads: int,
        max_threads: int,
    ) -> None:
        super().__init__(
            address,
            application,
            numthreads=threads,
            server_name="DM",
            request_queue_size=BACKLOG,
            shutdown_timeout=STOP_SECONDS,
        )
        self.certificate = certificate
        self.proxies = proxies
        self.ssl_adapter = _Tls(certificate)
        self.requests = _Pool(self, threads, max(threads, max_threads))
        self.public_budget = Budget(PUBLIC_BYTES)
        self.known_budget = Budget(KNOWN_BYTES)
        self.gateway = _Gateway
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_connections = max(32, min(MAX_CONNECTIONS, descriptors // 2))

    def prepare(self) -> None:
        """Bind, listen and start the workers."""
        super().prepare()
        self._connections: Any  # cheroot just made one of its own kind
        self._connections._selector.close()
        self._connections = Manager(self)

    @staticmethod
    def bind_socket(sock: socket.socket, address: tuple[str, int]) -> socket.socket:
        """Bind the socket; a failing one is closed."""
        try:
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        return sock

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Write to DM's log."""
        _log.log(level, "%s", msg, exc_info=traceback)


Connection.RequestHandlerClass = _Request


class Server:
    """A service's HTTPS server.

    :param application: what answers. :param host: address to listen on. :param port: 0 picks a free one.
    :param certificate: PEM file. :param key: PEM file.
    :param threads: workers to begin with. :param max_threads: how many requests may run at the same time, long polls
        and downloads included; what waits for its client's bytes does not count.
    :param tls_minimum: :param warning_days: see :class:`~dm.common.web.certificates.ServerCertificate`.
    :param trusted_proxies: see :class:`~dm.common.web.proxies.Proxies`.
    """

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        certificate: str | os.PathLike[str],
        key: str | os.PathLike[str],
        *,
        threads: int = THREADS,
        max_threads: int = MAX_THREADS,
        tls_minimum: str = "1.2",
        warning_days: float = 30,
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        self.application = application
        self.host = host
        self._wanted = port
        self.certificate = ServerCertificate(certificate, key, tls_minimum, warning_days)
        self._http = HttpServer(
            (host, port),
            application,
            certificate=self.certificate,
            proxies=Proxies(trusted_proxies),
            threads=threads,
            max_threads=max_threads,
        )
        self._thread: threading.Thread | None = None
        application.health.check("certificate", self.certificate.check)

    @classmethod
    def of(cls, application: Application, settings: WebSettings) -> Server:
        """Return the server of a service as its settings want it."""
        return cls(
            application,
            settings.host,
            settings.port,
            settings.certificate,
            settings.key,
            threads=settings.threads,
            tls_minimum=settings.tls_minimum,
            warning_days=settings.certificate_warning_days,
            trusted_proxies=settings.trusted_proxies,
        )

    @property
    def port(self) -> int:
        """The port it listens on; the real one once started."""
        return int(self._http.bind_addr[1])

    @property
    def url(self) -> str:
        """The base URL for a client on this host."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - a comparison
        return f"https://{f'[{host}]' if ':' in host else host}:{self.port}/dm"

    def start(self) -> None:
        """Bind and serve in threads of its own; returns when connections are accepted.

        :raises ConfigurationError: the address is not ours or the port is taken.
        """
        try:
            self._http.prepare()
        except OSError as error:
            raise ConfigurationError(
                f"The service cannot listen on {self.host} port {self._wanted}: {error.strerror or error}."
            ) from error
        self._thread = threading.Thread(target=self._http.serve, name=f"{self.application.name} server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, let running requests finish for 4 s, then break what is left; at most 6 s in all."""
        self.application.stopping.set()
        self._http.stop()
        if self._thread is not None:
            self._thread.join(2)
            self._thread = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    server: Server,
    name: str,
    on_stop: Callable[[], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Run a started or fresh server until SIGTERM or SIGINT, then stop it within 10 s.

    SIGHUP takes a renewed certificate up at once, which else happens within some seconds.

    :param name: the service's name, for the log.
    :param on_stop: called once after the last request: close databases, stop background work.
    :param on_ready: called once when it accepts connections and a signal would stop it cleanly.
    """
    ends = (signal.SIGTERM, signal.SIGINT)
    signals = (*ends, signal.SIGHUP)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # a signal may be delivered to a worker thread, which would not wake this one from a lock; a descriptor always does
    before_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        if server._thread is None:
            server.start()
        _log.info("%s serves %s", name, server.url)
        if on_ready is not None:
            on_ready()
        while (number := reader.recv(1)[0]) not in ends:
            if number == signal.SIGHUP:
                server.certificate.reload()
        _log.info("%s stops", name)
        server.stop()
        if on_stop is not None:
            on_stop()
        _log.info("%s has stopped", name)
    finally:
        signal.set_wakeup_fd(before_descriptor)
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
        reader.close()
        writer.close()
