"""The selector loop that accepts connections, wakes workers for them, and closes them when their time is over."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING, Any

from cheroot import connections as cheroot_connections

from dm.common.web.connections import Connection

if TYPE_CHECKING:
    from dm.common.web.server import HttpServer

ACCEPT_TURN = 128
_log = logging.getLogger("dm.web")
# cheroot's type stubs leave out the internals this module builds on
_ConnectionManager: Any = cheroot_connections.ConnectionManager


class Manager(_ConnectionManager):
    """The selector loop: accepts, hands ready connections to workers, closes late ones.

    Only its own thread unregisters and closes waiting connections; workers only register.
    """

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, data=server)

    def stop(self) -> None:
        """End the loop, at once."""
        self._stop_requested = True
        os.eventfd_write(self._wake, 1)
        super().stop()

    def _waiting(self) -> list[Connection]:
        return [connection for _, connection in self._selector.connections if connection is not self.server]

    def put(self, connection: Connection) -> None:
        """Take a connection back from a worker."""
        connection.last_used = time.time()
        if connection.again:
            self.server.process_conn(connection)
            return
        try:
            self._selector.register(connection.socket.fileno(), connection.events, data=connection)
        except (ValueError, KeyError, OSError):  # closed meanwhile: the service is stopping
            connection.close()

    def _run(self, expiration_interval: float) -> None:
        """Loop until stopped."""
        server = self.server
        server.socket.setblocking(False)
        next_look = time.monotonic() + expiration_interval
        while not self._stop_requested:
            newcomers = False
            for key, _ in self._selector._selector.select(timeout=expiration_interval):
                if key.data is server:
                    newcomers = True
                else:
                    self._selector.unregister(key.fd)
                    server.process_conn(key.data)
            now = time.monotonic()
            if now >= next_look:
                self._close_late(now)
                server.certificate.look()
                next_look = now + expiration_interval
            if newcomers:  # last, when no event of this round refers to a connection that may have to go
                self._accept()

    def _accept(self) -> None:
        server = self.server
        for _ in range(ACCEPT_TURN):
            try:
                sock, address = server.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    _log.warning("cannot accept connections: %s", error.strerror)
                    if not self._make_room(32):
                        time.sleep(0.05)  # all descriptors are in use by running requests
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(server, sock, address)
            self._selector.register(sock.fileno(), selectors.EVENT_READ, data=connection)
            if self._num_connections > server.max_connections:
                self._make_room(max(1, server.max_connections // 50))

    def _make_room(self, count: int) -> int:
        """Close waiting connections: those that never sent a request first, then those idle for longest."""
        waiting = self._waiting()
        waiting.sort(key=lambda connection: (connection.proven, connection.deadline))
        for connection in waiting[:count]:
            self._drop(connection)
        return min(count, len(waiting))

    def _close_late(self, now: float) -> None:
        for connection in self._waiting():
            if connection.deadline < now:
                self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._selector.unregister(connection.socket.fileno())
        connection.close()

    def close(self) -> None:
        """Close all waiting connections; one that a worker brings later is closed by :meth:`put`."""
        with self._selector._lock:
            waiting = [key.data for key in self._selector._selector.get_map().values()]
            self._selector._selector.close()
        for connection in waiting:
            if connection is not self.server:
                connection.close()
        os.close(self._wake)

    @property
    def can_add_keepalive_connection(self) -> bool:
        """Always: room is made by closing connections that deserve it less."""
        return True
