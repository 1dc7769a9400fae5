"""Compressing, decompressing and deleting published files; the manifest and the records follow.

Each is an operation that is done again from its beginning after a crash. A file is replaced in this order: what will
be there is written beside it and read back, the manifest is told, it is renamed into place, the other one goes, the
records follow. So at any instant one of the two is whole, and the manifest knows it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping

from dm.common import digests, paths
from dm.common.errors import (
    DmException,
    InvalidArgument,
    InvalidObjectState,
    ObjectAlreadyExists,
    ObjectNotFound,
    TransferError,
)
from dm.common.web.routes import Principal
from dm.site.database.store import PUBLISH_LOCK, Store, lock
from dm.site.identity import audit
from dm.site.storage import file_change_store, file_store, operation_store, packing
from dm.site.storage.directories import ROOTS, Owner, Owners, dress_file
from dm.site.storage.experiments import Reference, find
from dm.site.storage.files import checked_root
from dm.site.storage.manifest import Manifest, lines_of
from dm.site.storage.operations import Finish, Kind, Operations, Progress
from dm.site.storage.placement import Tree
from dm.site.storage.verification import digests_name

COMPRESS, DECOMPRESS, DELETE = "compressFile", "decompressFile", "deleteFiles"
MOST = 1000


@dataclass(frozen=True)
class Step:
    """One file to be replaced by another one beside it."""

    operation: str
    experiment: int
    directory: str
    root: str
    source: bytes
    target: bytes
    compression: str
    packs: bool
    known: RowMapping
    owner: Owner

    @property
    def hidden(self) -> bytes:
        """Name, in the file's directory, of what will be put in its place."""
        return b".dm-" + digests_name(self.target)

    @property
    def shown(self) -> str:
        """Path of the file for messages."""
        return ascii(paths.display(self.source)[:300])


