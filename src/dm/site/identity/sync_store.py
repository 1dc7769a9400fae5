"""SQL of synchronising people with user directories: everything in bulk, one statement for each kind of change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, RowMapping, func, insert, select, text, update

from dm.site.database.tables import user_syncs, users
from dm.site.identity.sync_plan import COMPARED, Change, Known

if TYPE_CHECKING:
    from dm.site.facility.adapters.base import Person

_TYPES = {"badge": "integer"}
_COLUMNS = ", ".join(COMPARED)
_UNNESTED = ", ".join(f"CAST(:{column} AS {_TYPES.get(column, 'text')}[])" for column in COMPARED)

_KNOWN = text(
    f"SELECT id, {_COLUMNS}, active, source, source_key, absent_since, absent_runs, deactivated_by, directory_digest,"  # noqa: S608 - constants
    " EXISTS (SELECT 1 FROM system_roles r WHERE r.user_id = users.id AND r.role = 'administrator') AS administrator"
    " FROM users"
)
_ADD = text(
    f"INSERT INTO users (source, is_local_user, source_key, {_COLUMNS})"  # noqa: S608 - constants
    f" SELECT :source, false, * FROM unnest(CAST(:source_key AS text[]), {_UNNESTED})"
)
_CHANGE = text(
    "UPDATE users u SET source_key = n.source_key, active = u.active OR n.reactivated,"  # noqa: S608 - constants
    " deactivated_by = CASE WHEN n.reactivated THEN NULL ELSE u.deactivated_by END, last_update = now(), "
    + ", ".join(f"{column} = n.{column}" for column in COMPARED)
    + " FROM unnest(CAST(:id AS integer[]), CAST(:source_key AS text[]), CAST(:reactivated AS boolean[]), "
    + f"{_UNNESTED}) AS n(id, source_key, reactivated, {_COLUMNS}) WHERE u.id = n.id"
)


def lock_users(connection: Connection) -> None:
    """Let nobody add or change users until the transaction ends; reading and roles go on."""
    connection.execute(text("LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE"))


def known(connection: Connection) -> list[Known]:
    """Return all users."""
    return [
        Known(
            **{**row, "directory_digest": None if row["directory_digest"] is None else bytes(row["directory_digest"])}
        )
        for row in connection.execute(_KNOWN).mappings()
    ]


def clock(connection: Connection) -> datetime:
    """Return the database's time."""
    return connection.execute(select(func.clock_timestamp())).scalar_one()


def add(connection: Connection, source: str, people: Sequence[Person]) -> None:
    """Insert users."""
    if people:
        columns: dict[str, Any] = {column: [getattr(person, column) for person in people] for column in COMPARED}
        columns["source_key"] = [person.key for person in people]
        connection.execute(_ADD, {"source": source, **columns})


def change(connection: Connection, changes: Sequence[Change]) -> None:
    """Change and reactivate users. Names that go round in a circle are put aside first."""
    if not changes:
        return
    renamed = [change.user.id for change in changes if change.name != change.user.username]
    if renamed:
        connection.execute(text("UPDATE users SET username = '~' || id WHERE id = ANY(:ids)"), {"ids": renamed})
    values = [change.values for change in changes]
    columns: dict[str, Any] = {column: [row[column] for row in values] for column in COMPARED}
    connection.execute(
        _CHANGE,
        {
            "id": [change.user.id for change in changes],
            "source_key": [change.person.key for change in changes],
            "reactivated": [change.reactivated for change in changes],
            **columns,
        },
    )


def deactivate(connection: Connection, ids: Sequence[int]) -> None:
    """Deactivate users and end their sessions."""
    if ids:
        connection.execute(
            text(
                "UPDATE users SET active = false, deactivated_by = 'directory', last_update = now()"
                " WHERE id = ANY(:ids)"
            ),
            {"ids": list(ids)},
        )
        connection.execute(text("DELETE FROM sessions WHERE user_id = ANY(:ids)"), {"ids": list(ids)})


def note_absent(connection: Connection, ids: Sequence[int]) -> None:
    """Count one more run without these users."""
    if ids:
        connection.execute(
            text(
                "UPDATE users SET absent_runs = absent_runs + 1, absent_since = coalesce(absent_since, now())"
                " WHERE id = ANY(:ids)"
            ),
            {"ids": list(ids)},
        )


