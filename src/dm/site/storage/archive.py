"""A whole experiment as one download: an uncompressed tar whose bytes follow from the list of published files.

Nothing is written anywhere: the layout is computed, the headers are made when they are read. The same files give the
same bytes, so that an interrupted download can be resumed by range.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache
from sqlalchemy import Connection, RowMapping

from dm.common import paths
from dm.common.errors import ServiceLimit, TransferError
from dm.common.web.routes import Principal, Stream
from dm.site.database.store import Store
from dm.site.storage import file_store
from dm.site.storage.experiments import Reference, find_visible
from dm.site.storage.files import checked_root, read_open

_BLOCK = 512
_END = 2 * _BLOCK
MAX_FILES = 500_000


@dataclass(frozen=True)
class Member:
    """A file in the archive. :param header: size of its header in bytes."""

    root: str
    path: bytes
    size: int
    mtime_ns: int
    header: int

    @property
    def span(self) -> int:
        """Bytes taken in the archive: header, contents, padding."""
        return self.header + self.size + -self.size % _BLOCK


class Layout:
    """Where everything lies in the archive of one experiment.

    :param top: name of the directory that holds everything in the archive.
    """

    def __init__(self, top: str, directory: str, members: list[Member]) -> None:
        self._top = top
        self._directory = directory
        self._members = members
        self._starts: list[int] = []
        position = 0
        for member in members:
            self._starts.append(position)
            position += member.span
        self.length = position + _END

    def read(self, first: int, length: int) -> Iterator[bytes]:
        """Yield exactly that range of the archive. :raises TransferError: a file is no longer what was published."""
        index = max(bisect.bisect_right(self._starts, first) - 1, 0)
        end = first + length
        while first < end and index < len(self._members):
            member, start = self._members[index], self._starts[index]
            for chunk in self._member(member, first - start, min(end - start, member.span)):
                first += len(chunk)
                yield chunk
            index += 1
        if first < end:
            yield bytes(end - first)

    def _member(self, member: Member, first: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``first`` to ``end`` of a member, counted from its header."""
        if first < member.header:
            header = make_header(self._top, member.root, member.path, member.size, member.mtime_ns)
            yield header[first : min(end, member.header)]
        begin, stop = max(first - member.header, 0), min(end - member.header, member.size)
        if begin < stop:
            with paths.opened_file(f"{self._directory}/{member.root}", member.path) as descriptor:
                status = os.fstat(descriptor)
                if (status.st_size, status.st_mtime_ns) != (member.size, member.mtime_ns):
                    raise TransferError(
                        f"File {paths.display(member.path)!a} is not what was published; download it alone."
                    )
                yield from read_open(descriptor, member.path, begin, stop - begin)
        padding = end - max(first, member.header + member.size)
        if padding > 0:
            yield bytes(padding)


def make_header(top: str, root: str, path: bytes, size: int, mtime_ns: int) -> bytes:
    """Return a member's tar header (POSIX pax, so that any name and size fits; times in whole seconds)."""
    info = tarfile.TarInfo(paths.decode(os.fsencode(top) + b"/" + root.encode() + b"/" + path))
    info.size = size
    info.mtime = max(mtime_ns // 1_000_000_000, 0)
    info.mode = 0o640
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class Archives:
    """The use case; layouts of the archives asked for last are kept for resumed downloads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layouts: LRUCache[str, Layout] = LRUCache(4)
        self._lock = threading.Lock()

    def download(self, principal: Principal, reference: Reference, root: str | None = None) -> Stream:
        """Return the published files of an experiment as a tar.

        :param root: only ``data`` or ``analysis``. :raises ServiceLimit: more than 500,000 files.
        """
        checked_root(root)
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
            etag, modified = self._etag(connection, experiment, root)
            with self._lock:
                layout = self._layouts.get(etag)
            if layout is None:
                layout = Layout(
                    experiment["name"],
                    experiment["storage_directory"],
                    self._members(connection, experiment, root),
                )
                with self._lock:
                    self._layouts[etag] = layout
        return Stream(
            read=layout.read,
            length=layout.length,
            filename=f"{experiment['name']}.tar",
            etag=etag,
            modified=modified,
            content_type="application/x-tar",
        )

    @staticmethod
    def _etag(connection: Connection, experiment: RowMapping, root: str | None) -> tuple[str, float | None]:
        """Return a text that changes whenever a file is published, and when that last happened."""
        state: Any = file_store.fingerprint(connection, experiment["id"], root)
        text = f"{experiment['id']}:{experiment['name']}:{root}:{':'.join(str(part) for part in state)}"
        modified = state[1].timestamp() if state[1] is not None else None
        return hashlib.sha256(text.encode()).hexdigest()[:32], modified

    @staticmethod
    def _members(connection: Connection, experiment: RowMapping, root: str | None) -> list[Member]:
        members: list[Member] = []
        for row in file_store.in_path_order(connection, experiment["id"], root):
            if len(members) == MAX_FILES:
                raise ServiceLimit(
                    f"Experiment {experiment['name']!a} has more than {MAX_FILES} files; download them one by one."
                )
            path = bytes(row.path)
            header = len(make_header(experiment["name"], row.root, path, row.size, row.mtime_ns))
            members.append(Member(row.root, path, row.size, row.mtime_ns, header))
        return members
