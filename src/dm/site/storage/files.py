"""Files in storage: what is there, whether it is verified, and its bytes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping

from dm.common import digests, paths, timestamps
from dm.common.errors import (
    DmException,
    InvalidArgument,
    InvalidObjectState,
    ObjectNotFound,
    ServiceLimit,
    TransferError,
)
from dm.common.web.routes import Principal, Stream
from dm.site.database.store import Store
from dm.site.storage import file_store
from dm.site.storage.directories import ROOTS
from dm.site.storage.experiments import Reference, find_visible
from dm.site.storage.verification import digest

COMPRESSIONS = ("gz", "bz2", "xz", "zst", "lz4")
MAX_PAGE = 10_000
MAX_CHECK = 1_000
READERS = 4  # callers that have files read again at the same time, each for as long as that takes
CHUNK = 1 << 18


@dataclass(frozen=True)
class Found:
    """A file that is there.

    :param row: what was published under this path, if anything was. :param status: of the file on disk.
    """

    experiment: RowMapping
    root: str
    path: bytes
    status: os.stat_result
    row: RowMapping | None

    @property
    def directory(self) -> str:
        """The root's directory."""
        return f"{self.experiment['storage_directory']}/{self.root}"

    @property
    def verified(self) -> bool:
        """Whether the file on disk is still what was published and verified."""
        return (
            self.row is not None
            and self.row["damaged"] is None
            and (self.status.st_size, self.status.st_mtime_ns) == (self.row["size"], self.row["mtime_ns"])
        )


