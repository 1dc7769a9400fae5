"""A verified copy of a whole experiment directory: for another storage, or for the archive.

Every file is read, written under a hidden name, put on disk, read back and compared, published ones also with the
digest on record, and only then given its name. What has its name is whole: a copy that was cut short goes on there.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from sqlalchemy import RowMapping
from xxhash import xxh3_128

from dm.common import paths
from dm.common.errors import InvalidObjectState, TransferError
from dm.site.storage.directories import Owner, dress_file
from dm.site.storage.packing import CHUNK
from dm.site.storage.placement import Tree
from dm.site.storage.verification import digests_name

_AT_ONCE = 1000
Known = Callable[[str, list[bytes]], Mapping[bytes, RowMapping]]


@dataclass
class Copied:
    """How far it is.

    :param files: that are there. :param size: their bytes. :param made: files copied this time. :param kept: files
        that are there as they were published, and here no longer.
    """

    files: int = 0
    size: int = 0
    made: int = 0
    kept: int = 0


class Replication:
    """Copies one directory to another one, which exists.

    :param owner: of all that is made. :param known: root (``data``, ``analysis``) and paths below it -> the records of
        those that are published. :param go_on: called now and then, with how far it is; raises to stop.
    :param only_missing: whatever is there already stays as it is; else what differs is copied again.
    :param keep_published: what is there as it was published stays, if what is here is not.
    :param alone: entered while a file that was missing is given its name; keeps away whoever else might.
    """

    def __init__(
        self,
        source: str,
        target: str,
        owner: Owner,
        *,
        known: Known,
        go_on: Callable[[Copied], None],
        only_missing: bool = False,
        keep_published: bool = False,
        alone: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._source = source
        self._target = target
        self._owner = owner
        self._known = known
        self._go_on = go_on
        self._only_missing = only_missing
        self._keep_published = keep_published
        self._alone = alone
        self._done = Copied()

    def run(self, parts: Iterable[str] = ("data", "analysis", "system")) -> Copied:
        """Copy these sub-directories.

        :raises TransferError: a file is damaged, or changes meanwhile. :raises InvalidObjectState: something that is
            neither file, directory nor link. :raises OSError: the system refuses.
        """
        with Tree(self._target, self._owner) as tree:
            pending = [part.encode() for part in parts]
            while pending:
                pending += self._directory(tree, pending.pop())
            tree.sync()
        return self._done

    def _directory(self, tree: Tree, path: bytes) -> list[bytes]:
        """Copy a directory without those in it, whose paths are returned."""
        inner: list[bytes] = []
        files: list[bytes] = []
        with paths.opened_parent(self._source, path + b"/_") as (descriptor, _):
            directory = tree.directory(path)
            for name in map(os.fsencode, os.listdir(descriptor)):  # noqa: PTH208
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                whole = path + b"/" + name
                if stat.S_ISDIR(status.st_mode):
                    inner.append(whole)
                elif stat.S_ISREG(status.st_mode):
                    files.append(whole)
                elif stat.S_ISLNK(status.st_mode):
                    with contextlib.suppress(FileExistsError):
                        os.symlink(os.readlink(name, dir_fd=descriptor), name, dir_fd=directory)
                else:
                    raise InvalidObjectState(
                        f"{paths.display(whole)[:300]!a} is neither file nor directory; remove it first."
                    )
        tree.changed(path)
        root, _, _ = path.partition(b"/")
        files.sort()
        while part := files[:_AT_ONCE]:  # however many there are
            del files[:_AT_ONCE]
            known = self._known(root.decode(), [file.partition(b"/")[2] for file in part])
            for file in part:
                self._file(tree, file, known.get(file.partition(b"/")[2]))
        return sorted(inner, reverse=True)

    def _file(self, tree: Tree, path: bytes, row: RowMapping | None) -> None:
        above, _, name = path.rpartition(b"/")
        shown = ascii(paths.display(path)[:300])
        with paths.opened_file(self._source, path) as source:
            before = os.fstat(source)
            there = tree.status(path)
            published = there is not None and row is not None and _identity(there) == _recorded(row)
            if self._keep_published and published and there is not None and _identity(there) != _identity(before):
                self._done.kept += 1
            elif there is None or (not self._only_missing and _identity(there) != _identity(before)):
                self._done.made += self._copy(tree.directory(above), name, source, path, row)
                tree.changed(above)
            # What is appended to the manifest meanwhile belongs to files that are not in this copy.
            if not path.startswith(b"system/") and _identity(os.fstat(source)) != _identity(before):
                raise TransferError(f"File {shown} changed while it was copied.")
        self._done.files += 1
        self._done.size += before.st_size
        self._go_on(self._done)

    def _copy(self, directory: int, name: bytes, source: int, path: bytes, row: RowMapping | None) -> bool:
        """Copy a file; ``False`` if it is there now and shall stay."""
        hidden, shown = b".dm-" + digests_name(path), ascii(paths.display(path)[:300])
        before = os.fstat(source)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden, dir_fd=directory)
        target = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            digest = self._read(source, target)
            published = row is not None and _identity(before) == _recorded(row)
            if published and row is not None and digest != bytes(row["digest"]):
                raise TransferError(f"File {shown} is damaged: its digest is not the one it was published with.")
            dress_file(target, self._owner, stat.S_IMODE(before.st_mode))
            os.utime(target, ns=(before.st_mtime_ns, before.st_mtime_ns))
            os.fsync(target)
            if self._read(target, None) != digest:
                raise TransferError(f"The copy of file {shown}, read back, is another.")
        except BaseException:
            os.unlink(hidden, dir_fd=directory)
            raise
        finally:
            os.close(target)
        with self._alone():
            if self._only_missing and paths.exists(directory, name):
                os.unlink(hidden, dir_fd=directory)  # published meanwhile
                return False
            os.rename(hidden, name, src_dir_fd=directory, dst_dir_fd=directory)
        return True

    def _read(self, source: int, target: int | None) -> bytes:
        """Digest an open file and copy it to another one."""
        os.lseek(source, 0, os.SEEK_SET)
        made = xxh3_128()
        while chunk := os.read(source, CHUNK):
            made.update(chunk)
            rest = memoryview(chunk)
            while target is not None and rest:
                rest = rest[os.write(target, rest) :]
            self._go_on(self._done)
        return made.digest()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _recorded(row: RowMapping) -> tuple[int, int]:
    return row["size"], row["mtime_ns"]