class FileChanges:
    """The use cases, and the work itself."""

    def __init__(self, store: Store, owners: Owners, operations: Operations) -> None:
        self._store = store
        self._owners = owners
        self._operations = operations
        for name, run in ((COMPRESS, self._repack), (DECOMPRESS, self._repack), (DELETE, self._delete)):
            operations.register(name, Kind(run, self._undo))

    def compress(
        self, principal: Principal, reference: Reference, path: str, root: str | None = None, compression: str = ""
    ) -> dict[str, Any]:
        """Begin to compress a published file; it then has the name of the compression as a suffix.

        :param compression: ``gz`` (default), ``bz2`` or ``xz``.
        :returns: the operation. :raises ObjectNotFound: no such published file.
        :raises InvalidObjectState: it is compressed, was changed since it was published, or its directory is frozen.
        :raises ObjectAlreadyExists: there is a file of the resulting name.
        """
        name = packing.checked(compression)
        with self._store.transaction() as connection:
            experiment, row = self._file(connection, reference, path, root)
            if row["compression"]:
                raise InvalidObjectState(f"File {path[:300]!a} is compressed already ({row['compression']}).")
            target = bytes(row["path"]) + b"." + name.encode()
            operation_id = self._submit(connection, principal, COMPRESS, experiment, row, target, name)
        return self._operations.wake(operation_id)

    def decompress(
        self, principal: Principal, reference: Reference, path: str, root: str | None = None, compression: str = ""
    ) -> dict[str, Any]:
        """Begin to decompress a published file; it then has its name without the suffix.

        :param path: with or without the suffix of ``compression``.
        :returns: the operation. :raises: see :meth:`compress`.
        """
        if compression and not path.endswith(f".{compression}"):
            path = f"{path}.{compression}"
        with self._store.transaction() as connection:
            experiment, row = self._file(connection, reference, path, root)
            stem, _, suffix = bytes(row["path"]).rpartition(b".")
            name = row["compression"] or suffix.decode("ascii", "replace")
            if name not in packing.MAKES or suffix != name.encode() or not stem or stem.endswith(b"/"):
                raise InvalidObjectState(f"File {path[:300]!a} is not compressed in a way known here.")
            operation_id = self._submit(connection, principal, DECOMPRESS, experiment, row, stem, name)
        return self._operations.wake(operation_id)

    def delete(
        self, principal: Principal, reference: Reference, wanted: list[str], root: str | None = None
    ) -> dict[str, Any]:
        """Delete files, published or not, from storage; the catalog is the station's.

        :param wanted: paths below ``root``, at most 1,000. :param root: ``data`` or ``analysis``.
        :returns: the operation, done or under way, with ``countFiles`` and ``countMissing`` when it is done, and
            ``countNewer`` if some were published anew since it was asked for, and kept.
        :raises InvalidArgument: a path that cannot be. :raises InvalidObjectState: the directory is frozen.
        """
        if not 1 <= len(wanted) <= MOST:
            raise InvalidArgument(f"{len(wanted)} paths are not 1 to {MOST}; delete in parts.")
        found = list(dict.fromkeys(paths.relative(path) for path in wanted))
        with self._store.transaction() as connection:
            experiment = find(connection, reference, lock=True)  # what moves or deletes it comes before, or after
            chosen = checked_root(root)
            _refuse_closed(experiment, chosen)
            operation_id = self._operations.submit(
                connection, DELETE, experiment["id"], principal.username,
                root=chosen, paths=[_text(path) for path in found],
            )  # fmt: skip
            shown = [paths.display(path)[:200] for path in found[:20]]
            audit.record(
                connection, "files.deleted", f"{experiment['name']}/{experiment['station_name']}",
                experimentId=experiment["id"], root=chosen, countFiles=len(found), first=shown,
            )  # fmt: skip
        return self._operations.run(operation_id)

    @staticmethod
    def _file(
        connection: Connection, reference: Reference, path: str, root: str | None
    ) -> tuple[RowMapping, RowMapping]:
        relative = paths.relative(path)
        experiment = find(connection, reference, lock=True)
        for candidate in (checked_root(root),) if root else ROOTS:
            row = file_store.one(connection, experiment["id"], candidate, relative)
            if row is not None:
                _refuse_closed(experiment, candidate)
                return experiment, row
        raise ObjectNotFound(
            f"Published file {paths.display(relative)[:300]!a} does not exist in experiment {experiment['name']!a}."
        )

    def _submit(  # noqa: PLR0917
        self, connection: Connection, principal: Principal, name: str, experiment: RowMapping, row: RowMapping,
        target: bytes, compression: str,
    ) -> str:  # fmt: skip
        _refuse_taken(connection, experiment, row["root"], target)
        audit.record(
            connection, f"file.{'compressed' if name == COMPRESS else 'decompressed'}",
            f"{experiment['name']}/{experiment['station_name']}", experimentId=experiment["id"],
            path=paths.display(bytes(row["path"]))[:400],
        )  # fmt: skip
        return self._operations.submit(
            connection, name, experiment["id"], principal.username,
            root=row["root"], source=_text(bytes(row["path"])), target=_text(target), compression=compression,
            shown={"root": row["root"], "compression": compression if name == COMPRESS else ""},
        )  # fmt: skip

    @staticmethod
    def _undo(connection: Connection, row: RowMapping, error: DmException) -> None:
        """Nothing was changed, or what was is told by the records."""

    def _repack(self, row: RowMapping, progress: Progress) -> Finish:
        details = row["details"]
        source = _bytes(details["source"])
        with self._store.transaction() as connection:
            known = file_store.one(connection, row["experiment_id"], details["root"], source)
        if known is None:
            raise ObjectNotFound(f"File {paths.display(source)[:300]!a} is gone meanwhile.")
        step = Step(
            operation=row["id"], experiment=row["experiment_id"], directory=row["storage_directory"],
            root=details["root"], source=source, target=_bytes(details["target"]),
            compression=details["compression"], packs=row["name"] == COMPRESS,
            known=known, owner=self._owners.of_experiment(row),
        )  # fmt: skip
        with Tree(f"{step.directory}/{step.root}", step.owner) as tree:
            line = lines_of(step.directory, step.operation).get(paths.decode(step.target))
            # Made from what is recorded now; of what was published anew after a crash it would be the end.
            ours = line is not None and line["version"] == known["version"] + 1
            if line is None or not ours or not _is_there(tree, step.target, line):
                line = self._make(tree, step, progress)
        return lambda connection: self._switch(connection, step, line)

    @staticmethod
    def _make(tree: Tree, step: Step, progress: Progress) -> dict[str, Any]:
        """Write what will be there, hidden beside the file, and return its manifest line."""
        known, directory = step.known, tree.directory(step.source.rpartition(b"/")[0])
        with contextlib.suppress(FileNotFoundError):
            os.unlink(step.hidden, dir_fd=directory)
        with paths.opened_file(tree.root, step.source) as source:
            before = os.fstat(source)
            if (before.st_size, before.st_mtime_ns) != (known["size"], known["mtime_ns"]):
                raise _other_now(step)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            target = os.open(step.hidden, flags, 0o600, dir_fd=directory)
            try:
                work = packing.compress if step.packs else packing.decompress
                contents, compressed = work(source, target, step.compression, progress.check)
                if (contents if step.packs else compressed).digest != bytes(known["digest"]):
                    raise TransferError(f"File {step.shown} is damaged; it stays as it is.")
                if not step.packs and known["content_digest"] and contents.digest != bytes(known["content_digest"]):
                    raise TransferError(f"File {step.shown} unpacks to other contents; it stays as it is.")
                dress_file(target, step.owner, stat.S_IMODE(before.st_mode))
                os.utime(target, ns=(known["mtime_ns"], known["mtime_ns"]))
                os.fsync(target)
            except BaseException:
                os.unlink(step.hidden, dir_fd=directory)
                raise
            finally:
                os.close(target)
        made = compressed if step.packs else contents
        line = {
            "event": "file", "batch": step.operation, "root": step.root, "path": paths.decode(step.target),
            "size": made.size, "mtimeNs": known["mtime_ns"], "digests": {digests.VERIFICATION: made.digest.hex()},
            "version": known["version"] + 1, "source": known["source"], "time": time.time(),
        }  # fmt: skip
        if step.packs:
            content = {"size": contents.size, "digests": {digests.VERIFICATION: contents.digest.hex()}}
            line |= {"compression": step.compression, "content": content}
        return line

    @staticmethod
    def _switch(connection: Connection, step: Step, line: dict[str, Any]) -> None:
        """Put the new file in the place of the old one; the record follows with the commit."""
        lock(connection, PUBLISH_LOCK, step.experiment)
        now = file_store.one(connection, step.experiment, step.root, step.source)
        if now is None or now["version"] != step.known["version"]:
            raise InvalidObjectState(f"File {step.shown} was published anew meanwhile.")
        manifest = Manifest(step.directory, step.owner)
        with Tree(f"{step.directory}/{step.root}", step.owner) as tree:
            directory = tree.directory(step.target.rpartition(b"/")[0])
            old, new = step.source.rpartition(b"/")[2], step.target.rpartition(b"/")[2]
            published = _is_as_published(tree, step)
            if paths.exists(directory, step.hidden):
                if not published:
                    os.unlink(step.hidden, dir_fd=directory)
                    raise _other_now(step)
                taken = file_store.one(connection, step.experiment, step.root, step.target) is not None
                if taken or paths.exists(directory, new):
                    os.unlink(step.hidden, dir_fd=directory)
                    raise ObjectAlreadyExists(f"File {paths.display(step.target)[:300]!a} exists; move it away.")
                manifest.append([line])
                os.rename(step.hidden, new, src_dir_fd=directory, dst_dir_fd=directory)
                os.fsync(directory)
            end = {"event": "committed", "batch": step.operation, "files": 1, "failed": [], "time": time.time()}
            manifest.append([end, _deleted(step.root, step.source, step.operation)])
            if published:  # what somebody wrote there meanwhile stays
                os.unlink(old, dir_fd=directory)
            os.fsync(directory)
        file_change_store.replace(connection, now, step.target, line)

    def _delete(self, row: RowMapping, progress: Progress) -> Finish:
        root, asked = row["details"]["root"], [_bytes(text) for text in row["details"]["paths"]]
        number, directory, owner = row["experiment_id"], row["storage_directory"], self._owners.of_experiment(row)

        def finish(connection: Connection) -> None:
            lock(connection, PUBLISH_LOCK, number)
            known = dict(file_store.by_paths(connection, number, root, asked))
            # What was published after it was asked for is another file of that name.
            newer = {path for path, found in known.items() if found["published"] > row["submitted"]}
            wanted = [path for path in asked if path not in newer]
            known = {path: found for path, found in known.items() if path not in newer}
            with Tree(f"{directory}/{root}", owner) as tree:
                there = [path for path in wanted if _plain(tree, path)]
                told = [path for path in wanted if path in known or path in set(there)]
                if told:
                    Manifest(directory, owner).append(_deleted(root, path, row["id"]) for path in told)
                for path in there:
                    above, _, name = path.rpartition(b"/")
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=tree.directory(above))
                    tree.changed(above)
                tree.sync()
            file_change_store.forget(connection, number, root, list(known))
            counts = {"countFiles": len(told), "countMissing": len(wanted) - len(told)}
            counts |= {"countNewer": len(newer)} if newer else {}
            operation_store.note(connection, row["id"], {"shown": counts})

        return finish


