"""The sub-table ``[storage.ldap]``: the site's directory. Without it there is none."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dm.common.secretfiles import first_line
from dm.common.settings import ServiceSettings, build, read

_PLACE = "{username}"
_RDN = r"[A-Za-z][A-Za-z0-9-]*=(?:[^,\\]|\\.)+"
_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_DN = re.compile(rf"{_RDN}(?:,\s*{_RDN})*")
_LARGEST_NUMBER = 2_147_483_647


class LdapSettings(ServiceSettings):
    """The site's LDAP directory: it checks passwords and is told the experiments' groups. Leave it out for none."""

    servers: list[str] = Field(
        min_length=1,
        description="Servers of the directory, tried in this order: ldaps://host, or ldap://host, which is encrypted "
        "with StartTLS before anything else is said.",
        examples=[["ldaps://ldap1.example.org", "ldaps://ldap2.example.org"]],
    )
    ca_file: Path | None = Field(
        default=None,
        description="Authorities (PEM) that sign the servers' certificates; unset: the system's.",
    )
    allow_plain_loopback: bool = Field(
        default=False,
        description="Speak to ldap:// servers of this machine itself without encryption.",
    )
    bind_dn: str = Field(
        description="Account that DM binds with.", examples=["cn=dm,ou=services,dc=example,dc=org"], min_length=3
    )
    bind_password_file: Path = Field(
        description="File with that account's password in its first line (readable by the service only).",
        examples=["ldap.password"],
    )

    login: Literal["without-password", "all", "off"] = Field(
        default="without-password",
        description="Whose password the directory checks: of users who have none at DM, of all (DM's own first), or "
        "of nobody.",
    )
    people_base: str = Field(
        description="Where people's entries are.", examples=["ou=people,dc=example,dc=org"], min_length=3
    )
    user_filter: str = Field(
        default="(&(objectClass=posixAccount)(uid={username}))",
        description="Filter that finds the one entry of a user beneath people_base.",
    )
    user_dn_template: str | None = Field(
        default=None,
        description="DN of a user, which saves the search.",
        examples=["uid={username},ou=people,dc=example,dc=org"],
    )

    group_base: str = Field(
        description="Where experiments' groups are made.", examples=["ou=groups,dc=example,dc=org"], min_length=3
    )
    mark: str = Field(
        default="dm",
        pattern=r"^[a-z][a-z0-9-]{0,30}$",
        description="Entries of this site bear <mark>:experiment:<id> or <mark>:user:<id> as description; others are "
        "never touched. Two sites in one directory need two marks.",
    )
    gid_first: int = Field(
        default=1_000_000,
        ge=1000,
        le=_LARGEST_NUMBER,
        description="An experiment's group number is this plus the experiment's id; never change it.",
    )
    gid_last: int = Field(default=1_999_999, ge=1000, le=_LARGEST_NUMBER, description="Last group number DM may give.")
    extra_members: list[str] = Field(
        default_factory=list, description="Accounts in every group, such as those of data movers."
    )

    manage_users: Literal["none", "synchronised", "all"] = Field(
        default="none",
        description="Whose entries beneath people_base DM writes: nobody's, those of people that came from the "
        "facility's user directory, or every user's.",
    )
    uid_first: int = Field(
        default=1_000_000,
        ge=1000,
        le=_LARGEST_NUMBER,
        description="A user's uid number, if none is recorded, is this plus the user's id; never change it.",
    )
    uid_last: int = Field(default=1_999_999, ge=1000, le=_LARGEST_NUMBER, description="Last uid number DM may give.")
    user_gid: int = Field(default=100, ge=1, le=_LARGEST_NUMBER, description="Primary group of the people DM writes.")
    home_directory: str = Field(default="/home/{username}", description="Home directory of the people DM writes.")
    login_shell: str = Field(default="/bin/bash", description="Login shell of the people DM writes.")
    deactivation: Literal["expire", "lock", "remove"] = Field(
        default="expire",
        description="What becomes of the entry of a user who is no longer active: expire sets shadowExpire and a shell "
        "that ends at once, lock sets pwdAccountLockedTime besides (the server needs its ppolicy overlay), remove "
        "removes it.",
    )

    reconcile_minutes: float = Field(
        default=30, gt=0, description="Everything in the directory is compared with the database so often."
    )
    most_removals: int = Field(
        default=20,
        ge=0,
        description="A comparison that would remove more groups, or more people, holds them back until dm-sync-groups "
        "--force.",
    )
    login_timeout_seconds: float = Field(
        default=4, gt=0, le=4.5, description="A login waits for the directory no longer than this, then answers 503."
    )
    login_connections: int = Field(
        default=8, ge=1, le=64, description="Logins that may wait for the directory at the same time."
    )
    timeout_seconds: int = Field(
        default=10, ge=1, le=300, description="One operation of writing groups waits no longer than this."
    )

    @field_validator("servers")
    @classmethod
    def _servers(cls, urls: list[str]) -> list[str]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or parts.path.strip("/") or parts.query:
                raise ValueError(f"{url!r} is no server; write ldaps://host or ldap://host, with :port if need be")
            _ = parts.port  # raises ValueError for one that is no number
        return urls

    @field_validator("bind_dn", "people_base", "group_base")
    @classmethod
    def _dn(cls, dn: str) -> str:
        if not _DN.fullmatch(dn):
            raise ValueError("it is no distinguished name, which looks like ou=people,dc=example,dc=org")
        return dn

    @field_validator("extra_members")
    @classmethod
    def _names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not _ACCOUNT.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an account")
        return names

    @field_validator("user_filter", "user_dn_template", "home_directory")
    @classmethod
    def _templates(cls, text: str | None) -> str | None:
        if text is not None and text.count(_PLACE) != 1:
            raise ValueError("it must hold {username} once")
        return text

    @model_validator(mode="after")
    def _consistent(self) -> LdapSettings:
        if self.gid_last < self.gid_first or self.uid_last < self.uid_first:
            raise ValueError("the last number of a range lies before its first; change gid_last or uid_last")
        remote = [url for url in self.servers if not _is_loopback(url)]
        if self.allow_plain_loopback and remote:
            raise ValueError(
                f"allow_plain_loopback is for servers of this machine only, which {remote[0]} is not; take it out"
            )
        return self

    def plain(self, url: str) -> bool:
        """Whether a server is spoken to without encryption."""
        return self.allow_plain_loopback and url.startswith("ldap://")

    def password(self) -> str:
        """Return the password of the account. :raises ConfigurationError: the file is unreadable or empty."""
        return first_line(self.bind_password_file, "storage.ldap.bind_password_file")[0]


class _StorageSection(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    ldap: LdapSettings | None = None


def of_file(file: str | os.PathLike[str]) -> LdapSettings | None:
    """Return ``[storage.ldap]`` of a settings file, for other services of the site, or ``None``.

    :raises ConfigurationError: unreadable, or a value that cannot be.
    """
    return build(_StorageSection, read(file).get("storage", {}), "storage", file).ldap


def _is_loopback(url: str) -> bool:
    host: Any = urlsplit(url).hostname
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return bool(host == "localhost")
