"""SQL about batches of files on their way from staging to the experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from dm.site.database.tables import batches, experiments, stations, storages
from dm.site.storage.experiment_store import with_experiment

# Statements of the way every batch takes are made once: making them costs more than the database needs to answer.
_THIS = batches.c.id == bindparam("batch")
_GET = with_experiment(
    batches,
    stations.c.name.label("station_name"),
    experiments.c.storage_directory,
    experiments.c.auth_group_name,
    experiments.c.gid,
    experiments.c.state.label("experiment_state"),
    storages.c.host.label("storage_host"),
).where(_THIS)
_GET_LOCKED = _GET.with_for_update(of=batches)
_STATE = select(batches.c.state).where(_THIS)
_QUEUE = (
    update(batches)
    .where(_THIS)
    .values(
        request=bindparam("text"),
        request_hash=bindparam("hash"),
        state="queued",
        queued=func.clock_timestamp(),
    )
)
_CLAIM = text(
    "UPDATE batches SET state = 'publishing', lease_owner = :owner, fence = fence + 1,"
    " attempts = attempts + 1, lease_until = clock_timestamp() + make_interval(secs => :seconds)"
    " WHERE id = (SELECT id FROM batches WHERE state = 'queued'"
    "              OR (state = 'publishing' AND lease_until < clock_timestamp())"
    "             ORDER BY queued LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id::text"
)
_HOLD = (
    select(batches.c.id)
    .where(_THIS, batches.c.fence == bindparam("number"), batches.c.state == "publishing")
    .with_for_update()
)
_FINISH = (
    update(batches)
    .where(_THIS)
    .values(state="committed", result=bindparam("text"), ended=func.clock_timestamp(), lease_owner=None)
)


def get(connection: Connection, batch_id: str, lock: bool = False) -> RowMapping | None:
    """Return a batch with its experiment's ``station_name`` and ``storage_directory``."""
    return connection.execute(_GET_LOCKED if lock else _GET, {"batch": batch_id}).mappings().one_or_none()


def add(connection: Connection, values: dict[str, Any]) -> bool:
    """Insert a batch; ``False`` if there is one of that id."""
    return connection.execute(upsert(batches).values(values).on_conflict_do_nothing()).rowcount == 1


def state(connection: Connection, batch_id: str) -> str | None:
    """Return only the state of a batch (cheap: the documents stay where they are)."""
    return connection.execute(_STATE, {"batch": batch_id}).scalar_one_or_none()


def queue(connection: Connection, batch_id: str, request: str, request_hash: bytes) -> None:
    """Hand an open batch over to the publishers."""
    connection.execute(_QUEUE, {"batch": batch_id, "text": request, "hash": request_hash})


def abandon(connection: Connection, batch_id: str) -> None:
    """End a batch without publishing; one that is being published, or has ended, stays as it is."""
    connection.execute(
        update(batches)
        .where(batches.c.id == batch_id, batches.c.state.in_(("open", "queued")))
        .values(state="abandoned", ended=func.now(), request=None)
    )


def claim(connection: Connection, owner: str, lease_seconds: float) -> str | None:
    """Take the batch that waits longest, or one whose publisher went silent, and return its id."""
    return connection.execute(_CLAIM, {"owner": owner, "seconds": lease_seconds}).scalar_one_or_none()


def renew(connection: Connection, claims: Sequence[tuple[str, int]], lease_seconds: float) -> None:
    """Extend the leases of (batch id, fence) pairs that are still ours."""
    connection.execute(
        text(
            "UPDATE batches SET lease_until = clock_timestamp() + make_interval(secs => :seconds)"
            " WHERE id = :id AND fence = :fence AND state = 'publishing'"
        ),
        [{"id": batch_id, "fence": fence, "seconds": lease_seconds} for batch_id, fence in claims],
    )


