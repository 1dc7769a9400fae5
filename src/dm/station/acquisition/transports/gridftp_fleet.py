"""The GridFTP servers of a station: which of them answer, in turn, and connections to them that are kept for a while.

A server that did not answer rests: it is left out until its time has passed, unless no other is left.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from dm.common.errors import CommunicationError, InvalidArgument
from dm.common.paths import display
from dm.station.acquisition.transports.base import Source
from dm.station.acquisition.transports.gridftp_control import Control
from dm.station.acquisition.transports.gridftp_credentials import Credentials
from dm.station.acquisition.transports.gridftp_settings import GridFtpSettings, Server, ServersSettings, server

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 30.0
_IDLE_MOST = 8
T = TypeVar("T")


class Fleet:
    """See the module.

    :param settings: with the servers. :param credentials: shown to those that ask for one.
    """

    def __init__(self, settings: GridFtpSettings, credentials: Credentials) -> None:
        self._settings = settings
        self._credentials = credentials
        self._lock = threading.Lock()
        self._turn = itertools.count()
        self._resting: dict[Server, float] = {}
        self._idle: dict[Server, list[tuple[float, Control]]] = {}

    def close(self) -> None:
        """Hang up all connections."""
        with self._lock:
            kept, self._idle = self._idle, {}
        for _, control in itertools.chain.from_iterable(kept.values()):
            control.close()

    # --- which servers --------------------------------------------------------------------------------------
    def of_source(self, source: Source) -> ServersSettings:
        """Return the servers of a data directory given as a URL.

        :raises InvalidArgument: it names none.
        """
        host = source.host or ""
        known = self._settings.sources.get(host)
        if known is not None:
            return known
        port = f":{source.port}" if source.port else ""
        try:
            return ServersSettings(urls=[str(server(f"{source.scheme}://{host}{port}"))])
        except ValueError as error:
            raise InvalidArgument(f"Data directory {source.text!r} names no GridFTP server: {error}.") from error

    def ask(self, servers: Sequence[Server], question: Callable[[Control], T]) -> T:
        """Ask a server something, another one each time, and the next one when it does not answer.

        :raises CommunicationError: none does; the text says why the last one did not.
        """
        problem: CommunicationError | None = None
        for one in self._turned(servers):
            try:
                with self.control(one) as control:
                    return question(control)
            except CommunicationError as error:
                problem = error
                self.rest(one, error)
        assert problem is not None
        raise problem

    def first(self, servers: Sequence[Server]) -> Server:
        """Return a server that answers, another one each time.

        :raises CommunicationError: none does; the text says why the last one did not.
        """

        def alive(control: Control) -> Server:
            control.alive()
            return control.server

        return self.ask(servers, alive)

    def answering(self, servers: Sequence[Server], directory: bytes) -> list[Server]:
        """Return the servers that answer and see a directory, beginning with another one each time.

        :raises CommunicationError: none does; the text says why the last one did not.
        """
        found: list[Server] = []
        problem: CommunicationError | None = None
        for one in self._turned(servers):
            try:
                with self.control(one) as control:
                    fact = control.status([directory])[0]
            except CommunicationError as error:
                problem = error
                self.rest(one, error)
                continue
            if fact is not None and fact.listable:
                found.append(one)
            else:
                problem = CommunicationError(f"Server {one} does not see the directory {display(directory)!r}.")
        if not found:
            assert problem is not None
            raise problem
        return found

    def _turned(self, servers: Sequence[Server]) -> list[Server]:
        """Return servers in turn, without those that rest unless all do."""
        first = next(self._turn) % len(servers)
        turned = [*servers[first:], *servers[:first]]
        now = time.monotonic()
        with self._lock:
            return [one for one in turned if self._resting.get(one, 0.0) <= now] or turned

    def rest(self, one: Server, problem: Exception) -> None:
        """Leave a server out for a while, and forget the connections to it."""
        with self._lock:
            self._resting[one] = time.monotonic() + self._settings.rest_seconds
            dead = self._idle.pop(one, [])
        for _, control in dead:
            control.close()
        _log.warning("GridFTP server %s is left out for %g s: %s", one, self._settings.rest_seconds, problem)

    def weed(self, servers: Sequence[Server]) -> list[Server]:
        """Let those servers rest to which no new connection can be made, and return the others."""
        good: list[Server] = []
        for one in servers:
            try:
                self._connect(one).close()
            except CommunicationError as error:
                self.rest(one, error)
            else:
                good.append(one)
        return good

    # --- connections ----------------------------------------------------------------------------------------
    @contextmanager
    def control(self, one: Server) -> Iterator[Control]:
        """Lend a connection; it is kept for others unless the block fails on it.

        :raises CommunicationError: the server does not answer.
        """
        control = self._idle_one(one) or self._connect(one)
        try:
            yield control
        except BaseException:  # an answer may still be on its way
            control.close()
            raise
        with self._lock:
            kept = self._idle.setdefault(one, [])
            if len(kept) < _IDLE_MOST:
                kept.append((time.monotonic(), control))
                return
        control.close()

    def _idle_one(self, one: Server) -> Control | None:
        """Return a connection that was used a moment ago; older ones may have been cut by the server."""
        too_old = time.monotonic() - _IDLE_SECONDS
        with self._lock:
            kept = self._idle.get(one, [])
            old = [control for since, control in kept if since < too_old]
            kept[:] = [pair for pair in kept if pair[0] >= too_old]
            found = kept.pop()[1] if kept else None
        for control in old:
            control.close()
        return found

    def _connect(self, one: Server) -> Control:
        context = self._credentials.context() if one.secure else None
        settings = self._settings
        return Control(one, context, connect_timeout=settings.connect_timeout, io_timeout=settings.io_timeout)
