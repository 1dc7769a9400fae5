"""Who may connect: answers to libzmq's questions (ZAP, https://rfc.zeromq.org/spec/27)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dm.station.processing.zeromq.keys import ClientKeys

ENDPOINT = "inproc://zeromq.zap.01"
DOMAIN = "dm"
_VERSION = b"1.0"
_FRAMES = 7  # version, request id, domain, address, identity, mechanism, key


def answer(frames: Sequence[bytes], keys: ClientKeys, refused: Callable[[str, str], None]) -> list[bytes] | None:
    """Return the reply to a question, or ``None`` for what is none.

    A peer is let in with a CURVE key that belongs to an account; whatever else it offers, it is not.

    :param frames: as a ROUTER socket gets them. :param refused: called with address and reason.
    """
    if b"" not in frames:
        return None
    delimiter = frames.index(b"")
    envelope, question = list(frames[: delimiter + 1]), frames[delimiter + 1 :]
    if len(question) < _FRAMES - 1 or question[0] != _VERSION:
        return None
    from zmq.utils import z85

    request, address, mechanism = question[1], question[3], question[5]
    key, reason = None, f"mechanism {mechanism[:16]!r}"
    if mechanism == b"CURVE" and len(question) == _FRAMES and len(question[6]) == 32:
        public = z85.encode(question[6]).decode("ascii")
        key, reason = keys.find(public), f"key {public[:8]}..."
    if key is None:
        refused(address[:64].decode("ascii", "replace").removeprefix("::ffff:"), reason)
        return [*envelope, _VERSION, request, b"400", b"Unknown key", b"", b""]
    return [*envelope, _VERSION, request, b"200", b"OK", key.public.encode("ascii"), b""]
