"""Publishing one batch: from staging, through verification, to the final places.

1. Take the staging directory out of the station's reach.
2. Verify, dress and sync every file (several threads).
3. In one database transaction, holding the experiment's publish lock: decide about each file, write the manifest,
   rename, sync directories, write the manifest's ``committed`` line, record the files, finish the batch.

A crash at any instant is followed by doing it all again: a file that is no longer staged but in place with the digest
its station named, or the manifest does, counts as stored, because nothing was recorded before the end of step 3.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping

from dm.common import digests, paths
from dm.common.errors import DmException, InvalidObjectState, ObjectAlreadyExists, ServiceUnavailable, TransferError
from dm.common.spent import part
from dm.site.database.store import PUBLISH_LOCK, Store, lock
from dm.site.storage import batch_store, experiment_store, file_store
from dm.site.storage.batches import TAKEN
from dm.site.storage.directories import (
    DIRECTORY_MODE,
    PRIVATE_MODE,
    STAGING,
    Owner,
    Owners,
    enter,
    opened_directory,
)
from dm.site.storage.manifest import Manifest, lines_of
from dm.site.storage.placement import Tree
from dm.site.storage.verification import Staged, digests_name, dress, explain, verify_all

_FILES_PER_TASK = 16
_VERSIONS = b"versions"


class ClaimLostError(Exception):
    """Another publisher has taken the batch over; leave it alone."""


@dataclass(frozen=True)
class Batch:
    """A claimed batch."""

    id: str
    fence: int
    attempts: int
    experiment_id: int
    root: str
    source: str
    on_conflict: str
    directory: str
    group: Mapping[str, Any]
    files: list[dict[str, Any]]

    @classmethod
    def of(cls, row: RowMapping) -> Batch:
        """Build it from its row."""
        return cls(
            id=row["id"],
            fence=row["fence"],
            attempts=row["attempts"],
            experiment_id=row["experiment_id"],
            root=row["root"],
            source=row["source"],
            on_conflict=row["on_conflict"],
            directory=row["storage_directory"],
            group={key: row[key] for key in ("auth_group_name", "gid")},
            files=json.loads(row["request"] or "[]"),
        )


class Publishing:
    """Publishes batches; thread safe.

    :param pool: reads and digests files. :param stop: set when the service stops.
    """

    def __init__(self, store: Store, owners: Owners, pool: Executor, stop: threading.Event) -> None:
        self._stop = stop
        self._store = store
        self._owners = owners
        self._pool = pool

    def publish(self, batch: Batch) -> list[Staged]:
        """Publish a claimed batch and return its files with their outcomes.

        :raises ClaimLostError: it is somebody else's by now.
        :raises ServiceUnavailable: the database is away; try again. :raises StoppedError: the service stops.
        :raises OSError: the file system failed in a way that says nothing about a single file; try again.
        """
        owner = self._owners.of_experiment(batch.group)
        taken = take(batch)
        items = [Staged(paths.encode(entry["path"]), paths.encode(entry["stagedName"]), entry) for entry in batch.files]
        groups = [items[start : start + _FILES_PER_TASK] for start in range(0, len(items), _FILES_PER_TASK)]
        list(self._pool.map(lambda group: verify_all(taken, group, owner, self._stop), groups))
        with part("publish"), self._store.transaction() as connection:
            _Commit(connection, batch, items, owner=owner, owners=self._owners, taken=taken).run()
        return items

    def give_up(self, batch: Batch, error: DmException) -> list[Staged]:
        """Fail all files of a batch that cannot be published for reasons of ours; its station may send it again."""
        items = [Staged(paths.encode(entry["path"]), b"", entry) for entry in batch.files]
        for item in items:
            item.fail(error, True)
        with self._store.transaction() as connection:
            if not batch_store.hold(connection, batch.id, batch.fence):
                raise ClaimLostError(batch.id)
            result = [outcome(item) for item in items]
            batch_store.finish(connection, batch.id, json.dumps(result, separators=(",", ":")))
        return items


def take(batch: Batch) -> str:
    """Move the staging directory to a name only the service may use and return its path; again is fine."""
    with opened_directory(batch.directory) as top:
        name = f"{STAGING}/{batch.id}"
        with contextlib.suppress(FileNotFoundError):
            if not paths.exists(top, name + TAKEN):
                os.rename(name, name + TAKEN, src_dir_fd=top, dst_dir_fd=top)
        staging, _ = enter(top, STAGING.encode(), Owner(), PRIVATE_MODE)
        try:
            # Missing altogether after a crash between the commit and the sweep, or if the station removed it.
            descriptor, _ = enter(staging, (batch.id + TAKEN).encode(), Owner(), 0o700)
        finally:
            os.close(staging)
        try:
            Owner(os.geteuid() if os.geteuid() == 0 else -1, -1).apply(descriptor, 0o700)
        finally:
            os.close(descriptor)
    return f"{batch.directory}/{name}{TAKEN}"


class _Commit:
    """Step 3 of one batch."""

    def __init__(
        self,
        connection: Connection,
        batch: Batch,
        items: list[Staged],
        *,
        owner: Owner,
        owners: Owners,
        taken: str,
    ) -> None:
        self._connection = connection
        self._batch = batch
        self._items = items
        self._owner = owner
        self._owners = owners
        self._taken = taken
        self._rows: dict[bytes, RowMapping] = {}
        self._kept: dict[bytes, bytes] = {}
        self._lines: dict[str, dict[str, Any]] | None = None

    def run(self) -> None:
        """Decide, place, record."""
        batch, connection = self._batch, self._connection
        lock(connection, PUBLISH_LOCK, batch.experiment_id)
        if not batch_store.hold(connection, batch.id, batch.fence):
            raise ClaimLostError(batch.id)
        experiment = experiment_store.by_id(connection, batch.experiment_id)
        if experiment is None or experiment["state"] != "active":
            state = experiment["state"] if experiment is not None else "deleted"
            for item in self._items:
                passes = state in ("moving", "restoring")  # in a moment it may be sent again
                item.fail(InvalidObjectState(f"File {item.shown}: the experiment is {state} now."), passes)
        else:
            self._follow_group(self._owners.of_experiment(experiment))
            self._publish()
        result = [outcome(item) for item in self._items]
        batch_store.finish(connection, batch.id, json.dumps(result, separators=(",", ":")))

    def _follow_group(self, owner: Owner) -> None:
        """Dress the staged files anew if the experiment was given another group while they were verified."""
        if owner == self._owner:
            return
        self._owner = owner
        for item in self._items:
            if item.error is None and not item.missing:
                with _failing(item, self._taken), paths.opened_file(self._taken, item.name) as descriptor:
                    dress(descriptor, item, owner)

    def _publish(self) -> None:
        batch = self._batch
        self._rows = file_store.by_paths(
            self._connection, batch.experiment_id, batch.root, [item.path for item in self._items]
        )
        manifest = Manifest(batch.directory, self._owner)
        root = f"{batch.directory}/{batch.root}"
        with Tree(root, self._owner) as tree, Tree(self._taken, Owner()) as staging, self._versions() as versions:
            for item in self._items:
                if item.error is None:
                    with _failing(item, root):
                        self._decide(tree, item)
            placing = [item for item in self._items if item.status == "stored"]
            if not placing:
                self._record()
                return
            try:
                manifest.append(self._line(item) for item in placing)
            except OSError as error:
                for item in placing:
                    item.fail(*explain(error, f"File {item.shown} cannot be recorded", batch.directory))
                self._record()
                return
            for item in placing:
                with _failing(item, root):
                    if item.missing:
                        continue  # in place since an earlier attempt
                    if item.path in self._kept:
                        tree.keep(item.path, versions, self._kept[item.path])
                    tree.place(staging, item)
            with part("fsync"):
                tree.sync()
            failed = [paths.decode(item.path) for item in placing if item.error is not None]
            end = {
                "event": "committed",
                "batch": batch.id,
                "files": len(placing),
                "failed": failed,
                "time": time.time(),
            }
            manifest.append([end])
        self._record()

    def _decide(self, tree: Tree, item: Staged) -> None:
        """Set the item's status to stored (with its version) or unchanged, or fail it."""
        batch, row = self._batch, self._rows.get(item.path)
        there = tree.status(item.path)
        if there is not None and not stat.S_ISREG(there.st_mode):
            item.fail(InvalidObjectState(f"File {item.shown} would replace a directory, link or special file."), False)
            return
        item.version = row["version"] + 1 if row else 1
        if item.missing:
            self._recognise(tree, item, there)
            return
        if there is None:
            item.status = "stored"
            return
        same_source = row is not None and row["source"] == batch.source
        if self._equal(tree, item, there, row):
            recorded = row is None or self._as_recorded(item, row)
            # Else put in place by an attempt that a crash of the database took back: it gets its record now.
            if recorded or not same_source:
                item.status = "unchanged"
                item.version = row["version"] if row else 1
                return
        # What an inspection found damaged may be healed by anybody who has what was verified.
        healing = row is not None and row["damaged"] is not None and self._as_recorded(item, row)
        if not same_source and not healing and batch.on_conflict == "fail":
            item.fail(
                ObjectAlreadyExists(
                    f"File {item.shown} already exists with other contents from another source; "
                    "send it with onConflict replace or version, or under another name."
                ),
                False,
            )
            return
        if row is None:
            item.version = 2  # what is there without our knowledge counts as the first
        if batch.on_conflict == "version" and not healing:
            self._kept[item.path] = self._kept_name(item)
        item.status = "stored"

    def _recognise(self, tree: Tree, item: Staged, there: os.stat_result | None) -> None:
        """Deal with a file that is not staged: put in place by an attempt that was cut short, or never delivered."""
        size, known = self._known(item)
        replayed = self._batch.attempts > 1 and there is not None and known and there.st_size == size
        if replayed and tree.digest(item.path) == known[digests.VERIFICATION]:
            item.size, item.digests, item.status = size, known, "stored"
            kept = self._kept_name(item)
            if Path(self._batch.directory, "system", "versions", os.fsdecode(kept)).exists():
                self._kept[item.path] = kept
            return
        item.fail(TransferError(f"File {item.shown} is missing in staging; it was not delivered."), True)

    def _known(self, item: Staged) -> tuple[int, dict[str, str]]:
        """Return size and digests a file of this batch must have: as its station named them, or as the manifest line
        does that was written before it was put in place."""
        claimed: dict[str, str] = item.claim.get("digests", {})
        if digests.VERIFICATION in claimed:
            return item.claim["size"], claimed
        if self._lines is None:
            self._lines = lines_of(self._batch.directory, self._batch.id)
        line = self._lines.get(paths.decode(item.path), {})
        return line.get("size", 0), line.get("digests", {})

    @staticmethod
    def _as_recorded(item: Staged, row: RowMapping) -> bool:
        return bytes(row["digest"]).hex() == item.digests[digests.VERIFICATION]

    @staticmethod
    def _kept_name(item: Staged) -> bytes:
        return digests_name(item.path) + f".v{item.version - 1}".encode()

    @staticmethod
    def _equal(tree: Tree, item: Staged, there: os.stat_result, row: RowMapping | None) -> bool:
        """Whether the file in place has the bytes of the staged one."""
        if there.st_size != item.size:
            return False
        value = item.digests[digests.VERIFICATION]
        known = row is not None and row["damaged"] is None
        if row is not None and known and (there.st_size, there.st_mtime_ns) == (row["size"], row["mtime_ns"]):
            return bool(bytes(row["digest"]).hex() == value)
        return tree.digest(item.path) == value

    @contextlib.contextmanager
    def _versions(self) -> Iterator[int]:
        """Hold open the directory that keeps replaced files, ``system/versions``."""
        with opened_directory(f"{self._batch.directory}/system") as system:
            descriptor, _ = enter(system, _VERSIONS, self._owner, DIRECTORY_MODE)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def _line(self, item: Staged) -> dict[str, Any]:
        """Return the manifest's line of a file about to be placed."""
        line = {
            "event": "file",
            "batch": self._batch.id,
            "root": self._batch.root,
            "path": paths.decode(item.path),
            "size": item.size,
            "mtimeNs": item.mtime_ns,
            "digests": item.digests,
            "version": item.version,
            "source": self._batch.source,
            "time": time.time(),
        }
        if "sourceUrl" in item.claim:
            line["sourceUrl"] = item.claim["sourceUrl"]
        if row := self._rows.get(item.path):
            line["previous"] = {"version": row["version"], digests.VERIFICATION: bytes(row["digest"]).hex()}
        if kept := self._kept.get(item.path):
            line["kept"] = f"system/versions/{kept.decode()}"
        return line

    def _record(self) -> None:
        files = [
            file_store.Published(
                path=item.path,
                size=item.size,
                mtime_ns=item.mtime_ns,
                digest=bytes.fromhex(item.digests[digests.VERIFICATION]),
                md5=bytes.fromhex(item.digests["md5"]) if "md5" in item.digests else None,
                version=item.version,
            )
            for item in self._items
            if item.error is None and (item.status == "stored" or item.path not in self._rows)
        ]
        batch = self._batch
        file_store.upsert(
            self._connection, batch.experiment_id, batch.root, files, source=batch.source, batch_id=batch.id
        )


@contextlib.contextmanager
def _failing(item: Staged, root: str) -> Iterator[None]:
    """Turn what happens to one file into its outcome."""
    try:
        yield
    except DmException as error:
        item.fail(error, isinstance(error, ServiceUnavailable | TransferError))
    except OSError as error:
        item.fail(*explain(error, f"File {item.shown} cannot be put in place", root))


def outcome(item: Staged) -> dict[str, Any]:
    """Return what the station is told about a file."""
    result: dict[str, Any] = {"path": paths.decode(item.path), "status": item.status}
    if item.error is not None:
        return result | {
            "errorCode": item.error.getErrorCode(),
            "errorMessage": str(item.error),
            "transient": item.transient,
        }
    strong = {name: value for name, value in item.digests.items() if name != "md5"}
    return result | {"size": item.size, "digests": strong, "md5Sum": item.digests.get("md5"), "version": item.version}
