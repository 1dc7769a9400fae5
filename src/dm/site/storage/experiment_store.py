"""SQL about experiments and their members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    bindparam,
    func,
    insert,
    select,
    update,
)

from dm.site.database.tables import (
    experiment_roles,
    experiment_types,
    experiments,
    grants,
    stations,
    storages,
    users,
)

_LIVE = experiments.c.state != "deleted"


def joined() -> Select[Any]:
    """Select experiments with names of station, type and storage."""
    return (
        select(
            experiments,
            stations.c.name.label("station_name"),
            stations.c.description.label("station_description"),
            experiment_types.c.name.label("type_name"),
            experiment_types.c.description.label("type_description"),
            storages.c.name.label("storage_name"),
            storages.c.description.label("storage_description"),
            storages.c.host.label("storage_host"),
            storages.c.root_directory.label("storage_root"),
        )
        .join(stations, stations.c.id == experiments.c.station_id)
        .join(experiment_types, experiment_types.c.id == experiments.c.type_id)
        .join(storages, storages.c.id == experiments.c.storage_id)
    )


def with_experiment(table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
    """Select rows of a table together with columns of their experiments, and of the stations and storages of these."""
    return (
        select(table, *columns)
        .join(experiments, experiments.c.id == table.c.experiment_id)
        .join(stations, stations.c.id == experiments.c.station_id)
        .join(storages, storages.c.id == experiments.c.storage_id)
    )


_BY_ID = joined().where(experiments.c.id == bindparam("experiment"), _LIVE)  # made once: every batch asks
_BY_ID_LOCKED = _BY_ID.with_for_update(of=experiments)


def by_id(connection: Connection, experiment_id: int, lock: bool = False) -> RowMapping | None:
    """Return an experiment that is not deleted, joined with station, type and storage.

    :param lock: nobody else changes it until the commit.
    """
    return connection.execute(_BY_ID_LOCKED if lock else _BY_ID, {"experiment": experiment_id}).mappings().one_or_none()


def by_name(connection: Connection, name: str, station: str, lock: bool = False) -> RowMapping | None:
    """Return an experiment that is not deleted; see :func:`by_id`."""
    if "\0" in name or "\0" in station:
        return None
    statement = joined().where(experiments.c.name == name, stations.c.name == station, _LIVE)
    if lock:
        statement = statement.with_for_update(of=experiments)
    return connection.execute(statement).mappings().one_or_none()


def stations_having(connection: Connection, name: str) -> Sequence[str]:
    """Return the names of the stations that have an experiment of this name."""
    if "\0" in name:
        return []
    statement = (
        select(stations.c.name)
        .join(experiments, experiments.c.station_id == stations.c.id)
        .where(experiments.c.name == name, _LIVE)
        .order_by(stations.c.name)
    )
    return connection.execute(statement).scalars().all()


def at_station(connection: Connection, station_id: int, member: str | None) -> Sequence[RowMapping]:
    """Return a station's experiments, newest last.

    :param member: only those this user is a member of; ``None``: all.
    """
    statement = joined().where(experiments.c.station_id == station_id, _LIVE).order_by(experiments.c.id)
    if member is not None:
        mine = (
            select(experiment_roles.c.experiment_id)
            .join(users, users.c.id == experiment_roles.c.user_id)
            .where(users.c.username == member)
        )
        statement = statement.where(experiments.c.id.in_(mine))
    return connection.execute(statement).mappings().all()


def is_member(connection: Connection, experiment_id: int, username: str, role: str | None = None) -> bool:
    """Whether the user has a role, or the role, in the experiment."""
    statement = (
        select(experiment_roles.c.role)
        .join(users, users.c.id == experiment_roles.c.user_id)
        .where(experiment_roles.c.experiment_id == experiment_id, users.c.username == username)
        .limit(1)
    )
    if role is not None:
        statement = statement.where(experiment_roles.c.role == role)
    return connection.execute(statement).first() is not None


def members(connection: Connection, experiment_id: int) -> Sequence[RowMapping]:
    """Return ``username`` and ``role`` of all members, by user name."""
    statement = (
        select(users.c.username, experiment_roles.c.role)
        .join(users, users.c.id == experiment_roles.c.user_id)
        .where(experiment_roles.c.experiment_id == experiment_id)
        .order_by(users.c.username, experiment_roles.c.role)
    )
    return connection.execute(statement).mappings().all()


def add(connection: Connection, values: dict[str, Any]) -> int:
    """Insert an experiment and return its number. :raises IntegrityError: name or directory is taken."""
    return int(connection.execute(insert(experiments).values(values).returning(experiments.c.id)).scalar_one())


def change(connection: Connection, experiment_id: int, values: dict[str, Any]) -> None:
    """Change columns. :raises IntegrityError: name or directory is taken."""
    connection.execute(
        update(experiments).where(experiments.c.id == experiment_id).values({**values, "update_date": func.now()})
    )


def directory_neighbours(connection: Connection, directory: str, ancestors: list[str]) -> Sequence[str]:
    """Return names of experiments whose directory would contain, or be contained in, this one."""
    statement = select(experiments.c.name).where(
        _LIVE,
        experiments.c.storage_directory.in_(ancestors)
        | func.starts_with(experiments.c.storage_directory, directory + "/"),
    )
    return connection.execute(statement).scalars().all()


def live_grants(connection: Connection, experiment_id: int) -> int:
    """Return how many grants of the experiment are not revoked."""
    statement = (
        select(func.count())
        .select_from(grants)
        .where(grants.c.experiment_id == experiment_id, grants.c.revoked.is_(None))
    )
    return int(connection.execute(statement).scalar_one())


def live_directories(connection: Connection) -> Sequence[str]:
    """Return the directories of all experiments that are not deleted."""
    return connection.execute(select(experiments.c.storage_directory).where(_LIVE)).scalars().all()
