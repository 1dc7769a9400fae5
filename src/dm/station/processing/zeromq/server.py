"""The sockets of the ZeroMQ interface and the one thread that serves them.

The thread never blocks: what may take time is done by a few threads of a pool, and waiting for the end of a job is
done by nobody - the request is looked at again when the job's event comes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from dm.common.errors import ConfigurationError, InvalidRequest, ServiceLimit
from dm.common.health import Health, Level
from dm.common.statuses import INACTIVE
from dm.station.processing.zeromq import admission, keys
from dm.station.processing.zeromq.desk import Answer, Desk, refusal
from dm.station.processing.zeromq.load import Load
from dm.station.processing.zeromq.messages import (
    EVENTS,
    MAX_FRAMES,
    MAX_REQUEST,
    MAX_SUBSCRIPTION,
    OPERATIONS,
    BadEnvelope,
    Wish,
    understood,
)
from dm.station.processing.zeromq.publisher import Publisher, address, user
from dm.station.processing.zeromq.replies import Replies
from dm.station.processing.zeromq.waits import Waits

PEER_UNREAD = 256
EVENT_QUEUE = 20_000
SUBSCRIBER_QUEUE = 5_000
LOGIN_THREADS = 4
_TURN = 100
_RETRY = 0.02
_LOOK = 5.0
_HANDSHAKE_MS = 10_000
_log = logging.getLogger(__name__)
_audit_log = logging.getLogger("dm.audit")

Event = Mapping[str, Any]
_Socket = zmq.Socket[bytes]


@dataclass(frozen=True)
class Place:
    """Where the interface listens and what it may use.

    :param requests: :param events: ZeroMQ addresses, e.g. ``tcp://*:55537``. :param directory: of the keys.
    :param threads: that carry out requests.
    """

    requests: str
    events: str
    directory: Path
    threads: int = 8


@dataclass(eq=False)
class _Ticket:
    """A request that is being carried out."""

    peer: bytes
    envelope: list[bytes]
    wish: Wish
    public: str
    remote: str
    size: int
    began: float
    looked: float
    last: bool = False


class Gateway:
    """The ZeroMQ interface.

    :param place: where. :param desk: carries out requests. :param health: of the service.
    """

    def __init__(self, place: Place, desk: Desk, health: Health) -> None:
        self._place = place
        self._desk = desk
        self._pair, made = keys.prepare(place.directory)
        if made:
            _log.info("made the service's ZeroMQ keys in %s", place.directory)
        self._keys = keys.ClientKeys(place.directory)
        self._requests = health.counter("zeromq_requests", "ZeroMQ requests by outcome.", ("op", "outcome"))
        self._refusals = health.counter("zeromq_refusals", "ZeroMQ peers and messages refused or lost.", ("reason",))
        self._events = health.counter("zeromq_events", "Events published, or lost on our side.", ("event", "outcome"))
        health.gauge("zeromq_requests_open", "ZeroMQ requests being carried out.").set_function(
            lambda: float(self._load.requests)
        )
        health.check("zeromq", self._check)
        self._load = Load()
        self._done: deque[tuple[_Ticket, Answer]] = deque()
        self._queue: deque[Event] = deque()
        self._heard = False  # whether anybody has ever subscribed
        self._waits: Waits[_Ticket] = Waits()
        self._overflow = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._ringing = threading.Lock()
        self._wake = -1
        self._addresses = (place.requests, place.events)

    @property
    def address(self) -> str:
        """Where requests go, with the port the system chose."""
        return self._addresses[0]

    @property
    def events_address(self) -> str:
        """Where subscribers connect."""
        return self._addresses[1]

    @property
    def server_key(self) -> str:
        """The service's public key."""
        return self._pair.public.decode("ascii")

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen. :raises ConfigurationError: an address that cannot be used."""
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 64)
        try:
            self._zap = self._context.socket(zmq.ROUTER)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(admission.ENDPOINT)
            self._router = self._listening(zmq.ROUTER, self._place.requests)
            self._xpub = self._listening(zmq.XPUB, self._place.events)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._addresses = (_text(self._router.last_endpoint), _text(self._xpub.last_endpoint))
        self._pool = ThreadPoolExecutor(self._place.threads, "zeromq-request")
        self._logins = ThreadPoolExecutor(LOGIN_THREADS, "zeromq-login")
        self._replies = Replies(self._router, self._lost)
        self._publisher = Publisher(self._xpub, self._keys, self._refused)
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="zeromq")
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; requests that are being carried out are finished, their answers are not sent."""
        if self._thread is None:
            return
        self._stopping.set()
        self._ring()
        self._thread.join()
        self._thread = None
        for pool in (self._pool, self._logins):
            pool.shutdown(cancel_futures=True)
        self._context.destroy(linger=0)
        with self._ringing:
            os.close(self._wake)
            self._wake = -1

    def publish(self, event: Event) -> None:
        """Tell subscribers, and whoever waits for the job. Returns at once; may be called from any thread.

        :param event: ``event`` (``job`` or ``file``), ``id``, ``owner``, ``status`` and what else it has.
        """
        if not self._heard and not _ends(event):
            return  # nobody listens: most stations most of the time
        if len(self._queue) >= EVENT_QUEUE:
            self._overflow = True
            self._events.labels(_known(event), "lost").inc()
            return
        self._queue.append(event)
        self._ring()

    def _ring(self) -> None:
        with self._ringing, contextlib.suppress(BlockingIOError):  # it rings already
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _listening(self, kind: int, where: str) -> _Socket:
        socket: _Socket = self._context.socket(kind)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, 60),
            (zmq.TCP_KEEPALIVE_INTVL, 15),
            (zmq.TCP_KEEPALIVE_CNT, 4),
            (zmq.BACKLOG, 1024),
            (zmq.IPV6, int("*" in where.partition(":")[2].rpartition(":")[0] or "[" in where)),
            (zmq.ZAP_ENFORCE_DOMAIN, 1),
        ):
            socket.setsockopt(option, value)
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST + 1024)
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.setsockopt(zmq.RCVHWM, 8)
            socket.setsockopt(zmq.SNDHWM, 8)
        else:
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_SUBSCRIPTION + 1024)
            socket.setsockopt(zmq.XPUB_MANUAL, 1)
            socket.setsockopt(zmq.RCVHWM, 100)
            socket.setsockopt(zmq.SNDHWM, SUBSCRIBER_QUEUE)
        socket.zap_domain = admission.DOMAIN.encode("ascii")
        socket.curve_publickey, socket.curve_secretkey = self._pair.public, self._pair.secret
        socket.curve_server = True
        try:
            socket.bind(where)
        except zmq.ZMQError as error:
            socket.close()
            raise ConfigurationError(f"ZeroMQ cannot listen on {where}: {error.strerror}.") from error
        return socket

    # --- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in (self._zap, self._router, self._xpub, self._wake):
            poller.register(socket, zmq.POLLIN)
        look = time.monotonic() + _LOOK
        while not self._stopping.is_set():
            try:
                for socket, _ in poller.poll(self._patience(look)):
                    if socket is self._zap:
                        self._each(self._zap, self._admit)
                    elif socket is self._router:
                        self._each(self._router, self._request)
                    elif socket is self._xpub:
                        self._each(self._xpub, self._subscribe)
                    else:
                        os.eventfd_read(self._wake)
                self._publish_all()
                self._finish_all()
                self._replies.retry()
                now = time.monotonic()
                for ticket in self._waits.due(now):
                    ticket.last = True
                    self._carry_out(ticket)
                if now >= look:
                    look = now + _LOOK
                    if self._publisher.stale:
                        poller.unregister(self._xpub)
                        self._ask_again()
                        poller.register(self._xpub, zmq.POLLIN)
            except Exception:  # whatever it is, the others' requests go on; the pause keeps it from spinning
                _log.exception("the ZeroMQ interface met a defect")
                self._stopping.wait(0.1)

    def _patience(self, look: float) -> int:
        """Return milliseconds until there is something to do without a message."""
        now = time.monotonic()
        until = min(look, self._waits.next_deadline())
        seconds = _RETRY if self._replies else until - now
        return max(0, round(seconds * 1000) + 1)

    @staticmethod
    def _each(socket: _Socket, handle: Callable[[list[zmq.Frame]], None]) -> None:
        for _ in range(_TURN):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            handle(frames)

    def _admit(self, frames: list[zmq.Frame]) -> None:
        reply = admission.answer([frame.bytes for frame in frames], self._keys, self._refused)
        if reply is not None:
            self._zap.send_multipart(reply, zmq.NOBLOCK)

    def _subscribe(self, frames: list[zmq.Frame]) -> None:
        if len(frames) == 1:
            self._publisher.subscription(frames[0])
            self._heard = self._heard or self._publisher.heard

    def _ask_again(self) -> None:
        """Close and open the publishing socket, so that every subscriber has to show its key again."""
        self._xpub.close(linger=0)
        where = self._addresses[1]
        while not self._stopping.is_set():
            try:
                self._xpub = self._listening(zmq.XPUB, where)
                break
            except ConfigurationError as error:  # the old socket needs a moment to let go
                _log.info("%s", error)
                self._stopping.wait(0.02)
        self._publisher = Publisher(self._xpub, self._keys, self._refused)

    # --- requests --------------------------------------------------------------------------------------------

    def _request(self, frames: list[zmq.Frame]) -> None:
        peer, body = frames[0].bytes, frames[1:]
        dressed = len(body) == MAX_FRAMES and len(body[0]) == 0
        envelope = [peer, b""] if dressed else [peer]
        key = self._keys.find(user(frames[-1]))
        if key is None:  # revoked since it connected
            self._lost("key")
            return
        if self._replies.waiting(peer) >= PEER_UNREAD:
            self._lost("unread")
            return
        try:
            if not peer.startswith(b"\0"):
                raise BadEnvelope("Set no routing id of your own on the socket.")
            if len(body) != 1 + dressed:
                raise BadEnvelope(f"A request is one frame of JSON, not {len(body)} frames.")
            size = len(body[-1])
            wish = understood(body[-1].bytes)
        except BadEnvelope as error:
            self._answered(envelope, "none", refusal(error.id, error))
            return
        if reason := self._load.refusal(peer, key.public, size):
            busy = ServiceLimit(f"{reason}; try again in a moment.")
            self._answered(envelope, wish.op, refusal(wish.id, busy))
            return
        now = time.monotonic()
        ticket = _Ticket(peer, envelope, wish, key.public, address(frames[-1]), size, now, now)
        self._load.begin(peer, key.public, size)
        self._carry_out(ticket)

    def _carry_out(self, ticket: _Ticket) -> None:
        ticket.looked = time.monotonic()
        pool = self._logins if ticket.wish.op == "login" else self._pool
        pool.submit(self._work, ticket)

    def _work(self, ticket: _Ticket) -> None:
        """Answer a request, in a thread of a pool."""
        key = self._keys.find(ticket.public)
        if key is None:
            answer = refusal(ticket.wish.id, InvalidRequest("The key is no longer let in."))
        else:
            answer = self._desk.answer(ticket.wish, key, ticket.remote)
        self._done.append((ticket, answer))
        self._ring()

    def _finish_all(self) -> None:
        while self._done:
            ticket, answer = self._done.popleft()
            deadline = ticket.began + answer.waits
            if answer.waits and not ticket.last and deadline > time.monotonic():
                if not self._waits.park(ticket, answer.job, ticket.looked, deadline):
                    self._carry_out(ticket)  # it ended while we looked
                continue
            self._load.end(ticket.peer, ticket.public, ticket.size)
            self._answered(ticket.envelope, ticket.wish.op, answer)

    def _answered(self, envelope: list[bytes], op: str, answer: Answer) -> None:
        self._requests.labels(op if op in OPERATIONS else "none", answer.outcome).inc()
        self._replies.send([*envelope, answer.text])

    # --- events ----------------------------------------------------------------------------------------------

    def _publish_all(self) -> None:
        for _ in range(len(self._queue)):
            event = self._queue.popleft()
            sent = self._publisher.send(event)
            self._events.labels(_known(event), "published" if sent else "lost").inc()
            if _ends(event):
                for ticket in self._waits.ended(str(event["id"])):
                    self._carry_out(ticket)
        if self._overflow:  # an end may be among what was lost
            self._overflow = False
            for ticket in self._waits.everybody():
                self._carry_out(ticket)

    # --- what is told of it ----------------------------------------------------------------------------------

    def _lost(self, reason: str) -> None:
        self._refusals.labels(reason).inc()

    def _refused(self, remote: str, reason: str) -> None:
        what = "subscription" if reason.startswith("subscription") else "connection"
        self._refusals.labels(what).inc()
        _audit_log.warning("zeromq refused remote=%s: %s", remote, reason)

    def _check(self) -> tuple[Level, str]:
        if self._thread is None or not self._thread.is_alive():
            return "critical", "The ZeroMQ interface does not run; restart the service."
        known = self._keys.all()
        if self._keys.problems:
            return "warning", f"{len(self._keys.problems)} keys of ZeroMQ clients cannot be used; see the log."
        return "ok", f"Requests at {self.address}, events at {self.events_address}; {len(known)} keys are let in."


def _ends(event: Event) -> bool:
    """Whether an event is the end of a job, for which somebody may wait."""
    return event["event"] == "job" and event.get("status") in INACTIVE


def _known(event: Event) -> str:
    return str(event["event"]) if event.get("event") in EVENTS else "other"


def _text(endpoint: Any) -> str:
    return endpoint.decode("ascii") if isinstance(endpoint, bytes) else str(endpoint)
