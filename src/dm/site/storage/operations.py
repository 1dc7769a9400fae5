"""Operations that take their time: deleting an experiment with all its files.

The request only marks the experiment; the housekeeper removes the directory and reports here.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping

from dm.common import timestamps
from dm.common.errors import DmException, InvalidObjectState, ObjectNotFound
from dm.common.web.routes import Principal
from dm.site.database.store import Store
from dm.site.identity import audit
from dm.site.storage import batch_store, experiment_store, file_store, grant_store, grants, operation_store
from dm.site.storage.batches import Signal
from dm.site.storage.directories import ExperimentDirectory, Owner, opened_directory
from dm.site.storage.experiments import Reference, find

LOG = logging.getLogger(__name__)
DELETE = "deleteExperiment"
_ATTEMPTS = 5


def record(row: RowMapping) -> dict[str, Any]:
    """Return the published record of an operation."""
    result = {
        "id": row["id"],
        "name": row["name"],
        "experimentId": row["experiment_id"],
        "experimentName": row["experiment_name"],
        "experimentStationName": row["station_name"],
        "owner": row["username"],
        "status": row["status"],
        "errorMessage": row["error_message"] or "",
    }
    for key, column in (("submission", "submitted"), ("start", "started"), ("end", "ended")):
        if row[column] is not None:
            seconds = row[column].timestamp()
            result |= {f"{key}Time": seconds, f"{key}Timestamp": timestamps.text(seconds)}
    return result


class Operations:
    """The use cases, and the work itself.

    :param work: rung when there is something to do.
    """

    def __init__(self, store: Store, work: Signal) -> None:
        self._store = store
        self._work = work

    def delete_experiment(self, principal: Principal, reference: Reference, force: bool = False) -> dict[str, Any]:
        """Begin to delete an experiment with all its files; again returns the operation that runs.

        From here on nobody can publish into it; its name is free when the operation is done.

        :param force: also while DAQs or uploads run; their grants are revoked.
        :returns: the operation: id, name, experimentName, status ``pending`` ...
        :raises InvalidObjectState: DAQs, uploads or jobs hold grants, or batches are on their way.
        """
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            if row["state"] == "deleting":
                running = operation_store.unfinished(connection, row["id"])
                if running:
                    return record(running[0])
            elif not force:
                holders, batches = (
                    experiment_store.live_grants(connection, row["id"]),
                    batch_store.unfinished(connection, row["id"]),
                )
                if holders or batches:
                    raise InvalidObjectState(
                        f"Experiment {row['name']!a} has {holders} running DAQs, uploads or jobs and {batches} batches "
                        "on their way; stop them first, or delete with force."
                    )
            operation_store.set_state(connection, row["id"], "deleting")
            grant_store.revoke_all(connection, row["id"])
            operation_store.abandon_batches(connection, row["id"])
            operation_id = str(uuid.uuid4())
            operation_store.add(
                connection,
                {"id": operation_id, "name": DELETE, "experiment_id": row["id"], "username": principal.username},
            )
            added = operation_store.get(connection, operation_id)
            name = f"{row['name']}/{row['station_name']}"
            audit.record(connection, "experiment.deletion", name, experimentId=row["id"], force=force)
        self._work.ring()
        if added is None:
            raise ObjectNotFound(f"Operation {operation_id} does not exist.")
        return record(added)

    def get(self, principal: Principal, operation_id: str) -> dict[str, Any]:
        """Return an operation at a station the caller manages. :raises ObjectNotFound: none such."""
        operation_id = grants.uuid_text(operation_id, "Operation id")
        with self._store.transaction() as connection:
            row = operation_store.get(connection, operation_id)
        if row is None or not principal.manages(row["station_name"]):
            raise ObjectNotFound(f"Operation {operation_id} does not exist.")
        return record(row)

    def work(self) -> int:
        """Carry out what is pending and return how many operations ended; only one process may do so at a time."""
        with self._store.transaction() as connection:
            rows = operation_store.unfinished(connection)
        return sum(self._delete(row) for row in rows)

    def _delete(self, row: RowMapping) -> bool:
        with self._store.transaction() as connection:
            if operation_store.publishing(connection, row["experiment_id"]):
                return False  # a batch claimed before the deletion was asked for; its end is near
            operation_store.begin(connection, row["id"])
        try:
            remove_directory(row["storage_root"], row["storage_directory"], row["experiment_id"])
        except InvalidObjectState as error:
            return self._failed(row, str(error), "active")
        except (DmException, OSError) as error:
            LOG.warning("deleting experiment %d: %s", row["experiment_id"], error)
            if row["attempts"] + 1 < _ATTEMPTS:
                return False
            return self._failed(row, f"Directory {row['storage_directory']!a} cannot be removed: {error}", "deleting")
        with self._store.transaction() as connection:
            file_store.forget(connection, row["experiment_id"])
            operation_store.forget_members(connection, row["experiment_id"])
            operation_store.set_state(connection, row["experiment_id"], "deleted")
            operation_store.end(connection, row["id"])
            name = f"{row['experiment_name']}/{row['station_name']}"
            with audit.acting("housekeeper"):
                audit.record(
                    connection, "experiment.deleted", name, experimentId=row["experiment_id"], askedBy=row["username"]
                )
        return True

    def _failed(self, row: RowMapping, error: str, state: str) -> bool:
        with self._store.transaction() as connection:
            operation_store.set_state(connection, row["experiment_id"], state)
            operation_store.end(connection, row["id"], error)
        LOG.error("deletion of experiment %d failed: %s", row["experiment_id"], error)
        return True


def remove_directory(storage_root: str, storage_directory: str, experiment_id: int) -> None:
    """Remove an experiment's directory, after proof that it is that one and nothing else.

    It is renamed to ``.deleted-<id>`` first, so that nobody meets a half-removed tree, and removed without following
    links. One that is gone already is fine.

    :raises InvalidObjectState: the directory lies outside the storage, is reached through a link, or bears no mark, or
        another mark, than this experiment's; nothing was touched.
    """
    directory, root = Path(storage_directory), Path(storage_root)
    if root not in directory.parents or os.path.realpath(directory.parent) != str(directory.parent):
        raise InvalidObjectState(f"Directory {storage_directory!a} is not plainly beneath {storage_root!a}; kept.")
    hidden = f".deleted-{experiment_id}"
    if not directory.parent.is_dir():
        return
    with opened_directory(str(directory.parent)) as parent:
        if os.path.lexists(directory):
            mark = ExperimentDirectory(storage_directory, Owner()).marker()
            if mark is None or mark.get("experimentId") != experiment_id:
                raise InvalidObjectState(
                    f"Directory {storage_directory!a} does not bear the mark of experiment {experiment_id}; kept."
                )
            os.rename(directory.name, hidden, src_dir_fd=parent, dst_dir_fd=parent)
            os.fsync(parent)
        if os.path.lexists(directory.parent / hidden):
            shutil.rmtree(hidden, dir_fd=parent)
            os.fsync(parent)