def note_present(connection: Connection, ids: Sequence[int]) -> None:
    """Forget earlier absence."""
    if ids:
        connection.execute(
            text("UPDATE users SET absent_runs = 0, absent_since = NULL WHERE id = ANY(:ids)"), {"ids": list(ids)}
        )


def note_told(connection: Connection, digests: Iterable[tuple[int, bytes]]) -> None:
    """Remember what LDAP knows of users."""
    pairs = list(digests)
    if pairs:
        connection.execute(
            text(
                "UPDATE users u SET directory_digest = n.digest"
                " FROM unnest(CAST(:ids AS integer[]), CAST(:digests AS bytea[])) AS n(id, digest) WHERE u.id = n.id"
            ),
            {"ids": [number for number, _ in pairs], "digests": [digest for _, digest in pairs]},
        )


def begin(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a run, status ``running``."""
    connection.execute(insert(user_syncs).values({**values, "status": "running"}))


def end(connection: Connection, run_id: str, status: str, message: str, summary: dict[str, Any]) -> None:
    """Write down how a run ended."""
    connection.execute(
        update(user_syncs)
        .where(user_syncs.c.id == run_id, user_syncs.c.status == "running")
        .values(status=status, message=message, summary=summary, ended=text("clock_timestamp()"))
    )


def remark(connection: Connection, run_id: str, text_: str) -> None:
    """Add a remark to a run that ended."""
    connection.execute(
        text(
            "UPDATE user_syncs SET summary = summary || jsonb_build_object('remark', CAST(:text AS text))"
            " WHERE id = :id"
        ),
        {"id": run_id, "text": text_},
    )


def interrupted(connection: Connection, source: str, but: str) -> None:
    """End the runs of a source whose process died; the caller has the source's lock."""
    connection.execute(
        update(user_syncs)
        .where(user_syncs.c.source == source, user_syncs.c.status == "running", user_syncs.c.id != but)
        .values(status="failed", message="The service ended during the run; nobody was changed.", ended=text("now()"))
    )


def forget(connection: Connection, days: int) -> None:
    """Remove old reports, but never the last one of a source."""
    connection.execute(
        text(
            "DELETE FROM user_syncs s WHERE started < now() - make_interval(days => :days) AND status <> 'running'"
            " AND EXISTS (SELECT 1 FROM user_syncs o WHERE o.source = s.source AND o.started > s.started)"
        ),
        {"days": days},
    )


def run(connection: Connection, run_id: str) -> RowMapping | None:
    """Return a run."""
    return connection.execute(select(user_syncs).where(user_syncs.c.id == run_id)).mappings().one_or_none()


def runs(connection: Connection, source: str | None, limit: int) -> Sequence[RowMapping]:
    """Return runs, newest last."""
    statement = select(user_syncs).order_by(user_syncs.c.started.desc()).limit(limit)
    if source is not None:
        statement = statement.where(user_syncs.c.source == source)
    return list(reversed(connection.execute(statement).mappings().all()))


def ages(connection: Connection, source: str) -> tuple[float | None, float | None]:
    """Return seconds since the last run that was done, and since the last try."""
    row = connection.execute(
        text(
            "SELECT extract(epoch FROM clock_timestamp() - max(started) FILTER (WHERE status = 'done')) AS done,"
            " extract(epoch FROM clock_timestamp() - max(started)) AS tried"
            " FROM user_syncs WHERE source = :source AND NOT dry_run"
        ),
        {"source": source},
    ).one()
    return (None if row.done is None else float(row.done), None if row.tried is None else float(row.tried))


def people(connection: Connection, after: int, limit: int) -> Sequence[RowMapping]:
    """Return users of all directories with an id above ``after``, oldest first."""
    statement = select(users).where(users.c.source.is_not(None), users.c.id > after).order_by(users.c.id).limit(limit)
    return connection.execute(statement).mappings().all()


def person(connection: Connection, **wanted: Any) -> RowMapping | None:
    """Return the user of a directory with these column values; an active one rather than another."""
    statement = select(users).where(users.c.source.is_not(None)).order_by(users.c.active.desc(), users.c.id).limit(1)
    for column, value in wanted.items():
        statement = statement.where(users.c[column] == value)
    return connection.execute(statement).mappings().first()
