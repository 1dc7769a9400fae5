"""Settings of the GridFTP transport: its servers, how this account proves itself to them, and its limits."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]")
PORT = 2811
SCHEMES = ("gsiftp", "ftp")


class Server(BaseModel):
    """The address of one GridFTP server, as ``gsiftp://host[:port]`` or ``ftp://host[:port]``."""

    model_config = ConfigDict(frozen=True)

    scheme: str
    host: str
    port: int

    @property
    def secure(self) -> bool:
        """Whether both sides prove who they are (GSI); otherwise the login is anonymous and in the clear."""
        return self.scheme == "gsiftp"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def server(url: str) -> Server:
    """Read the address of a server.

    :raises ValueError: it is none; the text says why.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"server {url!r} begins neither with gsiftp:// nor with ftp://")
    if parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"server {url!r} is more than scheme, host and port")
    place = parts.netloc.rpartition(":")[0] if parts.port else parts.netloc.rstrip(":")
    if not _HOST.fullmatch(place):
        raise ValueError(f"server {url!r} names no host")
    return Server(scheme=parts.scheme, host=place, port=parts.port or PORT)


class ServersSettings(BaseModel):
    """The GridFTP servers of one machine or cluster; all of them show the same files.

    :param urls: ``gsiftp://host[:port]`` (GSI) or ``ftp://host[:port]`` (anonymous, not encrypted), used in turn.
    :param directory: the directory that the servers show as ``/``, where they show only a part of their disk.
    """

    model_config = ConfigDict(extra="forbid")

    urls: list[str] = Field(min_length=1)
    directory: str = Field(default="/", pattern=r"^/")

    @field_validator("urls")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        if len({server(url).scheme for url in value}) > 1:
            raise ValueError("some servers are gsiftp:// and some ftp://; all of one machine must be the same")
        return value

    @property
    def servers(self) -> list[Server]:
        """The addresses."""
        return [server(url) for url in self.urls]


class MyProxySettings(BaseModel):
    """Where to fetch a short-lived credential.

    :param server: host of the MyProxy server. :param port: its port. :param user: the name the credential is kept
        under there. :param password_file: holds the pass phrase, readable by this account only.
    :param hours: life of a fetched credential; it is renewed when a third of it is left.
    :param program: of the package ``myproxy``.
    """

    model_config = ConfigDict(extra="forbid")

    server: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    port: int = Field(default=7512, ge=1, le=65535)
    user: str = Field(pattern=r"^[A-Za-z0-9_@.][A-Za-z0-9_@. -]*$")
    password_file: Path
    hours: int = Field(default=12, ge=1, le=720)
    program: str = "myproxy-logon"


class GridFtpSettings(BaseModel):
    """Settings ``[acquisition.transports.gridftp]``.

    :param servers: storage host -> its GridFTP servers; needed for every storage host that files are sent to.
    :param sources: host of a ``gsiftp://`` or ``ftp://`` data directory -> the servers that show it, where there are
        several; a host not named is its own server.
    :param proxy: file with a proxy credential that something else renews. :param certificate: host or service
        certificate. :param key: its key, without pass phrase. :param myproxy: a credential from a MyProxy server.
        At most one of the three; ``gsiftp`` servers need one.
    :param certificates: directory of trusted certificate authorities, as ``/etc/grid-security/certificates``.
    :param program: of the package ``globus-gass-copy-progs``.
    :param concurrency: connections (``-cc``) of a batch, over all servers that answer; batches that are on their way
        at the same time share them, with at least two each.
    :param parallel: streams per file (``-p``); 0 is the program's own choice, more help over long distances.
    :param tcp_buffer: bytes (``-tcp-bs``); 0 is the system's own choice. :param pipelining: ``-pp`` where both ends
        are servers. :param restarts: how often a broken transfer of a large file goes on where it stopped.
    :param data_channel: ``authenticated``, ``safe`` (against changes) or ``private`` (encrypted); with anonymous
        servers it is always in the clear.
    :param source_digests: ask the servers of remote sources for digests, which makes them read each file once more.
    :param connect_timeout: seconds for a connection and a login. :param io_timeout: seconds without any data after
        which a transfer counts as broken. :param batch_timeout: seconds after which a batch is given up.
    :param rest_seconds: a server that did not answer is left out for so long.
    :param workers: files digested at the same time, over all batches.
    """

    model_config = ConfigDict(extra="forbid")

    servers: dict[str, ServersSettings] = {}
    sources: dict[str, ServersSettings] = {}
    proxy: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    myproxy: MyProxySettings | None = None
    certificates: Path = Path("/etc/grid-security/certificates")
    program: str = "globus-url-copy"
    concurrency: int = Field(default=4, ge=1, le=64)
    parallel: int = Field(default=0, ge=0, le=64)
    tcp_buffer: int = Field(default=0, ge=0)
    pipelining: bool = True
    restarts: int = Field(default=2, ge=0, le=20)
    data_channel: Literal["authenticated", "safe", "private"] = "authenticated"
    source_digests: bool = True
    connect_timeout: float = Field(default=10, gt=0, le=300)
    io_timeout: int = Field(default=60, ge=1, le=3600)
    batch_timeout: float = Field(default=6 * 3600, gt=0)
    rest_seconds: float = Field(default=30, gt=0)
    workers: int = Field(default=max(2, min(8, os.cpu_count() or 2)), ge=1, le=64)

    @model_validator(mode="after")
    def _one_credential(self) -> GridFtpSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together; give both or none")
        if sum(value is not None for value in (self.proxy, self.certificate, self.myproxy)) > 1:
            raise ValueError("proxy, certificate and myproxy exclude each other; give one")
        secure = any(one.secure for shown in (*self.servers.values(), *self.sources.values()) for one in shown.servers)
        if secure and not self.has_credential:
            raise ValueError("gsiftp servers need a credential; give proxy, certificate and key, or myproxy")
        return self

    @property
    def has_credential(self) -> bool:
        """Whether this account can prove itself to ``gsiftp`` servers."""
        return any(value is not None for value in (self.proxy, self.certificate, self.myproxy))
