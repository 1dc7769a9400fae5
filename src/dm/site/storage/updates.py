"""Changing an experiment; a new name or root path moves its directory along, files and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from dm.common.errors import DmException, InvalidObjectState
from dm.common.web.routes import Principal
from dm.site import rules
from dm.site.database import registry_store
from dm.site.database.store import CREATE_LOCK, Store, lock
from dm.site.identity import audit
from dm.site.storage import experiment_store, layout, operation_store, relocation
from dm.site.storage.changes import Changes
from dm.site.storage.directories import Owners
from dm.site.storage.experiments import Reference, check_dates, find, full, name_taken, refuse_nesting
from dm.site.storage.operations import Finish, Kind, Operations, Progress, refuse_busy

RENAME = "renameExperiment"


class Updates:
    """The use case, and the work itself."""

    def __init__(self, store: Store, owners: Owners, operations: Operations) -> None:
        self._store = store
        self._owners = owners
        self._operations = operations
        operations.register(RENAME, Kind(self._rename, self._undo))

    def update(
        self, principal: Principal, reference: Reference, changes: Changes, new_name: str | None = None
    ) -> dict[str, Any]:
        """Change an experiment.

        Another name or root path renames its directory, which takes an instant however much is in it.

        :returns: the full record.
        :raises InvalidObjectState: its directory would have to move, and DAQs, uploads or jobs run or something is in
            the way; nothing was changed. :raises ObjectAlreadyExists: the new name is taken.
        """
        values, operation_id = changes.columns(), ""
        try:
            with self._store.transaction() as connection:
                row = find(connection, reference, lock=True)
                if row["state"] != "active":
                    raise InvalidObjectState(f"Experiment {row['name']!a} is {row['state']} now; it cannot be changed.")
                if changes.type_name:
                    values["type_id"] = registry_store.required(connection, "experiment type", changes.type_name)["id"]
                check_dates(values.get("start_date", row["start_date"]), values.get("end_date", row["end_date"]))
                moved = self._plan(connection, row, changes.root_path, new_name)
                if values or moved:
                    experiment_store.change(connection, row["id"], values | moved)
                    audit.record(
                        connection, "experiment.updated", f"{row['name']}/{row['station_name']}",
                        experimentId=row["id"], changed=sorted(values | moved), newName=new_name,
                    )  # fmt: skip
                if moved:
                    operation_store.set_state(connection, row["id"], "moving")
                    former = {key: row[key] for key in moved}
                    operation_id = self._operations.submit(
                        connection, RENAME, row["id"], principal.username, former=former
                    )
        except IntegrityError as error:
            raise name_taken(error, new_name or "", reference.station or "") from None
        if operation_id:
            ended = self._operations.run(operation_id)
            if ended["status"] == "failed":
                raise InvalidObjectState(ended["errorMessage"])
        with self._store.transaction() as connection:
            return full(connection, find(connection, Reference(id=row["id"])))

    @staticmethod
    def _plan(connection: Connection, row: RowMapping, root_path: str | None, new_name: str | None) -> dict[str, Any]:
        """Return the columns to change for a new name or root path; nothing if neither is new."""
        name = rules.object_name(new_name) if new_name else row["name"]
        below = row["root_path"] if root_path is None else rules.root_path(root_path)
        if (name, below) == (row["name"], row["root_path"]):
            return {}
        refuse_busy(connection, row, "; its directory has to move")
        if below == row["root_path"]:
            directory = str(Path(row["storage_directory"]).with_name(name))
        else:
            station = registry_store.required(connection, "station", row["station_name"])
            facts = layout.Facts(row["station_name"], name, row["type_name"], below, row["start_date"])
            directory = layout.directory(row["storage_root"], station["path_template"], facts)
        lock(connection, CREATE_LOCK, row["storage_id"])
        refuse_nesting(connection, name, directory, Path(row["storage_root"]))
        return {"name": name, "root_path": below, "storage_directory": directory}

    def _rename(self, row: RowMapping, progress: Progress) -> Finish:
        number, former = row["experiment_id"], row["details"]["former"]["storage_directory"]
        if former != row["storage_directory"]:
            owner = self._owners.of_experiment(row)
            relocation.move(row["storage_root"], former, row["storage_directory"], number, owner)
            relocation.forget_passages(row["storage_root"], former)
        return lambda connection: operation_store.set_state(connection, number, "active")

    @staticmethod
    def _undo(connection: Connection, row: RowMapping, error: DmException) -> None:
        operation_store.set_state(connection, row["experiment_id"], "active", **row["details"]["former"])