def release(connection: Connection, batch_id: str, fence: int, delay: float, error: str) -> None:
    """Give a claimed batch back, to be tried again after ``delay`` seconds."""
    connection.execute(
        text(
            "UPDATE batches SET lease_until = clock_timestamp() + make_interval(secs => :delay), lease_owner = NULL,"
            " fence = fence + 1, last_error = :error WHERE id = :id AND fence = :fence AND state = 'publishing'"
        ),
        {"id": batch_id, "fence": fence, "delay": delay, "error": error[:2000]},
    )


def give_back(connection: Connection, batch_id: str, fence: int) -> None:
    """Queue a claimed batch again as if it had not been claimed, except that its fence stays raised."""
    connection.execute(
        text(
            "UPDATE batches SET state = 'queued', lease_owner = NULL, lease_until = NULL, attempts = attempts - 1,"
            " fence = fence + 1 WHERE id = :id AND fence = :fence AND state = 'publishing'"
        ),
        {"id": batch_id, "fence": fence},
    )


def publishing_owners(connection: Connection) -> Sequence[str]:
    """Return who holds claims now."""
    statement = select(batches.c.lease_owner).where(batches.c.state == "publishing").distinct()
    return [owner for owner in connection.execute(statement).scalars() if owner]


def expire(connection: Connection, owners: list[str]) -> int:
    """End the leases of owners known to be dead and return how many."""
    statement = (
        update(batches)
        .where(batches.c.state == "publishing", batches.c.lease_owner.in_(bindparam("owners", expanding=True)))
        .values(lease_until=text("clock_timestamp() - interval '1 second'"), lease_owner=None)
    )
    return connection.execute(statement, {"owners": owners}).rowcount


def hold(connection: Connection, batch_id: str, fence: int) -> bool:
    """Lock the row of our claim until the commit; ``False`` if it is not ours any more."""
    return connection.execute(_HOLD, {"batch": batch_id, "number": fence}).first() is not None


def finish(connection: Connection, batch_id: str, result: str) -> None:
    """Mark a batch committed, with the outcome of every file."""
    connection.execute(_FINISH, {"batch": batch_id, "text": result})


def backlog(connection: Connection) -> tuple[int, float]:
    """Return how many batches wait or are being published, and the age in seconds of the oldest."""
    row = connection.execute(
        text(
            "SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(queued)), 0)"
            " FROM batches WHERE state IN ('queued', 'publishing')"
        )
    ).one()
    return int(row[0]), float(row[1])


def unfinished(connection: Connection, experiment_id: int) -> int:
    """Return how many batches of an experiment are neither committed nor abandoned."""
    statement = (
        select(func.count())
        .select_from(batches)
        .where(batches.c.experiment_id == experiment_id, batches.c.state.in_(("open", "queued", "publishing")))
    )
    return int(connection.execute(statement).scalar_one())


def forsaken(connection: Connection, hours: float) -> Sequence[str]:
    """Return ids of batches opened longer ago than that and never handed over."""
    return (
        connection.execute(
            text(
                "SELECT id::text FROM batches WHERE state = 'open'"
                " AND created < now() - make_interval(secs => :seconds) ORDER BY created LIMIT 1000"
            ),
            {"seconds": hours * 3600},
        )
        .scalars()
        .all()
    )


def known_and_live(connection: Connection, batch_ids: list[str]) -> tuple[set[str], set[str]]:
    """Return which of the ids there are, and which of those are not ended."""
    rows = connection.execute(
        text("SELECT id::text, state FROM batches WHERE id = ANY(CAST(:ids AS uuid[]))"), {"ids": batch_ids}
    ).all()
    return {row.id for row in rows}, {row.id for row in rows if row.state not in ("committed", "abandoned")}


def forget_documents(connection: Connection, hours: float) -> int:
    """Drop request and result texts of batches ended longer ago than that; the manifest has it all."""
    return connection.execute(
        text(
            "UPDATE batches SET request = NULL, result = NULL WHERE ended < now() - make_interval(secs => :seconds)"
            " AND (request IS NOT NULL OR result IS NOT NULL)"
        ),
        {"seconds": hours * 3600},
    ).rowcount