class Files:
    """The use cases of members."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.readers = threading.BoundedSemaphore(READERS)

    def stat(  # noqa: PLR0917
        self,
        principal: Principal,
        reference: Reference,
        path: str,
        root: str | None = None,
        compression: str = "",
        retrieve_md5: bool = False,
    ) -> dict[str, Any]:
        """Return the record of one file.

        :param path: below ``root``. :param root: ``data`` or ``analysis``; default: data, else analysis.
        :param compression: name of an algorithm (``gz``): ask for the compressed file, whose name has that suffix.
        :param retrieve_md5: compute the md5 if it is not known.
        :returns: see :func:`file_record`. :raises ObjectNotFound: no such file or experiment.
        """
        suffix = _compression(compression)
        if suffix and not path.endswith(f".{suffix}"):
            path = f"{path}.{suffix}"
        found = self._find(principal, reference, path, root)
        md5 = found.row["md5"] if found.row is not None and found.verified else None
        if retrieve_md5 and md5 is None:
            md5 = self._compute_md5(found)
        return file_record(found, bytes(md5).hex() if md5 is not None else None, suffix)

    def _compute_md5(self, found: Found) -> bytes:
        with paths.opened_file(found.directory, found.path) as descriptor:
            before = os.fstat(descriptor)
            value = bytes.fromhex(digest(descriptor, {"md5"})[1]["md5"])
            after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InvalidObjectState(f"File {paths.display(found.path)!a} is being written; ask again later.")
        if found.row is not None and found.verified:
            with self._store.transaction() as connection:
                file_store.note_md5(connection, found.row, value)
        return value

    def check(
        self, principal: Principal, reference: Reference, root: str, wanted: list[str], read_again: bool = False
    ) -> dict[str, Any]:
        """Say of many files whether they are on disk as they were verified, e.g. before their sources are removed.

        :param wanted: paths below ``root``, at most 1,000. :param read_again: read and digest each file that looks as
            it was verified; otherwise its size and time are compared.
        :returns: ``{"files": [...]}``, in the same order: ``experimentFilePath``, ``verified``, and of verified files
            ``fileSize``, ``version`` and ``digests``, of others ``reason``.
        :raises ObjectNotFound: no such experiment. :raises InvalidArgument: too many paths, or one that cannot be.
        :raises ServiceLimit: so many have files read again that others could not be served.
        """
        if read_again:
            if not self.readers.acquire(blocking=False):
                raise ServiceLimit(
                    f"Files are read again for {READERS} callers already; ask later, or only look at them."
                )
            try:
                return self._check(principal, reference, root, wanted, read_again)
            finally:
                self.readers.release()
        return self._check(principal, reference, root, wanted, read_again)

    def _check(
        self, principal: Principal, reference: Reference, root: str, wanted: list[str], read_again: bool
    ) -> dict[str, Any]:
        if len(wanted) > MAX_CHECK:
            raise InvalidArgument(f"{len(wanted)} paths are more than {MAX_CHECK}; ask in parts.")
        relative = [paths.relative(path) for path in wanted]
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
            rows = file_store.by_paths(connection, experiment["id"], checked_root(root), relative)
        directory = f"{experiment['storage_directory']}/{root}"
        found = {path: _checked(directory, path, rows.get(path), read_again) for path in dict.fromkeys(relative)}
        return {"files": [found[path] for path in relative]}

    def download(self, principal: Principal, reference: Reference, path: str, root: str | None = None) -> Stream:
        """Return one file's bytes, verified or not (see its record). :raises ObjectNotFound: no such file."""
        found = self._find(principal, reference, path, root)
        status = found.status
        if found.row is not None and found.verified:
            etag = f"{bytes(found.row['digest']).hex()}-{found.row['version']}"
        else:
            identity = f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
            etag = hashlib.sha256(identity.encode()).hexdigest()[:32]
        return Stream(
            read=lambda first, length: read_range(found.directory, found.path, status, first, length),
            length=status.st_size,
            filename=paths.decode(found.path.rpartition(b"/")[2]),
            etag=etag,
            modified=status.st_mtime,
        )

    def page(
        self, principal: Principal, reference: Reference, root: str | None = None, after: int = 0, limit: int = 1000
    ) -> dict[str, Any]:
        """Return a page of published files, in order of first publication.

        :param after: ``nextAfter`` of the page before. :param limit: 1 to 10,000 files.
        :returns: ``files`` (records without a look at the disk), ``nextAfter`` (``None`` at the end), ``countFiles``
            and ``countBytes`` of the whole experiment.
        """
        checked_root(root)
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidArgument(f"Limit {limit} is outside 1 to {MAX_PAGE}.")
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
            rows = file_store.page(connection, experiment["id"], root, max(after, 0), limit)
            count, size = file_store.totals(connection, experiment["id"])
        files = [row_record(row, experiment["name"]) for row in rows]
        following = rows[-1]["id"] if len(rows) == limit else None
        return {"files": files, "nextAfter": following, "countFiles": count, "countBytes": size}

    def _find(self, principal: Principal, reference: Reference, path: str, root: str | None) -> Found:
        relative = paths.relative(path)
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
            for candidate in (checked_root(root),) if root else ROOTS:
                row = file_store.one(connection, experiment["id"], candidate, relative)
                status = _status(f"{experiment['storage_directory']}/{candidate}", relative)
                if status is not None:
                    return Found(experiment, candidate, relative, status, row)
        raise ObjectNotFound(
            f"File {paths.display(relative)[:300]!a} does not exist in experiment {experiment['name']!a}."
        )


def _status(directory: str, path: bytes) -> os.stat_result | None:
    """Return the status of a plain file beneath a directory, or ``None``.

    :raises InvalidArgument: a link on the way, or no plain file.
    """
    try:
        with paths.opened_file(directory, path) as descriptor:
            return os.fstat(descriptor)
    except (ObjectNotFound, FileNotFoundError):
        return None


def _checked(directory: str, path: bytes, row: RowMapping | None, read_again: bool) -> dict[str, Any]:
    """Return what :meth:`Files.check` says of one file."""
    told: dict[str, Any] = {"experimentFilePath": paths.decode(path), "verified": False}
    if row is None:
        return told | {"reason": "It was never published here."}
    known = bytes(row["digest"]).hex()
    try:
        with paths.opened_file(directory, path) as descriptor:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (row["size"], row["mtime_ns"]):
                return told | {"reason": "The file in storage is no longer the one that was verified."}
            if row["damaged"] is not None and not read_again:
                return told | {"reason": "An inspection found the file in storage damaged; send it again."}
            if read_again:
                size, found = digest(descriptor, {digests.VERIFICATION})
                if (size, found[digests.VERIFICATION]) != (row["size"], known):
                    return told | {"reason": "Read again, the file in storage has another digest."}
    except (DmException, OSError) as error:
        return told | {"reason": f"The file in storage cannot be read: {error}"}
    told |= {"verified": True, "fileSize": row["size"], "version": row["version"]}
    return told | {"digests": {digests.VERIFICATION: known}}


