"""SQL about inspections: whose turn it is, how far a round is, what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from dm.site.database.tables import experiments, inspection_findings, inspections, published_files, stations
from dm.site.storage.experiment_store import with_experiment
from dm.site.storage.file_store import path_key

MOST_FINDINGS = 10_000  # kept of one experiment; all are counted

_CLAIM = text(
    "UPDATE inspections i SET lease_owner = :owner, lease_until = clock_timestamp() + make_interval(secs => :lease),"
    " options = CASE WHEN started IS NULL THEN asked_options ELSE options END,"
    " asked = CASE WHEN started IS NULL THEN NULL ELSE asked END,"
    " asked_options = CASE WHEN started IS NULL THEN '{}'::jsonb ELSE asked_options END,"
    " counts = CASE WHEN started IS NULL THEN '{}'::jsonb ELSE counts END,"
    " position = CASE WHEN started IS NULL THEN '{}'::jsonb ELSE position END,"
    " started = coalesce(started, clock_timestamp())"
    " WHERE experiment_id = (SELECT c.experiment_id FROM inspections c JOIN experiments e ON e.id = c.experiment_id"
    "  WHERE e.state = 'active'"
    "   AND (c.lease_until IS NULL OR c.lease_until < clock_timestamp() OR c.lease_owner = :owner)"
    "   AND (c.started IS NOT NULL OR c.asked IS NOT NULL)"
    "  ORDER BY (c.asked IS NOT NULL AND c.asked_by <> '') DESC, c.started IS NULL, c.asked LIMIT 1)"
    " AND NOT EXISTS (SELECT 1 FROM inspections o WHERE o.lease_until > clock_timestamp() AND o.lease_owner <> :owner)"
    " RETURNING experiment_id"
)
_PLAN = text(
    "INSERT INTO inspections (experiment_id, asked, asked_by, asked_options)"
    " SELECT e.id, clock_timestamp(), '', CASE WHEN :read_days > 0"
    "   AND coalesce(i.read_ended, e.create_date) < now() - make_interval(secs => :read_days * 86400.0)"
    "   THEN '{\"readAgain\": true}'::jsonb ELSE '{}'::jsonb END"
    " FROM experiments e LEFT JOIN inspections i ON i.experiment_id = e.id"
    " WHERE e.state = 'active' AND i.started IS NULL AND i.asked IS NULL"
    "  AND coalesce(i.ended, e.create_date) < now() - make_interval(secs => :days * 86400.0)"
    " ORDER BY coalesce(i.ended, e.create_date) LIMIT 1"
    " ON CONFLICT (experiment_id) DO UPDATE SET asked = excluded.asked, asked_by = '',"
    "  asked_options = excluded.asked_options WHERE inspections.started IS NULL AND inspections.asked IS NULL"
)


@dataclass(frozen=True)
class Finding:
    """Something wrong with one path below the experiment's directory.

    :param repaired: it was set right at once.
    """

    path: bytes
    kind: str
    detail: str = ""
    repaired: bool = False


def ask(connection: Connection, experiment_id: int, username: str, options: dict[str, Any]) -> RowMapping:
    """Note that somebody wants a round and return the row; it is one more than any under way."""
    statement = upsert(inspections).values(
        experiment_id=experiment_id, asked=func.clock_timestamp(), asked_by=username, asked_options=options
    )
    statement = statement.on_conflict_do_update(
        index_elements=["experiment_id"],
        set_={
            "asked": func.coalesce(inspections.c.asked, func.clock_timestamp()),
            "asked_by": username,
            "asked_options": inspections.c.asked_options.op("||")(statement.excluded.asked_options)
            if options
            else inspections.c.asked_options,
        },
    )
    connection.execute(statement)
    row = get(connection, experiment_id)
    if row is None:
        raise LookupError(experiment_id)
    return row


def plan(connection: Connection, days: float, read_days: float) -> None:
    """Note the experiment that was not looked through for longest, if that is more than so many days ago."""
    connection.execute(_PLAN, {"days": days, "read_days": read_days})


def claim(connection: Connection, owner: str, lease_seconds: float) -> int | None:
    """Take the experiment whose turn it is; ``None``: none, or another process is at one.

    Call it holding the inspection lock.
    """
    return connection.execute(_CLAIM, {"owner": owner, "lease": lease_seconds}).scalar_one_or_none()


def is_wanted(connection: Connection) -> bool:
    """Whether somebody waits for a round that has not begun."""
    statement = select(inspections.c.experiment_id).where(
        inspections.c.started.is_(None), inspections.c.asked.is_not(None), inspections.c.asked_by != ""
    )
    return connection.execute(statement.limit(1)).first() is not None


def hold(connection: Connection, experiment_id: int, owner: str, lease_seconds: float) -> bool:
    """Keep the lease; ``False``: somebody else has it."""
    return (
        connection.execute(
            update(inspections)
            .where(inspections.c.experiment_id == experiment_id, inspections.c.lease_owner == owner)
            .values(lease_until=func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds))
        ).rowcount
        == 1
    )


def release(connection: Connection, experiment_id: int, owner: str, error: str | None, seconds: float) -> None:
    """Give a round under way back, to go on with it in so many seconds."""
    connection.execute(
        update(inspections)
        .where(inspections.c.experiment_id == experiment_id, inspections.c.lease_owner == owner)
        .values(
            lease_owner=None,
            lease_until=func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds) if seconds else None,
            last_error=error,
        )
    )


def note(connection: Connection, experiment_id: int, position: dict[str, Any], counts: dict[str, int]) -> None:
    """Note how far a round is."""
    connection.execute(
        update(inspections)
        .where(inspections.c.experiment_id == experiment_id)
        .values(position=position, counts=counts, last_error=None)
    )


def finish(connection: Connection, row: RowMapping, counts: dict[str, int], read_again: bool) -> None:
    """End a round: what it no longer found is forgotten."""
    connection.execute(
        inspection_findings.delete().where(
            inspection_findings.c.experiment_id == row["experiment_id"],
            inspection_findings.c.round != row["rounds"] + 1,
        )
    )
    values: dict[str, Any] = {"ended": func.clock_timestamp(), "counts": counts, "rounds": row["rounds"] + 1}
    if read_again:
        values["read_ended"] = func.clock_timestamp()
    connection.execute(
        update(inspections)
        .where(inspections.c.experiment_id == row["experiment_id"])
        .values(**values, started=None, options={}, position={}, lease_owner=None, lease_until=None, last_error=None)
    )


def add_findings(connection: Connection, experiment_id: int, number: int, found: Sequence[Finding]) -> None:
    """Keep findings of a round; those known before keep the time they were found first."""
    if not found:
        return
    kept = connection.execute(
        select(func.count())
        .select_from(inspection_findings)
        .where(inspection_findings.c.experiment_id == experiment_id, inspection_findings.c.round == number)
    ).scalar_one()
    room = {(one.path, one.kind): one for one in found}
    for one in list(room.values())[: max(MOST_FINDINGS - kept, 0)]:
        statement = upsert(inspection_findings).values(
            experiment_id=experiment_id,
            path_key=path_key(one.path),
            path=one.path,
            kind=one.kind,
            detail=one.detail[:1000],
            round=number,
            repaired=func.clock_timestamp() if one.repaired else None,
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["experiment_id", "path_key", "kind"],
                set_={"detail": statement.excluded.detail, "round": number, "repaired": statement.excluded.repaired},
            )
        )


def mark_damaged(connection: Connection, row: RowMapping, damaged: bool) -> None:
    """Note that a published file is not what was verified, or that it is so again; not if it was replaced since."""
    connection.execute(
        update(published_files)
        .where(
            published_files.c.experiment_id == row["experiment_id"],
            published_files.c.id == row["id"],
            published_files.c.version == row["version"],
        )
        .values(damaged=func.coalesce(published_files.c.damaged, func.clock_timestamp()) if damaged else None)
    )


def _joined() -> Select[Any]:
    return with_experiment(
        inspections,
        experiments.c.name.label("experiment_name"),
        experiments.c.state.label("experiment_state"),
        stations.c.name.label("station_name"),
    )


def get(connection: Connection, experiment_id: int) -> RowMapping | None:
    """Return the inspection of an experiment, with ``experiment_name`` and ``station_name``."""
    statement = _joined().where(inspections.c.experiment_id == experiment_id)
    return connection.execute(statement).mappings().one_or_none()


def at_station(connection: Connection, station_id: int) -> Sequence[RowMapping]:
    """Return the inspections of a station's experiments that are not deleted, by experiment."""
    statement = (
        _joined()
        .where(experiments.c.station_id == station_id, experiments.c.state != "deleted")
        .order_by(inspections.c.experiment_id)
    )
    return connection.execute(statement).mappings().all()


