"""Settings of access from outside: the sub-sections ``[storage.download]`` and ``[storage.globus]``."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from pydantic import Field, field_validator

from dm.common.settings import ServiceSettings


def _checked(networks: Sequence[str]) -> None:
    for text in networks:
        try:
            ipaddress.ip_network(text.strip())
        except ValueError:
            raise ValueError(f"{text[:60]!r} is no network; write it like 10.1.0.0/16 or 2001:db8::/32") from None


class DownloadSettings(ServiceSettings):
    """From where files may be downloaded over HTTPS.

    The networks of an experiment's type count before those of its station, and those before the general ones.
    """

    allowed_networks: list[str] = Field(
        default=[],
        description="Networks (CIDR) whose callers may download files; empty: all. Others are told to use what "
        "elsewhere says; listings stay.",
        examples=[["10.1.0.0/16", "2001:db8::/32"]],
    )
    station_networks: dict[str, list[str]] = Field(
        default={}, description="The same for the experiments of a station: station -> networks."
    )
    type_networks: dict[str, list[str]] = Field(
        default={}, description="The same for the experiments of a type: type -> networks."
    )
    elsewhere: str = Field(
        default="use Globus or GridFTP",
        description="What callers from other networks are told to do instead.",
        max_length=300,
    )

    @field_validator("allowed_networks")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        _checked(value)
        return value

    @field_validator("station_networks", "type_networks")
    @classmethod
    def _tables(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for networks in value.values():
            _checked(networks)
        return value
