"""How much is being carried out, for whom, and when it is too much."""

from __future__ import annotations

from collections import Counter
from typing import Any

PEER_REQUESTS = 32
KEY_REQUESTS = 1024
ALL_REQUESTS = 4096
ALL_BYTES = 128 << 20


class Load:
    """Requests that are being carried out. Changed by one thread."""

    def __init__(self) -> None:
        self.requests = 0
        self._bytes = 0
        self._by_peer: Counter[bytes] = Counter()
        self._by_key: Counter[str] = Counter()

    def refusal(self, peer: bytes, key: str, size: int) -> str:
        """Return why one more request would be too many, as the beginning of a sentence; empty when it is not.

        :param peer: the connection. :param key: its public key. :param size: of the request in bytes.
        """
        if self._by_peer[peer] >= PEER_REQUESTS:
            return f"{PEER_REQUESTS} requests of this connection are not answered yet"
        if self._by_key[key] >= KEY_REQUESTS:
            return f"{KEY_REQUESTS} requests of this key are not answered yet"
        if self.requests >= ALL_REQUESTS or self._bytes + size > ALL_BYTES:
            return "The service has too many requests at the moment"
        return ""

    def begin(self, peer: bytes, key: str, size: int) -> None:
        """Count a request."""
        self.requests += 1
        self._bytes += size
        self._by_peer[peer] += 1
        self._by_key[key] += 1

    def end(self, peer: bytes, key: str, size: int) -> None:
        """Count it no longer."""
        self.requests -= 1
        self._bytes -= size
        _less(self._by_peer, peer)
        _less(self._by_key, key)


def _less(counter: Counter[Any], name: Any) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]
