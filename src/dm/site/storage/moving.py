"""Moving an experiment to another storage: a verified copy, then the switch, then the old one goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping

from dm.common.errors import DmException, InvalidArgument, InvalidObjectState, ServiceUnavailable
from dm.common.web.routes import Principal
from dm.site.database import registry_store
from dm.site.database.store import CREATE_LOCK, Store, lock
from dm.site.identity import audit
from dm.site.storage import file_store, operation_store, relocation, storages
from dm.site.storage.directories import PARTS, ROOTS, STAGING, ExperimentDirectory, Owner, Owners
from dm.site.storage.experiments import Reference, find, refuse_nesting
from dm.site.storage.operations import Finish, Kind, Operations, Progress, refuse_busy
from dm.site.storage.replication import Copied, Known, Replication

MOVE, DISCARD = "moveExperiment", "discardMovedExperiment"
_TELL_SECONDS = 2.0


class Moving:
    """The use case, and the work itself."""

    def __init__(self, store: Store, owners: Owners, operations: Operations) -> None:
        self._store = store
        self._owners = owners
        self._operations = operations
        operations.register(MOVE, Kind(self._move, self._undo, attempts=20))
        operations.register(DISCARD, Kind(self._discard, lambda connection, row, error: None, attempts=20))

    def move(self, principal: Principal, reference: Reference, storage: str) -> dict[str, Any]:
        """Begin to move an experiment to another storage; its files can be read meanwhile.

        :returns: the operation, which tells ``countFiles`` and ``countBytes`` as it goes on.
        :raises InvalidObjectState: DAQs, uploads or jobs run, or the storage is retired, or has too little space.
        """
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            if row["state"] != "active":
                raise InvalidObjectState(f"Experiment {row['name']!a} is {row['state']} now; it cannot be moved.")
            target = registry_store.required(connection, "storage", storage)
            storages.refuse_retired(target)
            if target["id"] == row["storage_id"]:
                raise InvalidArgument(f"Experiment {row['name']!a} is in storage {storage!a} already.")
            refuse_busy(connection, row, "; its files have to move")
            size = file_store.totals(connection, row["id"])[1]
            if size > (free := storages.free_bytes(target["root_directory"])):
                raise InvalidObjectState(f"Storage {storage!a} has {free} bytes left, the experiment has {size}.")
            directory = _elsewhere(row["storage_directory"], row["storage_root"], target["root_directory"])
            if os.path.lexists(directory):
                raise InvalidObjectState(f"Directory {directory!a} exists; move it away first.")
            lock(connection, CREATE_LOCK, target["id"])
            refuse_nesting(connection, row["name"], directory, Path(target["root_directory"]))
            operation_store.set_state(connection, row["id"], "moving")
            operation_id = self._operations.submit(
                connection, MOVE, row["id"], principal.username,
                storage=target["id"], root=target["root_directory"], directory=directory,
                shown={"storageName": target["name"]},
            )  # fmt: skip
            name = f"{row['name']}/{row['station_name']}"
            audit.record(connection, "experiment.move", name, experimentId=row["id"], storage=target["name"])
        return self._operations.wake(operation_id)

    def _move(self, row: RowMapping, progress: Progress) -> Finish:
        number, details = row["experiment_id"], row["details"]
        old_root, old = row["storage_root"], row["storage_directory"]
        root, target = details["root"], details["directory"]
        owner = self._owners.of_experiment(row)
        hidden = _hidden(target, number)
        if not os.path.lexists(target) or os.path.lexists(hidden):
            _refuse_others(old)
            ExperimentDirectory(hidden, owner).make(root, number, self._owners)
            tell = Teller(progress, details["shown"])
            Replication(old, hidden, owner, known=known(self._store, number), go_on=tell).run()
        relocation.move(root, hidden, target, number, owner)

        def finish(connection: Connection) -> None:
            values = {"storage_id": details["storage"], "storage_directory": target}
            operation_store.set_state(connection, number, "active", **values)
            self._operations.submit(connection, DISCARD, number, row["username"], root=old_root, directory=old)
            name = f"{row['experiment_name']}/{row['station_name']}"
            audit.record(connection, "experiment.moved", name, experimentId=number, askedBy=row["username"])

        return finish

    @staticmethod
    def _undo(connection: Connection, row: RowMapping, error: DmException) -> None:
        operation_store.set_state(connection, row["experiment_id"], "active")
        with contextlib.suppress(OSError):
            shutil.rmtree(_hidden(row["details"]["directory"], row["experiment_id"]))

    def _discard(self, row: RowMapping, progress: Progress) -> Finish:
        details, number = row["details"], row["experiment_id"]
        if details["directory"] == row["storage_directory"]:
            raise InvalidObjectState(f"Experiment {row['experiment_name']!a} lies there again; kept.")
        # The records may be older than the files, from a backup: the last copy stays.
        if (ExperimentDirectory(row["storage_directory"], Owner()).marker() or {}).get("experimentId") != number:
            raise ServiceUnavailable(f"Directory {row['storage_directory']!a} is not there; the former one is kept.")
        relocation.put_aside(details["root"], details["directory"], number)
        relocation.discard(details["root"], details["directory"], number)
        relocation.forget_passages(details["root"], details["directory"])
        return lambda connection: None


class Teller:
    """Stops with the service, and tells how far it is, not too often."""

    def __init__(self, progress: Progress, shown: dict[str, Any]) -> None:
        self._progress = progress
        self._shown = shown
        self._told = time.monotonic()

    def __call__(self, done: Copied) -> None:
        self._progress.check()
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._told = time.monotonic()
            self._progress.note(**self._shown, countFiles=done.files, countBytes=done.size)


def known(store: Store, experiment_id: int) -> Known:
    """Return a function that looks up the records of published files."""

    def look(root: str, wanted: list[bytes]) -> Any:
        if root not in ROOTS:
            return {}
        with store.transaction() as connection:
            return file_store.by_paths(connection, experiment_id, root, wanted)

    return look


def _refuse_others(directory: str) -> None:
    """Return if all that is in an experiment's directory would come along. :raises InvalidObjectState: it would not."""
    if others := sorted(set(os.listdir(directory)) - {*PARTS, STAGING}):  # noqa: PTH208
        raise InvalidObjectState(
            f"Directory {directory!a} has {others[0][:100]!a}, which is none of ours; move it to analysis or elsewhere."
        )


def _elsewhere(directory: str, root: str, other: str) -> str:
    return str(Path(other) / Path(directory).relative_to(root))


def _hidden(target: str, number: int) -> str:
    return str(Path(target).with_name(f".moving-{number}"))
