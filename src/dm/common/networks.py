"""Addresses and networks (CIDR) as settings name them and callers come from them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parsed(texts: Iterable[str]) -> list[Network]:
    """Return networks such as ``10.1.0.0/16``; a single address is a network of one.

    :raises ValueError: one is none, or has bits behind its mask; the message says which and how to write it.
    """
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip()))
        except ValueError as error:
            raise ValueError(f"{str(error)[:200]}; write networks like 10.1.0.0/16 or 2001:db8::/32") from None
    return found


def address(text: str) -> Address | None:
    """Return an address, or ``None`` for what is none; a zone is left off, and IPv4 inside IPv6 is IPv4."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def hold(networks: Sequence[Network], which: Address) -> bool:
    """Whether one of the networks has the address."""
    return any(which.version == network.version and which in network for network in networks)
