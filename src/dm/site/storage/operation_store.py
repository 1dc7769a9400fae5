"""SQL about asynchronous operations on experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, delete, func, insert, text, update

from dm.site.database.tables import experiment_roles, experiments, operations, stations, storages
from dm.site.storage.experiment_store import with_experiment


def add(connection: Connection, values: dict[str, Any]) -> None:
    """Insert an operation, status ``pending``."""
    connection.execute(insert(operations).values({**values, "status": "pending"}))


def _joined() -> Select[Any]:
    return with_experiment(
        operations,
        experiments.c.name.label("experiment_name"),
        experiments.c.state.label("experiment_state"),
        experiments.c.storage_directory,
        stations.c.name.label("station_name"),
        storages.c.root_directory.label("storage_root"),
    )


def get(connection: Connection, operation_id: str) -> RowMapping | None:
    """Return an operation, with its experiment's name, station and directories."""
    return connection.execute(_joined().where(operations.c.id == operation_id)).mappings().one_or_none()


def unfinished(connection: Connection, experiment_id: int | None = None) -> Sequence[RowMapping]:
    """Return operations that are pending or running, oldest first."""
    statement = _joined().where(operations.c.status.in_(("pending", "running"))).order_by(operations.c.submitted)
    if experiment_id is not None:
        statement = statement.where(operations.c.experiment_id == experiment_id)
    return connection.execute(statement).mappings().all()


def begin(connection: Connection, operation_id: str) -> None:
    """Note that it runs (again)."""
    connection.execute(
        update(operations)
        .where(operations.c.id == operation_id)
        .values(
            status="running",
            started=func.coalesce(operations.c.started, func.now()),
            attempts=operations.c.attempts + 1,
        )
    )


def end(connection: Connection, operation_id: str, error: str | None = None) -> None:
    """Note that it is done or has failed."""
    connection.execute(
        update(operations)
        .where(operations.c.id == operation_id)
        .values(status="failed" if error else "done", error_message=error, ended=func.now())
    )


def publishing(connection: Connection, experiment_id: int) -> int:
    """Return how many batches of the experiment are being published at this moment."""
    return int(
        connection.execute(
            text("SELECT count(*) FROM batches WHERE experiment_id = :id AND state = 'publishing'"),
            {"id": experiment_id},
        ).scalar_one()
    )


def abandon_batches(connection: Connection, experiment_id: int) -> None:
    """End all batches of the experiment that are not being published."""
    connection.execute(
        text(
            "UPDATE batches SET state = 'abandoned', ended = now(), request = NULL"
            " WHERE experiment_id = :id AND state IN ('open', 'queued')"
        ),
        {"id": experiment_id},
    )


def set_state(connection: Connection, experiment_id: int, state: str) -> None:
    """Set the experiment's state."""
    connection.execute(update(experiments).where(experiments.c.id == experiment_id).values(state=state))


def forget_members(connection: Connection, experiment_id: int) -> None:
    """Take all roles in the experiment."""
    connection.execute(delete(experiment_roles).where(experiment_roles.c.experiment_id == experiment_id))
