"""Who really calls when proxies stand in between: believed only from proxies the settings name.

A proxy adds the address it was called from at the right end of ``X-Forwarded-For``; what stands left of that came from
the caller, who may write what they like. So the list is read from the right, as long as the speakers are trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dm.common import networks

HEADER = "x-forwarded-for"
_MOST = 20


class Proxies:
    """Finds the caller behind trusted proxies.

    :param trusted: addresses and networks (CIDR) of proxies whose header is believed. :raises ValueError: it is none.
    """

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._networks = networks.parsed(trusted)

    def caller(self, peer: str, headers: Mapping[str, str]) -> str:
        """Return the address of whoever called the outermost trusted proxy; without one, the peer's.

        What is no address ends the reading: the last speaker that could be told is the caller.

        :param peer: address of the connection's other end. :param headers: lower-case name -> value.
        """
        speaker = _address(peer)
        if not self._networks or speaker is None or not self._trusts(speaker):
            return peer
        for text in headers.get(HEADER, "").split(",")[: -_MOST - 1 : -1]:
            named = _address(text)
            if named is None:
                break
            speaker = named
            if not self._trusts(speaker):
                break
        return str(speaker)

    def _trusts(self, address: networks.Address) -> bool:
        return networks.hold(self._networks, address)


def _address(text: str) -> networks.Address | None:
    """Read an address as proxies write it: plain, with a port, or in brackets."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return networks.address(text)
