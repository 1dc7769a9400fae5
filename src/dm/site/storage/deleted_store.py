"""SQL about deleted experiments that can still be restored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection, RowMapping, func, select, text, update

from dm.site.database.tables import experiments, published_files, stations
from dm.site.storage.experiment_store import joined

_RECOVERABLE = (experiments.c.state == "deleted") & experiments.c.purged.is_(None)


def by_id(connection: Connection, experiment_id: int) -> RowMapping | None:
    """Return and lock a deleted experiment, joined as live ones are."""
    if not 0 < experiment_id < 1 << 31:
        return None
    statement = joined().where(experiments.c.id == experiment_id, _RECOVERABLE).with_for_update(of=experiments)
    return connection.execute(statement).mappings().one_or_none()


def at_station(connection: Connection, station: str) -> Sequence[RowMapping]:
    """Return a station's deleted experiments, the one purged next last."""
    if "\0" in station:
        return []
    statement = joined().where(stations.c.name == station, _RECOVERABLE)
    return connection.execute(statement.order_by(experiments.c.purge_after.desc())).mappings().all()


def due(connection: Connection) -> Sequence[RowMapping]:
    """Return and lock those whose time has come, and nobody else is at."""
    statement = joined().where(_RECOVERABLE, experiments.c.purge_after <= func.now())
    return connection.execute(statement.with_for_update(of=experiments, skip_locked=True)).mappings().all()


def purged(connection: Connection, experiment_id: int) -> None:
    """Note that nothing is left of it."""
    connection.execute(update(experiments).where(experiments.c.id == experiment_id).values(purged=func.now()))


def postpone(connection: Connection, experiment_id: int, by: timedelta) -> None:
    """Purge it so much later from now."""
    connection.execute(
        update(experiments)
        .where(experiments.c.id == experiment_id)
        .values(purge_after=func.now() + text("make_interval(secs => :s)").bindparams(s=by.total_seconds()))
    )


def waiting(connection: Connection) -> tuple[int, int, float]:
    """Return how many deleted experiments wait to be purged, their bytes, and the time (epoch) of the next purge."""
    sizes = (
        select(func.count(experiments.c.id.distinct()), func.coalesce(func.sum(published_files.c.size), 0))
        .select_from(experiments)
        .outerjoin(published_files, published_files.c.experiment_id == experiments.c.id)
        .where(_RECOVERABLE)
    )
    count, size = connection.execute(sizes).one()
    following = select(func.extract("epoch", func.min(experiments.c.purge_after))).where(_RECOVERABLE)
    return int(count), int(size), float(connection.execute(following).scalar_one() or 0.0)
