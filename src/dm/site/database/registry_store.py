"""SQL about the short lists: stations, storages, experiment types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, delete, func, insert, select, update

from dm.common.errors import ObjectNotFound
from dm.site.database.tables import experiment_types, experiments, station_roles, stations, storages

TABLES: dict[str, Table] = {"station": stations, "storage": storages, "experiment type": experiment_types}


def rows(connection: Connection, kind: str) -> Sequence[RowMapping]:
    """Return all of a kind (a key of :data:`TABLES`), newest last."""
    table = TABLES[kind]
    return connection.execute(select(table).order_by(table.c.id)).mappings().all()


def by_name(connection: Connection, kind: str, name: str) -> RowMapping | None:
    """Return one by name."""
    table = TABLES[kind]
    if "\0" in name:
        return None
    return connection.execute(select(table).where(table.c.name == name)).mappings().one_or_none()


def required(connection: Connection, kind: str, name: str) -> RowMapping:
    """Return one by name. :raises ObjectNotFound: unknown."""
    row = by_name(connection, kind, name)
    if row is None:
        raise ObjectNotFound(f"{kind.capitalize()} {name[:80]!a} does not exist.")
    return row


def add(connection: Connection, kind: str, values: dict[str, Any]) -> RowMapping:
    """Insert one. :raises IntegrityError: the name is taken."""
    table = TABLES[kind]
    return connection.execute(insert(table).values(values).returning(table)).mappings().one()


def change(connection: Connection, kind: str, identity: int, values: dict[str, Any]) -> RowMapping:
    """Change columns of one. :raises IntegrityError: the name is taken."""
    table = TABLES[kind]
    statement = update(table).where(table.c.id == identity).values(values).returning(table)
    return connection.execute(statement).mappings().one()


def experiments_of(connection: Connection, kind: str, identity: int) -> int:
    """Return how many experiments, deleted ones too, are of one."""
    column = experiments.c["type_id" if kind == "experiment type" else f"{kind}_id"]
    statement = select(func.count()).select_from(experiments).where(column == identity)
    return int(connection.execute(statement).scalar_one())


def remove(connection: Connection, kind: str, identity: int) -> None:
    """Delete one, a station with the roles at it. :raises IntegrityError: something still refers to it."""
    if kind == "station":
        connection.execute(delete(station_roles).where(station_roles.c.station_id == identity))
    table = TABLES[kind]
    connection.execute(delete(table).where(table.c.id == identity))