def findings(connection: Connection, experiment_id: int, after: int, limit: int) -> Sequence[RowMapping]:
    """Return a page of what is wrong, in the order it was found first."""
    statement = (
        select(inspection_findings)
        .where(inspection_findings.c.experiment_id == experiment_id, inspection_findings.c.id > after)
        .order_by(inspection_findings.c.id)
        .limit(limit)
    )
    return connection.execute(statement).mappings().all()


def open_findings(connection: Connection) -> dict[str, tuple[int, int]]:
    """Return, by kind, how many findings are not repaired and in how many experiments that are not deleted."""
    statement = (
        select(
            inspection_findings.c.kind,
            func.count(),
            func.count(func.distinct(inspection_findings.c.experiment_id)),
        )
        .join(experiments, experiments.c.id == inspection_findings.c.experiment_id)
        .where(inspection_findings.c.repaired.is_(None), experiments.c.state == "active")
        .group_by(inspection_findings.c.kind)
    )
    return {kind: (count, among) for kind, count, among in connection.execute(statement)}


def forget(connection: Connection, experiment_id: int) -> None:
    """Remove what is known of an experiment that is gone."""
    connection.execute(inspection_findings.delete().where(inspection_findings.c.experiment_id == experiment_id))
    connection.execute(inspections.delete().where(inspections.c.experiment_id == experiment_id))


def overdue(connection: Connection, days: float) -> int:
    """Return how many active experiments were not looked through for so many days."""
    statement = text(
        "SELECT count(*) FROM experiments e LEFT JOIN inspections i ON i.experiment_id = e.id"
        " WHERE e.state = 'active'"
        " AND coalesce(i.ended, e.create_date) < now() - make_interval(secs => :days * 86400.0)"
    )
    return int(connection.execute(statement, {"days": days}).scalar_one())


def own_numbers(connection: Connection) -> int:
    """Return how many active experiments have a group number of their own."""
    statement = (
        select(func.count())
        .select_from(experiments)
        .where(experiments.c.gid.is_not(None), experiments.c.state == "active")
    )
    return int(connection.execute(statement).scalar_one())
