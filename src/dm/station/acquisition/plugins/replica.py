"""Plugin ``replica``: a second copy of every stored file, e.g. on an HPC cluster, proven and then cataloged.

rsync carries the files, to a directory of this machine, over ssh or to an rsync daemon, each under a temporary name
that it renames at the end. It never resolves a name a user chose on this side: files are opened and digested by us and
offered as links to the open descriptors. What left here has the digest that storage verified; then both sides are
compared by whole-file checksum, which reads the copy back. Only after that the catalog hears of it.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dm.common.digests import ALGORITHMS, digest_stream
from dm.common.errors import TransferError
from dm.common.paths import display, encode, opened_parent
from dm.station.acquisition.plugins import catalog
from dm.station.acquisition.plugins.base import Plugin, PluginBatch, PluginContext, PluginFile
from dm.station.acquisition.transports.base import Source, TransferBatch
from dm.station.acquisition.transports.rsync_command import Caller, RsyncSettings
from dm.station.acquisition.transports.rsync_process import Result, require_version
from dm.station.catalog.api import CatalogServiceApi

_OPEN_FILES = 256
_ITEMIZED = 12  # characters of rsync's %i and a blank
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_REMOTE = re.compile(r"@((?:[^:/@\s]+@)?(?:[^:/@\[\]\s]+|\[[0-9A-Fa-f:.]+\])):(/.*)")


class ReplicaSettings(BaseModel):
    """Settings ``[acquisition.plugins.replica]``.

    :param destination: an existing directory: absolute on this machine, or ``@host:/path`` (``@user@host:/path``).
        Files go to ``<experiment>/<root>/<path>`` below it.
    :param url: what stands before that in the catalog's record; empty: ``file://<this machine>/...`` or ``ssh://...``.
    :param file_mode: :param directory_mode: octal permissions of what is made there.
    :param fsync: have the other side flush each file; needs rsync 3.2.4 there.
    :param record: tell the catalog. :param catalog_url: of it; empty: ``DM_CAT_WEB_SERVICE_URL``.
    :param rsync: as ``[acquisition.transports.rsync]``: ssh command, rsync daemons, time-outs.
    """

    model_config = ConfigDict(extra="forbid")

    destination: str
    url: str = Field(default="", pattern=r"^([a-z][a-z0-9+.-]*://\S+)?$")
    file_mode: str = Field(default="640", pattern=r"^[0-7]{3}$")
    directory_mode: str = Field(default="750", pattern=r"^[0-7]{3}$")
    fsync: bool = True
    record: bool = True
    catalog_url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    rsync: RsyncSettings = RsyncSettings()

    @field_validator("destination")
    @classmethod
    def _place(cls, value: str) -> str:
        if not value.startswith("/") and not _REMOTE.fullmatch(value):
            raise ValueError(f"{value!r} is neither an absolute directory nor @host:/path")
        return value


@dataclass
class Opened:
    """A file whose bytes here are those storage verified.

    :param name: below the destination. :param before: its status when it was digested.
    """

    file: PluginFile
    name: bytes
    descriptor: int
    before: os.stat_result

    @property
    def steady(self) -> bool:
        """Whether nobody touched it since."""
        now = os.fstat(self.descriptor)
        kept = ("st_size", "st_mtime_ns", "st_ctime_ns")
        return all(getattr(now, key) == getattr(self.before, key) for key in kept)


class Replica(Plugin):
    """Copies files to a second place, whatever becomes of other plugins, as often as it takes."""

    name = "replica"
    summary = "Copies each stored file to a second place, proves it and records it in the catalog."
    settings_model = ReplicaSettings

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        super().__init__(settings, context)
        assert isinstance(settings, ReplicaSettings)
        require_version(settings.rsync.program)
        self._given = settings
        remote = _REMOTE.fullmatch(settings.destination)
        self._host: str | None = remote[1] if remote else None
        self._directory = encode(remote[2] if remote else settings.destination).rstrip(b"/") or b"/"
        self._caller = Caller(settings.rsync)
        self.secrets = tuple(settings.rsync.secrets)
        self._catalog = context.client(CatalogServiceApi, settings.catalog_url, 120) if settings.record else None

    def process(self, batch: PluginBatch) -> None:
        """Copy what is not there yet, compare all of it, and tell the catalog.

        :raises CommunicationError: :raises TransferError: the other side cannot be reached; all is tried again.
        """
        if self._host is None and not os.path.isdir(self._directory):
            raise TransferError(
                f"Directory {display(self._directory)!r} for replicas does not exist; mount or make it."
            )
        done: list[PluginFile] = []
        for first in range(0, len(batch.files), _OPEN_FILES):
            done += self._copy(batch, batch.files[first : first + _OPEN_FILES])
        if self._catalog is None or batch.daq.get("skipCatalog") or not done:
            return
        answer = self._catalog.upsertFiles([catalog.record(batch, file, [self._place(batch, file)]) for file in done])
        for problem in answer["errors"]:
            done[int(problem["index"])].fail(f"The catalog refuses its replica: {problem['errorMessage']}")

    def close(self) -> None:
        """Close the connections."""
        if self._catalog is not None:
            self._catalog.close()

    # --- copying ----------------------------------------------------------------------------------------------------
    def _copy(self, batch: PluginBatch, files: Sequence[PluginFile]) -> list[PluginFile]:
        """Copy some files and return those that are there, proven; the others are failed."""
        with ExitStack() as stack:
            opened = list(self._opened(stack, batch, files))
            farm = stack.enter_context(_Farm())
            for one in opened:
                farm.offer(one)
            waiting, said = opened, Result(0, [], [])
            for again in ([], ["--ignore-times"]):  # the second time, what looks the same but is not
                if not waiting:
                    break
                said = self._send(farm, waiting, again)
                proven = self._proven(farm, waiting)
                waiting = [one for one in waiting if one.name not in proven]
            for one in waiting:
                why = said.complaint(one.name) or (said.sentence() if said.code else "the copy differs from the file")
                one.file.fail(f"No replica on {self._host or 'this machine'}: {why}", transient=_may_pass(why))
            there = [one for one in opened if one not in waiting]
            for one in there:
                if not one.steady:
                    one.file.fail(f"File {display(one.file.path)!r} changed while it was copied.", transient=True)
            return [one.file for one in there if not one.file.error]

    def _opened(self, stack: ExitStack, batch: PluginBatch, files: Sequence[PluginFile]) -> Iterator[Opened]:
        """Open and digest files, at the source while they are there as they were, else in storage."""
        prefix = encode(str(batch.experiment["name"])) + b"/" + encode(batch.root) + b"/"
        for file in files:
            places = [file.source_path, file.storage_path] if file.source_host is None else [file.storage_path]
            for place in places:
                descriptor = _open(place)
                if descriptor is None:
                    continue
                if _is(descriptor, file):
                    stack.callback(os.close, descriptor)
                    yield Opened(file, prefix + file.path, descriptor, os.fstat(descriptor))
                    break
                os.close(descriptor)
            else:
                file.fail(
                    f"File {display(file.path)!r} cannot be read here as it was stored; mount the storage, or wait "
                    "until its newer version is stored.",
                    transient=True,
                )

    def _send(self, farm: _Farm, files: Sequence[Opened], more: Sequence[str]) -> Result:
        given = self._given
        modes = f"--chmod=D{given.directory_mode},F{given.file_mode}"
        options = ["-LptOW8", "--modify-window=-1", modes, *(["--fsync"] if given.fsync else []), *more]
        result = self._run(farm, options, files)
        if result.code and not result.partial:
            raise result.failure(f"The replica destination {given.destination!r}")
        return result

    def _proven(self, farm: _Farm, files: Sequence[Opened]) -> set[bytes]:
        """Return the names whose bytes there are those here, reading both.

        rsync has to say so of each (``.f`` and the name: a file that needs no change): that it does not complain, or
        would not send it again, is no proof.
        """
        result = self._run(farm, ["-LOWcn8", "-ii", "--out-format=%i %n"], files)
        if result.code and not result.partial:
            raise result.failure(f"The replica destination {self._given.destination!r}")
        return {line[_ITEMIZED:] for line in result.lines if line.startswith(b".f")}

    def _run(self, farm: _Farm, options: Sequence[str], files: Sequence[Opened]) -> Result:
        source = Source(display(farm.directory), farm.directory)
        transfer = TransferBatch("replica", source, [], self._directory, self._host, self.context.stop)
        places = ["--files-from=-", "--from0", farm.directory + b"/", *self._caller.target(transfer)]
        return self._caller.move(transfer, *options, *places, names=[one.name for one in files])

    # --- the record -------------------------------------------------------------------------------------------------
    def _place(self, batch: PluginBatch, file: PluginFile) -> dict[str, Any]:
        """Return the entry of the catalog's replica list."""
        below = f"{quote(str(batch.experiment['name']))}/{batch.root}/{quote(file.path)}"
        return {
            "type": "replica",
            "name": self.name,
            "url": f"{self._url()}/{below}",
            "host": (self._host or socket.gethostname()).rpartition("@")[2],
        }

    def _url(self) -> str:
        if self._given.url:
            return self._given.url.rstrip("/")
        scheme, host = ("file", socket.gethostname()) if self._host is None else ("ssh", self._host)
        return f"{scheme}://{host}{quote(self._directory)}".rstrip("/")


