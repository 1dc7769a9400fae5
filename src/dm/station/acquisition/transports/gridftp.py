"""The transport through GridFTP servers: globus-url-copy with a list of files and several connections per batch.

It sends local files to the servers of a storage host, and fetches from ``gsiftp://`` and ``ftp://`` data directories,
into a staging directory here or straight to the servers of the storage host. Names and digests: see
:mod:`.gridftp_push` and :mod:`.gridftp_pull`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from dm.common.errors import CommunicationError, InvalidArgument
from dm.station.acquisition.transports.base import (
    FileOutcome,
    FileStamp,
    Source,
    SourceEntry,
    TransferBatch,
    Transport,
)
from dm.station.acquisition.transports.gridftp_control import Control, Fact, speakable
from dm.station.acquisition.transports.gridftp_copy import Connections, place
from dm.station.acquisition.transports.gridftp_credentials import Credentials
from dm.station.acquisition.transports.gridftp_fleet import Fleet
from dm.station.acquisition.transports.gridftp_pull import pull
from dm.station.acquisition.transports.gridftp_push import Tools, push
from dm.station.acquisition.transports.gridftp_settings import SCHEMES, GridFtpSettings
from dm.station.acquisition.transports.local import check_directory, require_root


class GridFtp(Transport):
    """Moves with globus-url-copy."""

    name = "gridftp"
    settings_model = GridFtpSettings
    schemes = frozenset({"file", *SCHEMES})
    remote_staging = True

    def __init__(self, settings: BaseModel) -> None:
        super().__init__(settings)
        assert isinstance(settings, GridFtpSettings)
        self._settings = settings
        self._credentials = Credentials(settings)
        self._fleet = Fleet(settings, self._credentials)
        self._workers = ThreadPoolExecutor(settings.workers, "digest")
        self._tools = Tools(settings, self._credentials, self._fleet, Connections(settings.concurrency), self._workers)

    def close(self) -> None:
        """Hang up, and remove fetched credentials."""
        self._workers.shutdown()
        self._fleet.close()
        self._credentials.close()

    @property
    def secrets(self) -> list[Path]:
        """The credential files."""
        own = self._settings
        fetched = (own.myproxy.password_file, self._credentials.directory) if own.myproxy else ()
        return [file for file in (own.proxy, own.key, *fetched) if file is not None]

    def serves(self, source: Source, staging_host: str | None) -> bool:
        """Whether the settings name servers of the staging host; see :meth:`Transport.serves`."""
        return super().serves(source, staging_host) and (staging_host is None or staging_host in self._settings.servers)

    def through_host(self, source: Source, staging_host: str) -> bool:
        """Whether the settings name servers of the staging host; see :meth:`Transport.through_host`.

        What comes from other servers is fetched directly where that is possible: then it can be digested here.
        """
        return source.is_local and staging_host in self._settings.servers

    # --- the source -----------------------------------------------------------------------------------------
    def check(self, source: Source) -> None:
        """Check that the data directory exists and can be listed; see :meth:`Transport.check`.

        :raises CommunicationError: no server of it answers.
        """
        if source.is_local:
            check_directory(source)
            return
        what = f"Data directory {source.text!r}"
        there = self._there(source, b"")
        with self._control(source) as control:
            if not speakable(there, control.server.secure):
                raise InvalidArgument(
                    f"{what} holds characters that a GridFTP server takes with GSI only; use gsiftp:// or rsync."
                )
            fact = control.status([there])[0]
        if fact is None:
            raise InvalidArgument(f"{what} does not exist.")
        if fact.kind not in ("directory", "link"):
            raise InvalidArgument(f"{what} is not a directory.")
        if not fact.listable:
            raise InvalidArgument(f"{what} cannot be read: its server does not allow to list it.")

    def walk(self, source: Source, below: bytes = b"") -> Iterator[SourceEntry]:
        """List a remote source; see :meth:`Transport.walk`. Most servers tell times in whole seconds.

        A directory whose name cannot be said to the server is reported as if it were a file, so that somebody hears of
        it when it is moved.

        :raises CommunicationError: a server did not answer, or a directory could not be read.
        """
        with self._control(source) as control:
            if below:
                fact = control.status([self._there(source, below)])[0]
                if fact is None:
                    return
                if fact.kind != "directory":
                    yield SourceEntry(below, fact.stamp, fact.kind)
                    return
            waiting = [below]
            while waiting:
                directory = waiting.pop()
                for fact in self._listing(control, source, directory):
                    path = directory + b"/" + fact.name if directory else fact.name
                    if fact.kind != "directory":
                        yield SourceEntry(path, fact.stamp, fact.kind)
                    elif speakable(self._there(source, path), control.server.secure):
                        waiting.append(path)
                    else:
                        yield SourceEntry(path, fact.stamp)

    def remove(self, source: Source, path: bytes, stamp: FileStamp) -> bool:
        """Remove a remote source file that is unchanged; see :meth:`Transport.remove`.

        GridFTP has no "remove if unchanged": between the look and the removal lies one round trip.
        """
        there = self._there(source, path)
        with self._control(source) as control:
            fact = control.status([there])[0]
            known = fact is not None and fact.kind == "file" and _same(fact.stamp, stamp)
            return known and control.remove(there)

    def _listing(self, control: Control, source: Source, directory: bytes) -> list[Fact]:
        there = self._there(source, directory)
        try:
            return control.listing(there)
        except InvalidArgument as error:
            # emptied or removed while it was walked: not there any more
            if directory and control.status([there])[0] is None:
                return []
            raise CommunicationError(f"Data directory {source.text!r} was not listed whole: {error.message}") from error

    # --- moving ---------------------------------------------------------------------------------------------
    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        """Move a batch; see :meth:`Transport.move`."""
        if not batch.source.is_local:
            return pull(self._tools, batch)
        require_root(batch.source)
        return push(self._tools, batch)

    # --- names ----------------------------------------------------------------------------------------------
    def _there(self, source: Source, path: bytes) -> bytes:
        """Return a path of the source as its servers call it."""
        whole = source.root.rstrip(b"/") + b"/" + path if path else source.root
        return place(self._fleet.of_source(source), whole, f"Data directory {source.text!r}")

    @contextmanager
    def _control(self, source: Source) -> Iterator[Control]:
        """Lend a connection to a server that shows the source.

        :raises CommunicationError: none answers.
        """
        servers = self._fleet.of_source(source).servers
        with self._fleet.control(self._fleet.first(servers)) as control:
            yield control


def _same(fact: FileStamp, known: FileStamp) -> bool:
    """Whether two stamps are of one state; an inode counts where both have one."""
    inodes = {fact.inode, known.inode} - {0}
    return (fact.size, fact.mtime_ns) == (known.size, known.mtime_ns) and len(inodes) < 2
