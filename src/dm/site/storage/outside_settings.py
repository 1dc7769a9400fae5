"""Settings of access from outside: the sub-sections ``[storage.download]`` and ``[storage.globus]``."""

from __future__ import annotations

import string
from pathlib import Path
from uuid import UUID

from pydantic import Field, ValidationInfo, field_validator

from dm.common import networks
from dm.common.globus import absolute_names
from dm.common.settings import ServiceSettings


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
        networks.parsed(value)
        return value

    @field_validator("station_networks", "type_networks")
    @classmethod
    def _tables(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for named in value.values():
            networks.parsed(named)
        return value


class GlobusSettings(ServiceSettings):
    """Globus groups that follow the members of experiments, and a guest collection that lets them read.

    Leave it out for none.
    """

    client_id: UUID = Field(description="Client id of the application registered at https://app.globus.org/settings.")
    client_secret_file: Path = Field(
        description="File with the client's secret, one line, mode 0600.", examples=["globus.secret"]
    )
    identity: str = Field(
        default="{email}",
        min_length=1,
        description="Globus identity of a user, with the fields {username} {badge} {email}.",
        examples=["{username}@example.org"],
    )
    identity_file: Path | None = Field(
        default=None, description="Identities that follow no rule: lines username,identity."
    )
    provision_identities: bool = Field(
        default=False, description="Have Globus make identities it does not know yet, for people to log in with later."
    )
    group_name: str = Field(
        default="{station} {experiment}",
        min_length=1,
        description="Name of a group, with the fields {station} {experiment} {id}.",
    )
    admins: list[str] = Field(default=[], description="Identities that administrate every group.")
    managers: list[str] = Field(default=[], description="Identities that manage every group.")
    station_managers: bool = Field(default=True, description="Managers of the station manage its experiments' groups.")
    collection: UUID | None = Field(
        default=None, description="Guest collection (id) that shows the storage; unset: groups only."
    )
    collection_paths: dict[str, str] = Field(
        default={"/": "/"},
        min_length=1,
        description="Directories of the storage and where the collection shows them.",
        examples=[{"/gdata/dm": "/"}],
    )
    days_after_end: float | None = Field(
        default=None,
        ge=0,
        description="Members read over Globus until so long after the experiment's end; unset: always.",
    )
    sync_seconds: float = Field(default=30, ge=0.05, description="Changed memberships are looked for so often.")
    compare_hours: float = Field(
        default=24, gt=0, description="Each group is compared with Globus as a whole at least so often."
    )

    @field_validator("collection_paths")
    @classmethod
    def _absolute_names(cls, value: dict[str, str]) -> dict[str, str]:
        return absolute_names(value)

    @field_validator("identity", "group_name")
    @classmethod
    def _fields(cls, value: str, info: ValidationInfo) -> str:
        known = ("username", "badge", "email") if info.field_name == "identity" else ("station", "experiment", "id")
        for _text, name, form, conversion in string.Formatter().parse(value):
            if name is not None and (name not in known or form or conversion):
                raise ValueError(f"{{{name}}} is unknown; use {', '.join(known)}")
        return value