class _Farm:
    """A private directory in which open files stand as links under the names they are to get."""

    def __init__(self) -> None:
        self.directory = b""

    def __enter__(self) -> _Farm:
        self.directory = os.fsencode(tempfile.mkdtemp(prefix="dm-replica-"))
        return self

    def __exit__(self, *ignored: object) -> None:
        # rm, because a path may be 2,000 directories deep
        subprocess.run(["rm", "-rf", "--", self.directory], check=False, stdin=subprocess.DEVNULL)

    def offer(self, one: Opened) -> None:
        """Show an open file under its name."""
        with opened_parent(self.directory, one.name, create_mode=0o700) as (parent, name):
            os.symlink(f"/proc/{os.getpid()}/fd/{one.descriptor}", name, dir_fd=parent)


def _open(path: bytes) -> int | None:
    try:
        descriptor = os.open(path, _OPEN)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _is(descriptor: int, file: PluginFile) -> bool:
    """Whether an open file holds what storage verified, by its digest."""
    status = os.fstat(descriptor)
    if status.st_size != file.size:
        return False
    wanted = {name: value for name, value in file.digests.items() if name in ALGORITHMS}
    if not wanted:  # checksums were not wanted: then it is the same as long as it was not written
        return status.st_mtime_ns == file.mtime_ns
    with open(descriptor, "rb", buffering=0, closefd=False) as stream:
        stream.seek(0)
        size, found = digest_stream(stream, wanted)
    return size == file.size and found == wanted


def _may_pass(reason: str) -> bool:
    """Whether trying again may help: a name that is too long there stays too long."""
    return "File name too long" not in reason