def read_range(directory: str, path: bytes, expected: os.stat_result, first: int, length: int) -> Iterator[bytes]:
    """Yield ``length`` bytes of a file from ``first`` on.

    :raises TransferError: the file was replaced or changed since it was looked at.
    """
    with paths.opened_file(directory, path) as descriptor:
        now = os.fstat(descriptor)
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (expected.st_ino, expected.st_size, expected.st_mtime_ns):
            raise TransferError(f"File {paths.display(path)!a} was replaced during the download; start again.")
        yield from read_open(descriptor, path, first, length)


def read_open(descriptor: int, path: bytes, first: int, length: int) -> Iterator[bytes]:
    """Yield a range of an open file. :raises TransferError: it is shorter by now."""
    while length:
        chunk = os.pread(descriptor, min(CHUNK, length), first)
        if not chunk:
            raise TransferError(f"File {paths.display(path)!a} became shorter during the download; start again.")
        yield chunk
        first += len(chunk)
        length -= len(chunk)


def file_record(found: Found, md5: str | None, compression: str = "") -> dict[str, Any]:
    """Return the published record of a file on disk.

    ``readyForProcessing`` is true only for a file that is published, verified and unchanged since.
    """
    record: dict[str, Any] = _base(found.path, found.experiment["name"], found.root, found.status.st_size)
    record |= _times(found.status.st_mtime_ns)
    record |= {"md5Sum": md5, "compression": compression, "readyForProcessing": found.verified}
    if found.row is not None and found.verified:
        record |= {
            "id": found.row["id"],
            "version": found.row["version"],
            "digests": {digests.VERIFICATION: bytes(found.row["digest"]).hex()},
        } | _contents(found.row)
    return record


def row_record(row: RowMapping, experiment: str) -> dict[str, Any]:
    """Return the record of a file as it was published."""
    record = {"id": row["id"]} | _base(bytes(row["path"]), experiment, row["root"], row["size"])
    record |= _times(row["mtime_ns"])
    return (
        record
        | {
            "md5Sum": bytes(row["md5"]).hex() if row["md5"] is not None else None,
            "digests": {digests.VERIFICATION: bytes(row["digest"]).hex()},
            "version": row["version"],
        }
        | _contents(row)
    )


def _contents(row: RowMapping) -> dict[str, Any]:
    """Return what is known of the contents of a file that was compressed here."""
    if not row["compression"]:
        return {}
    return {
        "compression": row["compression"],
        "contentSize": row["content_size"],
        "contentDigests": {digests.VERIFICATION: bytes(row["content_digest"]).hex()},
    }


def _base(path: bytes, experiment: str, root: str, size: int) -> dict[str, Any]:
    return {
        "fileName": paths.decode(path.rpartition(b"/")[2]),
        "experimentFilePath": paths.decode(path),
        "experimentName": experiment,
        "root": root,
        "fileSize": size,
    }


def _times(mtime_ns: int) -> dict[str, Any]:
    seconds = mtime_ns / 1e9
    try:
        text = timestamps.text(seconds)
    except (ValueError, OverflowError, OSError):
        text = ""  # a file may claim any year; the number says it all
    return {"fileModificationTime": seconds, "fileModificationTimestamp": text}


def checked_root(root: str | None) -> str:
    if root is not None and root not in ROOTS:
        raise InvalidArgument(f"Root {root[:80]!a} is unknown; choose data or analysis.")
    return root or "data"


def _compression(name: str | None) -> str:
    if name and name not in COMPRESSIONS:
        raise InvalidArgument(f"Compression {name[:80]!a} is unknown; choose one of {', '.join(COMPRESSIONS)}.")
    return name or ""
