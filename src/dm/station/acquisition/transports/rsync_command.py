"""How rsync is called: settings, command lines, and what is written where in them.

No name a user chose ever becomes an argument: file names travel NUL-separated on standard input, directories begin
with ``/`` or stand behind a checked host, and ``--secluded-args`` keeps the remote shell from reading any of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dm.common.errors import InvalidArgument
from dm.common.paths import display
from dm.station.acquisition.transports.base import Source, TransferBatch
from dm.station.acquisition.transports.rsync_process import Result, run

_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])")
_SSH_DEFAULTS = ["BatchMode=yes", "ConnectTimeout={0}", "ServerAliveInterval=15", "ServerAliveCountMax=4"]
_SPARE_SECONDS = 30
_PORT = 873


class DaemonSettings(BaseModel):
    """How an rsync daemon on a storage host reaches the staging areas; its traffic is not encrypted.

    :param url: ``rsync://user@host[:port]/module``. :param directory: the directory of that host the module shows.
    :param password_file: file with the daemon password, readable by this account only.
    """

    model_config = ConfigDict(extra="forbid")

    url: str = Field(pattern=r"^rsync://[^/\s]+/[^\s]+$")
    directory: str = Field(pattern=r"^/")
    password_file: Path | None = None


class RsyncSettings(BaseModel):
    """Settings ``[acquisition.transports.rsync]``.

    :param program: rsync here, 3.4.3 or newer. :param remote_program: rsync on the other machines.
    :param ssh: the ssh command with its options, e.g. ``["ssh", "-i", "/home/dm/.ssh/id"]``.
    :param connect_timeout: seconds after which a host that does not answer at all counts as unreachable.
    :param io_timeout: seconds without any data after which a transfer counts as broken.
    :param batch_timeout: seconds after which a batch is given up whatever it does.
    :param workers: files digested at the same time, over all batches.
    :param compress: pack the data on the way; helps on links slower than about 100 MB/s, if the data can be packed.
    :param megabytes_per_second: most that one batch takes of the link; 0 is no limit.
    :param fsync: the receiving rsync flushes every file to disk. Storage does so in any case before a file is
        published, so this is for those who want it twice.
    :param daemons: host -> its rsync daemon; hosts not named are reached over ssh.
    """

    model_config = ConfigDict(extra="forbid")

    program: str = "rsync"
    remote_program: str = Field(default="", pattern=r"^[A-Za-z0-9_./-]*$")
    ssh: list[str] = Field(default=["ssh"], min_length=1)
    connect_timeout: int = Field(default=15, ge=1, le=600)
    io_timeout: int = Field(default=60, ge=1, le=3600)
    batch_timeout: float = Field(default=6 * 3600, gt=0)
    workers: int = Field(default=max(2, min(8, os.cpu_count() or 2)), ge=1, le=64)
    compress: bool = False
    megabytes_per_second: float = Field(default=0, ge=0)
    fsync: bool = False
    daemons: dict[str, DaemonSettings] = {}

    @field_validator("ssh")
    @classmethod
    def _plain(cls, value: list[str]) -> list[str]:
        for word in value:
            if not word or "'" in word or not word.isprintable():
                raise ValueError(f"ssh word {word!r} is empty or has a quote or control character")
        return value

    @property
    def secrets(self) -> list[Path]:
        """The passwords of daemons, the keys that the ssh command names, and those of the account."""
        passwords = [daemon.password_file for daemon in self.daemons.values() if daemon.password_file]
        keys = [Path(key).expanduser() for option, key in pairwise(self.ssh) if option == "-i"]
        own = Path(os.path.expanduser("~")) / ".ssh"
        return [*passwords, *keys, *([own] if own.is_dir() else [])]


class Caller:
    """Builds and runs rsync commands."""

    def __init__(self, settings: RsyncSettings) -> None:
        self.settings = settings
        options = [option.format(settings.connect_timeout) for option in _SSH_DEFAULTS]
        # what stands first counts, so the settings' own words win
        words = [*settings.ssh, *(word for option in options for word in ("-o", option))]
        self._shell = " ".join(f"'{word}'" for word in words)

    def command(self, *arguments: str | bytes) -> list[str | bytes]:
        """Return the whole command line."""
        settings = self.settings
        daemon = any(os.fsencode(argument).startswith(b"rsync://") for argument in arguments)
        # a remote shell beside a daemon URL would mean "start the daemon through the shell"
        reach = [f"--contimeout={settings.connect_timeout}", "--no-motd"] if daemon else [f"--rsh={self._shell}"]
        if settings.remote_program and not daemon:
            reach.append(f"--rsync-path={settings.remote_program}")
        return [settings.program, "--secluded-args", *reach, f"--timeout={settings.io_timeout}", *arguments]

    def short(self, *arguments: str | bytes, names: Sequence[bytes] = ()) -> Result:
        """Run something that ends soon."""
        return run(self.command(*arguments), names=names, limit_seconds=self.settings.io_timeout + _SPARE_SECONDS)

    def move(self, batch: TransferBatch, *arguments: str | bytes, names: Sequence[bytes]) -> Result:
        """Run something that lasts as long as a batch does."""
        settings, options = self.settings, list[str]()
        if settings.compress:
            options.append("-z")
        if settings.megabytes_per_second:
            options.append(f"--bwlimit={max(1, round(settings.megabytes_per_second * 1000))}")
        if settings.fsync:
            options.append("--fsync")
        command = self.command(*options, *arguments)
        return run(command, names=names, limit_seconds=settings.batch_timeout, stop=batch.stop, aborted=batch.aborted)

    def origin(self, source: Source) -> list[str | bytes]:
        """Return the arguments that say where a source is."""
        host = _host(source.host).encode() if source.host is not None else b""
        if source.scheme == "rsync":
            port = f":{source.port}".encode() if source.port else b""
            module = source.root.strip(b"/").partition(b"/")[0]
            if not module:
                raise InvalidArgument(
                    f"Data directory {source.text!r} names no module; write rsync://host/module/directory."
                )
            return [
                *self._password(source.host, source.port or _PORT),
                b"rsync://" + host + port + b"/" + module + b"/",
            ]
        path = source.root.rstrip(b"/") + b"/"
        return [host + b":" + path if host else path]

    @staticmethod
    def names(source: Source, paths: Iterable[bytes]) -> list[bytes]:
        """Return paths as ``--files-from`` wants them; what stands before ``/./`` is not part of the moved name.

        A daemon gets them from the root of its module: asked for names below a directory of the module, rsync 3.5.0
        without chroot lists the files and then reports every one of them as vanished.
        """
        above = source.root.strip(b"/").partition(b"/")[2] + b"/" if source.scheme == "rsync" else b""
        return [above.lstrip(b"/") + b"./" + path for path in paths]

    def target(self, batch: TransferBatch) -> list[str | bytes]:
        """Return the arguments that say where staging is."""
        path = batch.staging_directory.rstrip(b"/") + b"/"
        if batch.staging_host is None:
            return [path]
        daemon = self.settings.daemons.get(batch.staging_host)
        if daemon is None:
            return [_host(batch.staging_host).encode() + b":" + path]
        shown = os.fsencode(daemon.directory.rstrip("/")) + b"/"
        if not path.startswith(shown):
            raise InvalidArgument(
                f"Staging directory {display(path)!r} is not below {daemon.directory!r}, which the rsync daemon "
                f"{daemon.url} shows; correct acquisition.transports.rsync.daemons."
            )
        return [*self._password(batch.staging_host), daemon.url.rstrip("/").encode() + b"/" + path[len(shown) :]]

    def _password(self, host: str | None, port: int | None = None) -> list[str]:
        """Return how a daemon gets its password; one on another port of its host gets nothing."""
        daemon = self.settings.daemons.get((host or "").rpartition("@")[2])
        if daemon is not None and port not in (None, urlsplit(daemon.url).port or _PORT):
            return []
        return [f"--password-file={daemon.password_file}"] if daemon and daemon.password_file else []


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise InvalidArgument(f"Host {text!r} is no host name; write user@host or host.")
    return text
