"""Deleting experiments, and having second thoughts: what is deleted can be restored until it is purged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from dm.common import timestamps
from dm.common.errors import DmException, InvalidObjectState, ObjectNotFound
from dm.common.web.routes import Principal
from dm.site import rules
from dm.site.database.store import CREATE_LOCK, Store, lock
from dm.site.identity import audit
from dm.site.storage import (
    deleted_store,
    experiment_records,
    file_store,
    grant_store,
    inspection_store,
    operation_store,
    relocation,
)
from dm.site.storage.directories import Owners
from dm.site.storage.experiments import Reference, find, name_taken, refuse_nesting
from dm.site.storage.operations import Finish, Kind, NotYetError, Operations, Progress, record, refuse_busy

DELETE, RESTORE, PURGE = "deleteExperiment", "restoreDeletedExperiment", "purgeExperiment"
_GRACE_AFTER_TRY = timedelta(days=1)


class Deletion:
    """The use cases, and the work itself.

    :param keep_days: how long a deleted experiment can be restored; 0: not at all.
    """

    def __init__(self, store: Store, owners: Owners, operations: Operations, keep_days: float) -> None:
        self._store = store
        self._owners = owners
        self._operations = operations
        self._keep = timedelta(days=keep_days)
        operations.register(DELETE, Kind(self._delete, self._undo_delete))
        operations.register(RESTORE, Kind(self._restore, self._undo_restore))
        operations.register(PURGE, Kind(self._purge, self._undo_purge))

    def delete(self, principal: Principal, reference: Reference, force: bool = False) -> dict[str, Any]:
        """Begin to delete an experiment with all its files; again returns the operation that runs.

        From here on nobody can publish into it; when the operation is done, nobody reaches its files and its name is
        free.

        :param force: also while DAQs or uploads run (their grants are revoked) and if it is pinned.
        :returns: the operation: id, name, experimentName, status ``pending`` ...
        :raises InvalidObjectState: DAQs, uploads or jobs hold grants, batches are on their way, another operation of
            it runs, or it is pinned.
        """
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            running = operation_store.unfinished(connection, row["id"], [DELETE])
            if row["state"] == "deleting" and running:
                return record(running[0])
            if row["state"] not in ("active", "deleting"):
                raise InvalidObjectState(f"Experiment {row['name']!a} is {row['state']} now; try again in a moment.")
            if not force:
                if row["state"] == "active":
                    refuse_busy(connection, row, ", or delete with force")
                if row["pinned_until"] is not None and row["pinned_until"] > datetime.now(UTC):
                    raise InvalidObjectState(
                        f"Experiment {row['name']!a} is pinned until {row['pinned_until'].astimezone():%Y-%m-%d} by "
                        f"{row['pinned_by']}; unpin it first, or delete with force."
                    )
            operation_store.set_state(connection, row["id"], "deleting")
            grant_store.revoke_all(connection, row["id"])
            operation_store.abandon_batches(connection, row["id"])
            operation_id = self._operations.submit(connection, DELETE, row["id"], principal.username)
            audit.record(connection, "experiment.deletion", _name(row), experimentId=row["id"], force=force)
        return self._operations.wake(operation_id)

    def _delete(self, row: RowMapping, progress: Progress) -> Finish:
        with self._store.transaction() as connection:
            if operation_store.publishing(connection, row["experiment_id"]):
                raise NotYetError  # a batch claimed before the deletion was asked for; its end is near
        number, directory = row["experiment_id"], row["storage_directory"]
        relocation.put_aside(row["storage_root"], directory, number)
        at_once = not self._keep
        if at_once:
            relocation.discard(row["storage_root"], directory, number)
        now = datetime.now(UTC)

        def finish(connection: Connection) -> None:
            columns: dict[str, Any] = {"deleted": now, "purge_after": now + self._keep}
            operation_store.set_state(connection, number, "deleted", **columns)
            what = {"experimentId": number, "askedBy": row["username"]}
            audit.record(connection, "experiment.deleted", _of(row), purgeAfter=now + self._keep, **what)
            if at_once:
                self._forget(connection, number)
                audit.record(connection, "experiment.purged", _of(row), **what)

        return finish

    @staticmethod
    def _undo_delete(connection: Connection, row: RowMapping, error: DmException) -> None:
        # Refused before anything was touched: as if it had not been asked for. Else only another try can help.
        if isinstance(error, InvalidObjectState):
            operation_store.set_state(connection, row["experiment_id"], "active")

    @staticmethod
    def _forget(connection: Connection, experiment_id: int) -> None:
        file_store.forget(connection, experiment_id)
        inspection_store.forget(connection, experiment_id)
        operation_store.forget_members(connection, experiment_id)
        deleted_store.purged(connection, experiment_id)

    def listed(self, principal: Principal, station: str) -> list[dict[str, Any]]:
        """Return the station's deleted experiments that can be restored, the one purged next last.

        :returns: short records with ``deletedTime``, ``purgeTime`` (seconds), their ``...Timestamp`` texts,
            ``countFiles``, ``countBytes``. :raises ObjectNotFound: none the caller manages.
        """
        if not principal.manages(station):
            raise ObjectNotFound(f"Station {station[:80]!a} does not exist.")
        with self._store.transaction() as connection:
            return [_shown(connection, row) for row in deleted_store.at_station(connection, station)]

    def restore(self, principal: Principal, experiment_id: int, new_name: str | None = None) -> dict[str, Any]:
        """Restore a deleted experiment with its files and members; nothing is published into it meanwhile.

        :param new_name: if its name is used by another one by now.
        :returns: the operation, done or under way. :raises ObjectNotFound: none such can be restored.
        :raises ObjectAlreadyExists: the name is taken.
        """
        if new_name:
            rules.object_name(new_name)
        name, station = new_name or "", ""
        try:
            with self._store.transaction() as connection:
                row = self._required(connection, experiment_id, principal)
                name, station = new_name or row["name"], row["station_name"]
                if operation_store.unfinished(connection, row["id"]):
                    raise InvalidObjectState(f"Experiment {row['name']!a} is being purged; it cannot be restored.")
                directory = str(Path(row["storage_directory"]).with_name(name))
                lock(connection, CREATE_LOCK, row["storage_id"])
                refuse_nesting(connection, name, directory, Path(row["storage_root"]))
                columns = {"name": name, "storage_directory": directory}
                operation_store.set_state(connection, row["id"], "restoring", **columns)
                former = {"name": row["name"], "directory": row["storage_directory"]}
                operation_id = self._operations.submit(
                    connection, RESTORE, row["id"], principal.username, former=former
                )
        except IntegrityError as error:
            raise name_taken(error, name, station, "give another one (newName)") from None
        return self._operations.run(operation_id)

    def _restore(self, row: RowMapping, progress: Progress) -> Finish:
        number, former = row["experiment_id"], row["details"]["former"]
        owner = self._owners.of_experiment(row)
        relocation.bring_back(row["storage_root"], former["directory"], number, row["storage_directory"], owner)

        def finish(connection: Connection) -> None:
            operation_store.set_state(connection, number, "active", deleted=None, purge_after=None)
            what = {"formerName": former["name"]} if former["name"] != row["experiment_name"] else {}
            audit.record(
                connection, "experiment.restored", _of(row), experimentId=number, askedBy=row["username"], **what
            )

        return finish

    @staticmethod
    def _undo_restore(connection: Connection, row: RowMapping, error: DmException) -> None:
        former = row["details"]["former"]
        columns: dict[str, Any] = {"name": former["name"], "storage_directory": former["directory"]}
        # Somebody wants it: leave time to find out what is wrong.
        columns["purge_after"] = datetime.now(UTC) + _GRACE_AFTER_TRY
        operation_store.set_state(connection, row["experiment_id"], "deleted", **columns)

    def purge(self, principal: Principal, experiment_id: int) -> dict[str, Any]:
        """Remove a deleted experiment for good, before its time.

        :returns: the operation. :raises ObjectNotFound: no such deleted experiment.
        """
        with self._store.transaction() as connection:
            row = self._required(connection, experiment_id, principal)
            if running := operation_store.unfinished(connection, row["id"]):
                return record(running[0])
            operation_id = self._operations.submit(connection, PURGE, row["id"], principal.username)
            audit.record(connection, "experiment.purge", _name(row), experimentId=row["id"])
        return self._operations.wake(operation_id)

    def purge_due(self) -> int:
        """Ask for the purge of what was kept long enough; return how many."""
        asked = []
        with self._store.transaction() as connection:
            for row in deleted_store.due(connection):
                if not operation_store.unfinished(connection, row["id"]):
                    asked.append(self._operations.submit(connection, PURGE, row["id"], "housekeeper"))
        for operation_id in asked:
            self._operations.wake(operation_id)
        return len(asked)

    def _purge(self, row: RowMapping, progress: Progress) -> Finish:
        relocation.discard(row["storage_root"], row["storage_directory"], row["experiment_id"])

        def finish(connection: Connection) -> None:
            self._forget(connection, row["experiment_id"])
            audit.record(
                connection,
                "experiment.purged",
                _of(row),
                experimentId=row["experiment_id"],
                askedBy=row["username"],
            )

        return finish

    @staticmethod
    def _undo_purge(connection: Connection, row: RowMapping, error: DmException) -> None:
        deleted_store.postpone(connection, row["experiment_id"], _GRACE_AFTER_TRY)

    @staticmethod
    def _required(connection: Connection, experiment_id: int, principal: Principal) -> RowMapping:
        row = deleted_store.by_id(connection, experiment_id)
        if row is None or not principal.manages(row["station_name"]):
            raise ObjectNotFound(f"Deleted experiment with id {experiment_id} does not exist.")
        return row


def _shown(connection: Connection, row: RowMapping) -> dict[str, Any]:
    count, size = file_store.totals(connection, row["id"])
    shown = experiment_records.short(row) | {"countFiles": count, "countBytes": size}
    for key, column in (("deleted", "deleted"), ("purge", "purge_after")):
        seconds = row[column].timestamp()
        shown |= {f"{key}Time": seconds, f"{key}Timestamp": timestamps.text(seconds)}
    return shown


def _name(row: RowMapping) -> str:
    return f"{row['name']}/{row['station_name']}"


def _of(row: RowMapping) -> str:
    return f"{row['experiment_name']}/{row['station_name']}"
