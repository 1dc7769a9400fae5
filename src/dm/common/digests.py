"""Digests of file contents, by name.

``md5`` is the published one (``md5Sum`` of every record); ``xxh3_128`` verifies transfers: it runs at memory speed
and both ends compute it, so it guards against corruption, not against forgery.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Final

import xxhash

from dm.common.errors import InvalidArgument

CHUNK = 1 << 20
VERIFICATION: Final = "xxh3_128"

_MAKERS: dict[str, Callable[[], Any]] = {
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "xxh3_128": xxhash.xxh3_128,
}
_local = threading.local()
ALGORITHMS = tuple(_MAKERS)


def maker(name: str) -> Any:
    """Return a new digest object (``update``, ``hexdigest``). :raises InvalidArgument: an unknown algorithm."""
    try:
        return _MAKERS[name]()
    except KeyError:
        raise InvalidArgument(f"Unknown digest {name!r}; choose one of {', '.join(ALGORITHMS)}.") from None


def digest_stream(stream: BinaryIO, algorithms: Iterable[str]) -> tuple[int, dict[str, str]]:
    """Read a stream to its end once and digest it.

    :param algorithms: names from :data:`ALGORITHMS`.
    :returns: bytes read, and algorithm -> lower-case hex digest.
    :raises InvalidArgument: an unknown algorithm.
    """
    makers = {name: maker(name) for name in algorithms}
    size = 0
    if not hasattr(_local, "buffer"):  # fresh memory for every small file would cost as much as digesting it
        _local.buffer = memoryview(bytearray(CHUNK))
    buffer = _local.buffer
    while count := stream.readinto(buffer):  # type: ignore[attr-defined]
        size += count
        for made in makers.values():
            made.update(buffer[:count])
    return size, {name: made.hexdigest() for name, made in makers.items()}
