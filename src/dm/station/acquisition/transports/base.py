"""What a transport is: the way bytes get from a source into the staging area of storage, and nothing more.

A transport never names a file: it writes each one under the ``staged_name`` it was given (plain ASCII), below a
staging directory that the storage service made for this one batch. Names, owners, modes and the verdict belong to
storage. What a transport owes is honesty: evidence that the source did not change while it was read, and digests of
the bytes it read.

Transports are found by the entry point group ``dm.transports`` or as ``module:Class`` in the settings.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from dm.common.digests import VERIFICATION
from dm.common.errors import InvalidArgument
from dm.station.acquisition.transports.rests import Rests

_EARLIEST, _LATEST = -(1 << 62), (1 << 63) - 1  # of times in nanoseconds, years 1823 to 2262


def storable(mtime_ns: int) -> int:
    """Return a time as databases can hold it: anybody may give a file any time, and servers may tell any."""
    return min(max(mtime_ns, _EARLIEST), _LATEST)


class NoSettings(BaseModel):
    """A transport or plugin without settings."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Source:
    """Where files come from.

    :param text: the ``dataDirectory`` exactly as the user wrote it.
    :param root: the directory, absolute, as bytes (on ``host`` when there is one).
    :param host: the machine that has it, ``user@host`` allowed; ``None`` is this machine.
    :param scheme: ``file`` (this machine), ``ssh`` (``@host:/path``), or the scheme of a URL such as ``ftp``.
    :param port: of a URL, where it has one.
    """

    text: str
    root: bytes
    host: str | None = None
    scheme: str = "file"
    port: int | None = None

    @property
    def is_local(self) -> bool:
        """Whether this machine can open the files itself."""
        return self.host is None


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What identifies one state of a source file; two equal stamps mean "not changed in between".

    Fields a transport cannot learn (``ctime_ns`` and ``inode`` of a remote file) are 0 in both stamps.
    """

    size: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Return the stamp of a local file."""
        return cls(status.st_size, storable(status.st_mtime_ns), status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One thing found in a source by :meth:`Transport.walk`.

    :param path: relative to the root, as bytes, without leading or trailing slash.
    :param stamp: size and times when it is a regular file.
    :param kind: ``file``, ``link`` or ``other`` (fifo, socket, device); directories are walked, not reported.
    """

    path: bytes
    stamp: FileStamp
    kind: str = "file"


@dataclass(frozen=True)
class TransferFile:
    """One file to move.

    :param path: relative to the source root, as bytes.
    :param size: bytes, as last seen; a hint only.
    :param mtime_ns: modification time as last seen, nanoseconds since the epoch.
    :param staged_name: the ASCII name to give it directly below the staging directory.
    """

    path: bytes
    size: int
    mtime_ns: int
    staged_name: str


@dataclass(frozen=True)
class TransferBatch:
    """Files that travel together.

    :param batch_id: the storage batch (uuid text), for logs.
    :param source: where they are.
    :param files: in the order they became ready.
    :param staging_directory: absolute bytes path made by storage, flat, writable for this account.
    :param staging_host: the storage machine; ``None`` when the directory is reachable on this machine's file system.
    :param stop: set when the service stops; a transport then gives up soon, reporting the rest as transient failures.
    :param aborted: whether nobody wants the batch any more; a transport that moves for hours ends it then, for good.
    :param checksum: whether MD5 sums are wanted. :param digest: verifies the transfer, beside ``xxh3_128`` when it is
        another. :param moved: told of bytes that were moved, now and then, by any
        thread; for those who watch. A transport that cannot tell says nothing.
    """

    batch_id: str
    source: Source
    files: list[TransferFile]
    staging_directory: bytes
    staging_host: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    aborted: Callable[[], bool] = field(default=lambda: False)
    checksum: bool = True
    digest: str = VERIFICATION
    moved: Callable[[int], None] = field(default=lambda _count: None)


@dataclass
class FileOutcome:
    """What became of one file of a batch.

    :param staged_name: which one.
    :param size: bytes written to staging.
    :param mode: permission bits of the source (``st_mode & 0o7777``), for storage's information.
    :param before: the source's stamp taken before the first byte was read (through the open descriptor where possible).
    :param after: its stamp taken after the last byte.
    :param digests: algorithm -> lower-case hex, at least ``xxh3_128``, of the bytes as read from the source.
    :param md5: hex MD5 from the same read, empty when checksums were not wanted.
    :param error: one sentence when it failed, else empty.
    :param transient: whether trying again may help.
    :param vanished: the source file no longer exists (``error`` says so too).
    :param transport: name of the transport that moved it, filled in where several could.
    """

    staged_name: str
    size: int = 0
    mode: int = 0
    before: FileStamp | None = None
    after: FileStamp | None = None
    digests: dict[str, str] = field(default_factory=dict)
    md5: str = ""
    error: str = ""
    transient: bool = True
    vanished: bool = False
    transport: str = ""

    @property
    def ok(self) -> bool:
        """Whether the bytes in staging are one whole, unmixed state of the source."""
        return not self.error and self.steady

    @property
    def steady(self) -> bool:
        """Whether the source was the same before and after, and all of it was read."""
        return self.before is not None and self.before == self.after and self.size == self.before.size


class Transport(ABC):
    """Base of all transports. One instance serves all DAQs; :meth:`move` runs in several threads at once.

    :param settings: an instance of :attr:`settings_model`.
    """

    name: ClassVar[str]
    settings_model: ClassVar[type[BaseModel]] = NoSettings
    schemes: ClassVar[frozenset[str]] = frozenset({"file"})
    #: whether it can write to a staging directory on another host
    remote_staging: ClassVar[bool] = False

    def __init__(self, settings: BaseModel) -> None:
        self.settings = settings
        #: kept by the choice between transports
        self.rests = Rests()

    @property
    def secrets(self) -> list[Path]:
        """Files and directories of this transport that are never to be read as data: credentials, say."""
        return []

    def serves(self, source: Source, staging_host: str | None) -> bool:
        """Whether this transport can be asked to move from a source to a staging host.

        :param staging_host: ``None``: a directory this machine reaches.
        """
        return source.scheme in self.schemes and (staging_host is None or self.remote_staging)

    def through_host(self, source: Source, staging_host: str) -> bool:
        """Whether it wants to write through services of a staging host even where its directory is reachable here."""
        return False

    def holds(self, batch_id: str) -> bool:
        """Whether something of a batch may still be on its way through this transport, after a failure or a restart:
        then no other may take it."""
        return False

    @abstractmethod
    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        """Copy the files of a batch into its staging directory.

        Links are not followed, a fifo never hangs it, an existing staged file of the same name is replaced. A failing
        file is an outcome with ``error``, never an exception, and never stops the others. An exception means that the
        whole batch could not be tried (host unreachable, staging directory gone); it is retried.

        :returns: one outcome per file, in any order.
        """

    def check(self, source: Source) -> None:
        """Check that a source can be read, before a DAQ or upload is accepted.

        :raises InvalidArgument: missing, no directory, or unreadable; the text names it.
        """
        raise InvalidArgument(f"Transport {self.name!r} cannot check the data directory {source.text!r}.")

    def walk(self, source: Source, below: bytes = b"") -> Iterator[SourceEntry]:
        """List a source this machine cannot open itself (local ones are scanned by the watcher).

        :param below: only this relative sub-directory or file.
        :raises CommunicationError: the host did not answer; the scan is repeated later.
        """
        raise InvalidArgument(f"Transport {self.name!r} cannot list the data directory {source.text!r}.")

    def remove(self, source: Source, path: bytes, stamp: FileStamp) -> bool:
        """Remove one remote source file if it still has this stamp (``removeSourceFiles``); local files are removed by
        the service itself.

        :returns: whether it was removed.
        """
        return False

    def forget(self, batch_id: str) -> None:  # noqa: B027 - most transports keep nothing
        """Drop what is kept for a batch over restarts, and end what still runs for it elsewhere.

        Called when storage has taken over the files of the batch, or when the batch is given up; a batch that is not
        known is fine.

        :raises DmException: what runs elsewhere cannot be ended now; it ends by its own limits.
        """

    def close(self) -> None:  # noqa: B027 - most transports hold nothing
        """Release what the transport holds."""
