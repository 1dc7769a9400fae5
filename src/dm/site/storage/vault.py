"""The archive: a verified copy of experiments in a directory of its own; what is lost is brought back from it."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping

from dm.common import digests, paths
from dm.common.errors import ConfigurationError, DmException, InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.common.web.routes import Principal
from dm.site.database.store import PUBLISH_LOCK, Store, lock
from dm.site.identity import audit
from dm.site.storage import file_store
from dm.site.storage.directories import ROOTS, ExperimentDirectory, Owner, Owners
from dm.site.storage.experiments import Reference, find
from dm.site.storage.manifest import Manifest
from dm.site.storage.moving import Teller, known
from dm.site.storage.operations import Finish, Kind, Operations, Progress, refuse_busy
from dm.site.storage.replication import Replication
from dm.site.storage.verification import digest

ARCHIVE, RESTORE = "archiveExperiment", "restoreArchivedExperiment"
TASKS = (ARCHIVE, RESTORE)
_SOURCE = "archive"
_AT_ONCE = 500


class Vault:
    """The use cases, and the work itself.

    :param directory: where the copies are, ``<station>/<experiment number>``; ``None``: the site has no archive.
    """

    def __init__(self, store: Store, owners: Owners, operations: Operations, directory: Path | None) -> None:
        self._store = store
        self._owners = owners
        self._operations = operations
        self._directory = directory
        operations.register(ARCHIVE, Kind(self._archive, _nothing_to_undo, attempts=20))
        operations.register(RESTORE, Kind(self._restore, _nothing_to_undo, attempts=20))

    def archive(self, principal: Principal, reference: Reference) -> dict[str, Any]:
        """Begin to copy an experiment into the archive; again copies what is new or has changed.

        :returns: the operation, which tells ``countFiles`` and ``countBytes`` as it goes on.
        :raises ConfigurationError: there is no archive.
        :raises InvalidObjectState: DAQs, uploads or jobs run, or another operation of the experiment is unfinished.
        """
        return self._submit(principal, reference, ARCHIVE)

    def restore(self, principal: Principal, reference: Reference) -> dict[str, Any]:
        """Begin to bring files back that the archive has and the experiment has not; what is there stays.

        :returns: the operation. :raises: see :meth:`archive`. :raises ObjectNotFound: it was never archived.
        """
        return self._submit(principal, reference, RESTORE)

    def get(self, principal: Principal, operation_id: str) -> dict[str, Any]:
        """Return a task of the archive. :raises ObjectNotFound: none such at a station the caller manages."""
        return self._operations.get(principal, operation_id, TASKS)

    def listed(self, principal: Principal) -> list[dict[str, Any]]:
        """Return the newest tasks of the archive at stations the caller manages, newest last."""
        return self._operations.listed(principal, TASKS)

    def _submit(self, principal: Principal, reference: Reference, name: str) -> dict[str, Any]:
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            place = self._place(row["station_name"], row["id"])
            if row["state"] != "active":
                raise InvalidObjectState(f"Experiment {row['name']!a} is {row['state']} now; try again later.")
            refuse_busy(connection, row, "")
            if name == RESTORE:
                if not place.is_dir():
                    raise ObjectNotFound(f"An archived copy of experiment {row['name']!a} does not exist.")
                if row["data_directory_frozen"] or row["analysis_directory_frozen"]:
                    raise InvalidObjectState(f"Directories of experiment {row['name']!a} are frozen.")
            operation_id = self._operations.submit(connection, name, row["id"], principal.username)
            event = "experiment.archive" if name == ARCHIVE else "experiment.archive_restore"
            audit.record(connection, event, f"{row['name']}/{row['station_name']}", experimentId=row["id"])
        return self._operations.wake(operation_id)

    def _place(self, station: str, number: int) -> Path:
        if self._directory is None:
            raise ConfigurationError("The site has no archive: storage.archive_directory is not set.")
        return self._directory / station / str(number)

    def _archive(self, row: RowMapping, progress: Progress) -> Finish:
        number = row["experiment_id"]
        place = self._place(row["station_name"], number)
        # Of the service's own account: whether somebody may read a file is decided where it is in storage.
        top = ExperimentDirectory(str(place), Owner())
        if (top.marker() or {}).get("experimentId") != number:
            top.make(str(self._directory), number, self._owners)
        tell = Teller(progress, {})
        copy = Replication(
            row["storage_directory"], str(place), Owner(),
            known=known(self._store, number), go_on=tell, keep_published=True,
        )  # fmt: skip
        done = copy.run()
        progress.note(countFiles=done.files, countBytes=done.size, countCopied=done.made)
        if done.kept:
            raise InvalidObjectState(
                f"{done.kept} files are not what was published and archived; the archive keeps that and has all else. "
                "dm-inspect-experiment tells which."
            )
        return lambda connection: None

    def _restore(self, row: RowMapping, progress: Progress) -> Finish:
        number, directory = row["experiment_id"], row["storage_directory"]
        place, owner = self._place(row["station_name"], number), self._owners.of_experiment(row)
        # It stays active: what is published meanwhile is newer than what comes back.
        copy = Replication(
            str(place), directory, owner,
            known=known(self._store, number), go_on=Teller(progress, {}), only_missing=True,
            alone=lambda: self._unpublished(number),
        )  # fmt: skip
        done = copy.run(ROOTS)
        for root in ROOTS:
            found = self._unrecorded(number, str(place), directory, root, progress)
            while files := list(itertools.islice(found, _AT_ONCE)):
                self._record(number, Manifest(directory, owner), root, files)
        progress.note(countFiles=done.files, countBytes=done.size, countCopied=done.made)
        return lambda connection: None

    @contextlib.contextmanager
    def _unpublished(self, number: int) -> Iterator[Connection]:
        """Keep publishers away."""
        with self._store.transaction() as connection:
            lock(connection, PUBLISH_LOCK, number)
            yield connection

    def _record(self, number: int, manifest: Manifest, root: str, files: list[file_store.Published]) -> None:
        """Record files that came back, but none that was published since it was looked at."""
        batch = str(uuid.uuid4())
        with self._unpublished(number) as connection:
            recorded = file_store.by_paths(connection, number, root, [file.path for file in files])
            if wanted := [file for file in files if file.path not in recorded]:
                manifest.append([*(_line(batch, root, file) for file in wanted), _end(batch, len(wanted))])
                file_store.upsert(connection, number, root, wanted, source=_SOURCE, batch_id=batch)

    def _unrecorded(
        self, number: int, place: str, directory: str, root: str, progress: Progress
    ) -> Iterator[file_store.Published]:
        """Yield the files that are there as the archive has them and that storage has no record of."""
        for above, _, names in os.walk(os.fsencode(f"{place}/{root}")):
            below = os.path.relpath(above, os.fsencode(f"{place}/{root}"))
            all_paths = iter([name if below == b"." else below + b"/" + name for name in names])
            while wanted := list(itertools.islice(all_paths, _AT_ONCE)):
                recorded = known(self._store, number)(root, wanted)
                for path in wanted:
                    progress.check()
                    if path not in recorded and not path.rpartition(b"/")[2].startswith(b".dm-"):
                        with contextlib.suppress(ObjectNotFound, InvalidArgument):  # links are no files
                            yield from self._same(f"{place}/{root}", f"{directory}/{root}", path)

    @staticmethod
    def _same(place: str, directory: str, path: bytes) -> Iterator[file_store.Published]:
        """Yield what is to be recorded of a file, if it is the same in the archive."""
        with paths.opened_file(place, path) as kept:
            copy = os.fstat(kept)
        with paths.opened_file(directory, path) as descriptor:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (copy.st_size, copy.st_mtime_ns):
                return
            value = bytes.fromhex(digest(descriptor, {digests.VERIFICATION})[1][digests.VERIFICATION])
        yield file_store.Published(path, status.st_size, status.st_mtime_ns, value, None, 1)


def _line(batch: str, root: str, file: file_store.Published) -> dict[str, Any]:
    return {
        "event": "file", "batch": batch, "root": root, "path": paths.decode(file.path), "size": file.size,
        "mtimeNs": file.mtime_ns, "digests": {digests.VERIFICATION: file.digest.hex()}, "version": file.version,
        "source": _SOURCE, "time": time.time(),
    }  # fmt: skip


def _end(batch: str, count: int) -> dict[str, Any]:
    return {"event": "committed", "batch": batch, "files": count, "failed": [], "time": time.time()}


def _nothing_to_undo(connection: Connection, row: RowMapping, error: DmException) -> None:
    """What was copied is good; the next task goes on there."""
