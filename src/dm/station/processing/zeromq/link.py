"""A client's connection to the service: one request at a time, its answer or the reason why there is none."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from dm.common import curve
from dm.common.errors import CommunicationError, ConfigurationError, DmException, from_wire
from dm.common.wire import json_text

_LINGER_MS = 0
_MAX_ANSWER = 64 << 20


class Keys:
    """What a client shows and expects.

    :param server: public key of the service: Z85 text of 40 characters or a ``.key`` file.
    :param own: the client's ``.key_secret`` file.
    """

    def __init__(self, server: str | os.PathLike[str], own: str | os.PathLike[str]) -> None:
        text = os.fspath(server)
        is_key = len(text) == 40 and not Path(text).exists()
        self.server = text.encode("ascii") if is_key else curve.read(Path(text).expanduser()).public
        self.own = curve.read_secret(Path(own).expanduser())

    def socket(self, context: zmq.Context[Any], kind: int) -> zmq.Socket[bytes]:
        """Return a socket, not connected yet. :raises ConfigurationError: no usable key."""
        socket: zmq.Socket[bytes] = context.socket(kind)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_ANSWER)
        socket.setsockopt(zmq.RECONNECT_IVL, 100)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 60)
        try:
            socket.curve_serverkey = self.server
            socket.curve_publickey, socket.curve_secretkey = self.own.public, self.own.secret
        except zmq.ZMQError as error:
            socket.close()
            raise ConfigurationError(f"A CURVE key cannot be used: {error.strerror}.") from error
        return socket


class Link:
    """A DEALER socket. Calls of several threads take turns; after a fork the child makes a socket of its own.

    :param address: e.g. ``tcp://host:55537``. :param keys: see there.
    """

    def __init__(self, address: str, keys: Keys) -> None:
        self.address = address
        self._keys = keys
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._process = 0
        self._context: zmq.Context[Any] | None = None

    def call(self, request: Mapping[str, Any], timeout: float, repeatable: bool) -> Any:
        """Send a request and return its result.

        :param timeout: seconds. :param repeatable: whether to send it again after the connection broke.
        :raises DmException: what the service answers. :raises CommunicationError: no answer.
        """
        with self._lock:
            if self._context is None or self._process != os.getpid():
                self._open()
            number = next(self._numbers)
            text = json_text({**request, "id": number}).encode()
            try:
                answer = self._exchange(text, number, time.monotonic() + timeout, repeatable)
            except BaseException:
                self._close()  # an answer that comes late must not meet the next question
                raise
            if answer is None:
                self._close()
                raise CommunicationError(f"No answer from {self.address} within {timeout:g} s: {self._reason}")
        if "error" in answer:
            raise from_wire(answer["error"])
        return answer.get("result")

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        self._context = zmq.Context()
        self._process = os.getpid()
        self._reason = "nobody listens there, or with another key."
        self._socket = self._keys.socket(self._context, zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_DISCONNECTED
        )
        try:
            self._socket.connect(self.address)
        except zmq.ZMQError as error:
            self._close()
            raise ConfigurationError(f"Address {self.address!r} cannot be used: {error.strerror}.") from error

    def _close(self) -> None:
        context, self._context = self._context, None
        if context is not None and self._process == os.getpid():
            self._socket.disable_monitor()
            context.destroy(linger=0)

    def _exchange(self, text: bytes, number: int, deadline: float, repeatable: bool) -> dict[str, Any] | None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while self._monitor.poll(0):  # what happened since the last call does not concern this one
            self._monitor.recv_multipart()
        self._socket.send(text)
        broken = False
        while (left := deadline - time.monotonic()) > 0:
            for socket, _ in poller.poll(max(1, round(left * 1000))):
                if socket is self._socket:
                    answer = received(self._socket.recv_multipart())
                    if answer.get("id") == number:
                        return answer
                    continue
                event = parse_monitor_message(self._monitor.recv_multipart())["event"]
                if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    raise CommunicationError(
                        f"The service at {self.address} does not let this key in; have it authorised "
                        "(dm-zmq-keys authorise)."
                    )
                if event == zmq.EVENT_DISCONNECTED:
                    broken = True
                    self._reason = "the connection broke."
                    if not repeatable:
                        raise CommunicationError(
                            f"The connection to {self.address} broke before the answer came; the request may have "
                            "been carried out."
                        )
                elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._reason = "the service is busy."
                    if broken:
                        broken = False
                        self._socket.send(text)
                else:
                    self._reason = "the handshake fails; is the server key the one of this service?"
        return None


def received(frames: list[bytes]) -> dict[str, Any]:
    """Return the JSON object in the last frame. :raises CommunicationError: it is none."""
    try:
        answer = json.loads(frames[-1])
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise CommunicationError("The service's answer is not a JSON object.")
    if "error" in answer and not isinstance(answer["error"], dict):
        raise DmException("The service describes an error in an unknown way.")
    return answer