def _plain(tree: Tree, path: bytes) -> bool:
    """Whether there is a plain file. :raises InvalidArgument: there is something else."""
    status = tree.status(path)
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise InvalidArgument(f"Path {paths.display(path)[:300]!a} is no plain file; nothing was deleted.")
    return status is not None


def _is_as_published(tree: Tree, step: Step) -> bool:
    """Whether the file to be replaced is there, and looks as it is recorded."""
    status = tree.status(step.source)
    return status is not None and (status.st_size, status.st_mtime_ns) == (step.known["size"], step.known["mtime_ns"])


def _other_now(step: Step) -> InvalidObjectState:
    return InvalidObjectState(f"File {step.shown} is no longer the one that was published; it stays as it is.")


def _deleted(root: str, path: bytes, operation: str) -> dict[str, Any]:
    return {
        "event": "deleted", "batch": operation, "root": root, "path": paths.decode(path), "time": time.time(),
    }  # fmt: skip


def _refuse_closed(experiment: RowMapping, root: str) -> None:
    if experiment["state"] != "active":
        raise InvalidObjectState(f"Experiment {experiment['name']!a} is {experiment['state']} now.")
    if experiment[f"{root}_directory_frozen"]:
        raise InvalidObjectState(f"The {root} directory of experiment {experiment['name']!a} is frozen.")


def _refuse_taken(connection: Connection, experiment: RowMapping, root: str, target: bytes) -> None:
    there = file_store.one(connection, experiment["id"], root, target) is not None
    with (
        contextlib.suppress(ObjectNotFound, FileNotFoundError),
        paths.opened_file(f"{experiment['storage_directory']}/{root}", target),
    ):
        there = True
    if there:
        raise ObjectAlreadyExists(f"File {paths.display(target)[:300]!a} exists; move it away.")


def _is_there(tree: Tree, path: bytes, line: dict[str, Any]) -> bool:
    """Whether the file of a manifest line is in place, put there before a crash."""
    status = tree.status(path)
    if status is None or not stat.S_ISREG(status.st_mode) or status.st_size != line["size"]:
        return False
    return tree.digest(path) == line["digests"][digests.VERIFICATION]


def _text(path: bytes) -> str:
    """Return a path as jsonb takes it, which refuses what stands for undecodable bytes."""
    return base64.b64encode(path).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
