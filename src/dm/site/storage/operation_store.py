"""SQL about asynchronous operations on experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, cast, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import JSONB

from dm.site.database.tables import experiment_roles, experiments, operations, stations, storages
from dm.site.storage.experiment_store import with_experiment

_UNFINISHED = operations.c.status.in_(("pending", "running"))


def add(connection: Connection, values: dict[str, Any]) -> None:
    """Insert an operation, status ``pending``."""
    connection.execute(insert(operations).values({**values, "status": "pending"}))


def _joined() -> Select[Any]:
    return with_experiment(
        operations,
        experiments.c.name.label("experiment_name"),
        experiments.c.state.label("experiment_state"),
        experiments.c.storage_directory,
        experiments.c.auth_group_name,
        experiments.c.gid,
        stations.c.name.label("station_name"),
        storages.c.root_directory.label("storage_root"),
    )


def get(connection: Connection, operation_id: str) -> RowMapping | None:
    """Return an operation, with its experiment's name, station and directories."""
    return connection.execute(_joined().where(operations.c.id == operation_id)).mappings().one_or_none()


def unfinished(connection: Connection, experiment_id: int, names: Sequence[str] = ()) -> Sequence[RowMapping]:
    """Return operations of an experiment that are pending or running, oldest first. :param names: only of these."""
    statement = _joined().where(_UNFINISHED, operations.c.experiment_id == experiment_id)
    if names:
        statement = statement.where(operations.c.name.in_(names))
    return connection.execute(statement.order_by(operations.c.submitted, operations.c.id)).mappings().all()


def listed(connection: Connection, names: Sequence[str], experiment_id: int | None, limit: int) -> Sequence[RowMapping]:
    """Return the newest operations of these names, newest last. :param experiment_id: only of this experiment."""
    statement = _joined().where(operations.c.name.in_(names))
    if experiment_id is not None:
        statement = statement.where(operations.c.experiment_id == experiment_id)
    rows = connection.execute(statement.order_by(operations.c.submitted.desc()).limit(limit)).mappings().all()
    return rows[::-1]


def due(connection: Connection) -> Sequence[tuple[str, int]]:
    """Return id and experiment of the first unfinished operation of each experiment, unless it waits; oldest first."""
    statement = text(
        "SELECT id::text, experiment_id FROM (SELECT DISTINCT ON (experiment_id) * FROM operations"
        " WHERE status IN ('pending', 'running') ORDER BY experiment_id, submitted, id) AS first"
        " WHERE not_before IS NULL OR not_before <= clock_timestamp() ORDER BY submitted"
    )
    return [(row.id, row.experiment_id) for row in connection.execute(statement)]


def is_first(connection: Connection, row: RowMapping) -> bool:
    """Whether no older operation of the experiment is unfinished."""
    return unfinished(connection, row["experiment_id"])[0]["id"] == row["id"]


def begin(connection: Connection, operation_id: str) -> bool:
    """Note that it runs (again); ``False`` if it ended this instant."""
    statement = (
        update(operations)
        .where(operations.c.id == operation_id, _UNFINISHED)
        .values(
            status="running",
            started=func.coalesce(operations.c.started, func.now()),
            attempts=operations.c.attempts + 1,
            not_before=None,
        )
    )
    return connection.execute(statement).rowcount == 1


def hold(connection: Connection, operation_id: str, attempt: int) -> bool:
    """Lock it until the commit; ``False`` if it ended, or this is not its last attempt any more."""
    statement = select(operations.c.id).where(
        operations.c.id == operation_id, operations.c.status == "running", operations.c.attempts == attempt
    )
    return connection.execute(statement.with_for_update()).first() is not None


def postpone(connection: Connection, operation_id: str, seconds: float, counts: bool) -> None:
    """Let it wait before it is tried again. :param counts: whether this was an attempt."""
    connection.execute(
        update(operations)
        .where(operations.c.id == operation_id)
        .values(
            not_before=func.clock_timestamp() + text("make_interval(secs => :seconds)").bindparams(seconds=seconds),
            attempts=operations.c.attempts - (0 if counts else 1),
        )
    )


def note(connection: Connection, operation_id: str, details: dict[str, Any]) -> None:
    """Add to the details, or replace there."""
    connection.execute(
        update(operations)
        .where(operations.c.id == operation_id)
        .values(details=operations.c.details.op("||")(cast(details, JSONB)))
    )


def end(connection: Connection, operation_id: str, error: str | None = None) -> None:
    """Note that it is done or has failed."""
    connection.execute(
        update(operations)
        .where(operations.c.id == operation_id)
        .values(status="failed" if error else "done", error_message=error, ended=func.clock_timestamp())
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


def set_state(connection: Connection, experiment_id: int, state: str, **columns: Any) -> None:
    """Set the experiment's state, and other columns."""
    connection.execute(update(experiments).where(experiments.c.id == experiment_id).values(state=state, **columns))


def forget_members(connection: Connection, experiment_id: int) -> None:
    """Take all roles in the experiment."""
    connection.execute(delete(experiment_roles).where(experiment_roles.c.experiment_id == experiment_id))
