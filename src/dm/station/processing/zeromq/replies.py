"""Answers on their way to peers, some of which do not read."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq

PEER_BYTES = 16 << 20
ALL_BYTES = 256 << 20
PATIENCE = 60.0


@dataclass
class _Line:
    frames: deque[list[bytes]] = field(default_factory=deque)
    size: int = 0
    moved: float = 0.0


class Replies:
    """Sends through a ROUTER socket; what a peer does not take now waits, up to a limit. For one thread.

    :param socket: with ``ROUTER_MANDATORY``. :param dropped: called with the reason when an answer is lost.
    """

    def __init__(self, socket: zmq.Socket[bytes], dropped: Callable[[str], None]) -> None:
        self._socket = socket
        self._dropped = dropped
        self._lines: OrderedDict[bytes, _Line] = OrderedDict()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    def waiting(self, peer: bytes) -> int:
        """Return how many answers a peer has not taken."""
        line = self._lines.get(peer)
        return len(line.frames) if line else 0

    def send(self, frames: list[bytes]) -> None:
        """Send an answer, now or later. :param frames: the first is the peer's."""
        peer, size = frames[0], sum(map(len, frames))
        line = self._lines.get(peer)
        if line is None and self._sent(frames):
            return
        if line is None:
            line = self._lines[peer] = _Line(moved=time.monotonic())
        if line.size + size > PEER_BYTES or self._bytes + size > ALL_BYTES:
            self._dropped("unread")
            return
        line.frames.append(frames)
        line.size += size
        self._bytes += size

    def retry(self) -> None:
        """Send what can be sent by now; forget peers that have taken nothing for a minute."""
        now = time.monotonic()
        for peer, line in list(self._lines.items()):
            while line.frames and self._sent(line.frames[0]):
                self._shorten(line)
                line.moved = now
            if line.frames and now - line.moved > PATIENCE:
                while line.frames:
                    self._shorten(line)
                    self._dropped("unread")
            if not line.frames:
                del self._lines[peer]

    def _shorten(self, line: _Line) -> None:
        size = sum(map(len, line.frames.popleft()))
        line.size -= size
        self._bytes -= size

    def _sent(self, frames: list[Any]) -> bool:
        """Whether the answer needs no further attention: it went out, or its peer is gone."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN:
                return False
            self._dropped("gone")
        return True
