"""SQL about what the facility said last: records in table ``facility_records``, and how their reading went.

How it went stands in the same table, under kind ``reading``, so that all processes of the site know it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, func, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert

from dm.site.database.store import FACILITY_LOCK, lock, try_lock
from dm.site.database.tables import facility_records, users

READING = "reading"
_table = facility_records
_CHUNK = 1000


def hold(connection: Connection, adapter: str, kind: str, wait: bool = False) -> bool:
    """Take the right to read a kind from an adapter, until the transaction ends; ``False`` if somebody else has it."""
    which = zlib.crc32(f"{adapter}/{kind}".encode()) & 0x7FFFFFFF
    if wait:
        lock(connection, FACILITY_LOCK, which)
        return True
    return try_lock(connection, FACILITY_LOCK, which)


def known(connection: Connection, adapter: str, kind: str, part: str) -> set[str]:
    """Return the keys of an adapter's records of a kind that begin with ``part``."""
    rows = connection.execute(
        select(_table.c.key).where(
            _table.c.adapter == adapter, _table.c.kind == kind, _table.c.key.startswith(part, autoescape=True)
        )
    )
    return set(rows.scalars())


def write(connection: Connection, adapter: str, kind: str, found: Mapping[str, Any], gone: set[str]) -> None:
    """Insert and change records, and remove those of the keys ``gone``."""
    items = [{"adapter": adapter, "kind": kind, "key": key, "record": record} for key, record in found.items()]
    for start in range(0, len(items), _CHUNK):
        statement = insert(_table).values(items[start : start + _CHUNK])
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["adapter", "kind", "key"],
                set_={"record": statement.excluded.record, "fetched": func.now()},
                where=_table.c.record.is_distinct_from(statement.excluded.record),
            )
        )
    keys = sorted(gone)
    for start in range(0, len(keys), _CHUNK):
        connection.execute(
            delete(_table).where(
                _table.c.adapter == adapter, _table.c.kind == kind, _table.c.key.in_(keys[start : start + _CHUNK])
            )
        )


def readings(connection: Connection) -> dict[tuple[str, str], dict[str, Any]]:
    """Return how the last reading of each adapter and kind went, as the cache wrote it."""
    rows = connection.execute(select(_table.c.adapter, _table.c.key, _table.c.record).where(_table.c.kind == READING))
    return {(row.adapter, row.key): row.record for row in rows}


def note(connection: Connection, adapter: str, kind: str, **values: Any) -> None:
    """Change how the last reading went; what is not given stays."""
    statement = insert(_table).values(adapter=adapter, kind=READING, key=kind, record=values)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["adapter", "kind", "key"],
            set_={"record": _table.c.record.op("||")(statement.excluded.record), "fetched": func.now()},
        )
    )


def records(connection: Connection, adapters: Sequence[str], kind: str) -> list[dict[str, Any]]:
    """Return all records of a kind, each key once: an earlier adapter's before a later one's."""
    statement = select(_table.c.adapter, _table.c.key, _table.c.record).where(
        _table.c.kind == kind, _table.c.adapter.in_(adapters)
    )
    return [row.record for row in _once(connection.execute(statement).all(), adapters)]


def places(  # noqa: PLR0917
    connection: Connection,
    adapters: Sequence[str],
    kind: str,
    person: tuple[str, str],
    part: str = "",
    where: str = "",
    **values: Any,
) -> list[dict[str, Any]]:
    """Return where the records of a kind are: adapter, key, station, beamline, sector, and ``named``.

    :param person: the key of the record's people, and a badge; ``named`` says whether it is among theirs.
    :param part: only keys that begin so. :param where: a further condition on ``record``, a constant of this service.
    """
    people, badge = person
    record = _table.c.record
    named = record[people].contains([{"badge": badge}]) if badge else literal(False)
    statement = select(
        _table.c.adapter,
        _table.c.key,
        *(record[name].astext.label(name) for name in ("station", "beamline", "sector")),
        named.label("named"),
    ).where(_table.c.kind == kind, _table.c.adapter.in_(adapters))
    if part:
        statement = statement.where(_table.c.key.startswith(part, autoescape=True))
    if where:
        statement = statement.where(text(where).bindparams(**values))
    return [dict(row._mapping) for row in _once(connection.execute(statement).all(), adapters)]


def fetched(connection: Connection, kind: str, keys: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return records by adapter and key."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(keys), _CHUNK):
        chosen = tuple_(_table.c.adapter, _table.c.key).in_(keys[start : start + _CHUNK])
        found += connection.execute(select(_table.c.record).where(_table.c.kind == kind, chosen)).scalars()
    return found


def _once(rows: Sequence[Any], adapters: Sequence[str]) -> list[Any]:
    """Return rows with adapter and key, each key once, of the first adapter that has it."""
    rank = {name: position for position, name in enumerate(adapters)}
    found: dict[str, Any] = {}
    for row in sorted(rows, key=lambda row: rank[row.adapter]):
        found.setdefault(row.key, row)
    return list(found.values())


def badge_of(connection: Connection, username: str) -> int | None:
    """Return the badge number recorded for a user, or ``None``."""
    return connection.execute(select(users.c.badge).where(users.c.username == username)).scalar_one_or_none()


def badges_of(connection: Connection, usernames: Sequence[str]) -> dict[str, int]:
    """Return user name -> badge of those of these users who have one."""
    rows = connection.execute(
        select(users.c.username, users.c.badge).where(users.c.username.in_(usernames), users.c.badge.is_not(None))
    )
    return {row.username: row.badge for row in rows}


def usernames_of(connection: Connection, badges: Sequence[int]) -> dict[int, str]:
    """Return badge -> user name of the active users who have these badges; of several the first."""
    rows = connection.execute(
        select(users.c.badge, users.c.username).where(users.c.badge.in_(badges), users.c.active).order_by(users.c.id)
    )
    found: dict[int, str] = {}
    for row in rows:
        found.setdefault(row.badge, row.username)
    return found
