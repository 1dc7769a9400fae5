"""Events for subscribers, each of whom sees what the account of its key may see.

Topics alone would protect nothing: a subscriber chooses them. So subscriptions come up to us (an XPUB socket in manual
mode) and what a connection gets is what we enter for it, by the key it was let in with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import zmq

from dm.common.web.replies import to_json
from dm.station.processing.zeromq.keys import ClientKey, ClientKeys
from dm.station.processing.zeromq.messages import EVENTS, prefix, public, topic


class Publisher:
    """Speaks through an XPUB socket in manual mode. For one thread.

    :param socket: it. :param keys: that are let in. :param refused: called with address and reason.
    """

    def __init__(self, socket: zmq.Socket[bytes], keys: ClientKeys, refused: Callable[[str, str], None]) -> None:
        self._socket = socket
        self._keys = keys
        self._refused = refused
        self._subscribers: dict[str, ClientKey] = {}

    @property
    def heard(self) -> bool:
        """Whether anybody has subscribed to anything."""
        return bool(self._subscribers)

    @property
    def stale(self) -> bool:
        """Whether a subscriber's key was revoked or changed: all must be asked for their keys again."""
        known = self._keys.all()
        return any(known.get(public) != key for public, key in self._subscribers.items())

    def subscription(self, frame: zmq.Frame) -> None:
        """Enter or take back a subscription just received, as far as its key goes."""
        text = frame.bytes
        if not text or text[0] not in (0, 1):
            return
        key = self._keys.find(user(frame))
        if key is None:
            return
        option = zmq.SUBSCRIBE if text[0] else zmq.UNSUBSCRIBE
        allowed = granted(text[1:], key)
        if text[0]:
            self._subscribers[key.public] = key
            if not allowed:
                self._refused(address(frame), f"subscription of {key.account} to {text[1:61]!r}")
        for wanted in allowed:
            self._socket.setsockopt(option, wanted)

    def send(self, event: Mapping[str, Any]) -> bool:
        """Publish an event; a subscriber that is slow loses it. :returns: whether it could be published."""
        try:
            self._socket.send_multipart([topic(event).encode("ascii"), to_json(public(event))], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True


def granted(wanted: bytes, key: ClientKey) -> list[bytes]:
    """Return the topics to enter for a wish: the wish, or as much of it as the key may see."""
    if key.all_events:
        return [wanted]
    found: list[bytes] = []
    for event in EVENTS:
        own = prefix(event, key.account).encode("ascii")
        if wanted.startswith(own):
            return [wanted]
        if own.startswith(wanted):
            found.append(own)
    return found


def user(frame: zmq.Frame) -> str:
    """Return the key a frame's peer was let in with, empty when there is none."""
    return _property(frame, "User-Id")


def address(frame: zmq.Frame) -> str:
    """Return the address a frame's peer has."""
    return _property(frame, "Peer-Address").removeprefix("::ffff:")  # IPv4 on a socket for both


def _property(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name))
    except (zmq.ZMQError, ValueError, LookupError):
        return ""
