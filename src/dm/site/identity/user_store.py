"""SQL about users, their roles and their sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from dm.common.web.routes import Principal
from dm.site.database.tables import (
    experiment_roles,
    sessions,
    station_roles,
    system_roles,
    users,
)


@dataclass(frozen=True)
class Role:
    """One role of one user on one object (or, for system roles, on none).

    :param scope: the role table. :param owner_id: station or experiment id; ``None`` for system roles.
    """

    scope: Table
    user_id: int
    owner_id: int | None
    role: str

    def values(self) -> dict[str, Any]:
        """Return the row."""
        row: dict[str, Any] = {"user_id": self.user_id, "role": self.role}
        if self.scope is station_roles:
            row["station_id"] = self.owner_id
        elif self.scope is experiment_roles:
            row["experiment_id"] = self.owner_id
        return row


def user_by_name(connection: Connection, username: str) -> RowMapping | None:
    """Return a user's row."""
    return connection.execute(select(users).where(users.c.username == username)).mappings().one_or_none()


def all_users(connection: Connection) -> Sequence[RowMapping]:
    """Return all users, newest last."""
    return connection.execute(select(users).order_by(users.c.id)).mappings().all()


def add_user(connection: Connection, values: dict[str, Any]) -> RowMapping:
    """Insert a user. :raises IntegrityError: the name is taken."""
    return connection.execute(insert(users).values(values).returning(users)).mappings().one()


def change_user(connection: Connection, username: str, values: dict[str, Any]) -> RowMapping | None:
    """Change columns of a user and return the row, or ``None`` if there is none."""
    statement = update(users).where(users.c.username == username).values({**values, "last_update": func.now()})
    return connection.execute(statement.returning(users)).mappings().one_or_none()


_ROLES = (
    "ARRAY(SELECT role FROM system_roles WHERE user_id = u.id) AS system,"
    " (SELECT coalesce(json_agg(json_build_array(st.name, r.role)), '[]') FROM station_roles r"
    "  JOIN stations st ON st.id = r.station_id WHERE r.user_id = u.id) AS station"
)


def _principal(row: Any) -> Principal:
    by_station: dict[str, set[str]] = {}
    for name, role in row.station:
        by_station.setdefault(name, set()).add(role)
    stations_roles = {name: frozenset(roles) for name, roles in by_station.items()}
    return Principal(row.username, frozenset(row.system), stations_roles)


def principal(connection: Connection, user_id: int) -> Principal:
    """Return who this is, with all system and station roles."""
    statement = text(f"SELECT u.username, {_ROLES} FROM users u WHERE u.id = :id")  # noqa: S608 - a constant
    return _principal(connection.execute(statement, {"id": user_id}).one())


def add_role(connection: Connection, role: Role) -> bool:
    """Give a role; ``False`` if the user had it."""
    statement = upsert(role.scope).values(role.values()).on_conflict_do_nothing()
    return connection.execute(statement).rowcount == 1


def remove_role(connection: Connection, role: Role) -> bool:
    """Take a role; ``False`` if the user did not have it."""
    statement = delete(role.scope)
    for column, value in role.values().items():
        statement = statement.where(role.scope.c[column] == value)
    return connection.execute(statement).rowcount == 1


def administrators(connection: Connection) -> int:
    """Return how many active administrators there are, with their roles locked against change until the commit."""
    rows = connection.execute(
        select(system_roles.c.user_id).where(system_roles.c.role == "administrator").with_for_update()
    )
    statement = select(func.count()).select_from(users).where(users.c.id.in_(rows.scalars().all()), users.c.active)
    return int(connection.execute(statement).scalar_one())


def roles_at_station(connection: Connection, station_id: int) -> Sequence[RowMapping]:
    """Return ``username`` and ``role`` of everybody with a role at the station."""
    return (
        connection.execute(
            select(users.c.username, station_roles.c.role)
            .join(users, users.c.id == station_roles.c.user_id)
            .where(station_roles.c.station_id == station_id)
            .order_by(users.c.username, station_roles.c.role)
        )
        .mappings()
        .all()
    )


def add_session(connection: Connection, id_hash: bytes, username: str, most: int, token_id: str | None = None) -> None:
    """Record a session; of one user's sessions only the ``most`` last used survive.

    :param token_id: of the API token it is opened with; the session ends with it.
    """
    connection.execute(
        text(
            "INSERT INTO sessions (id_hash, user_id, created, used, token_id)"
            " SELECT :hash, id, clock_timestamp(), clock_timestamp(), :token FROM users WHERE username = :username"
        ),
        {"hash": id_hash, "username": username, "token": token_id},
    )
    connection.execute(
        text(
            "DELETE FROM sessions WHERE id_hash IN (SELECT s.id_hash FROM sessions s JOIN users u ON u.id = s.user_id"
            " WHERE u.username = :username ORDER BY s.used DESC OFFSET :most)"
        ),
        {"username": username, "most": most},
    )


@dataclass(frozen=True)
class LiveSession:
    """A session that is not over.

    :param principal: its user, with today's roles. :param stale: its use is worth noting.
    :param token_id: of the API token it was opened with, if any, :param scopes: and what that is for.
    :param token_station: the only station the token is for.
    """

    principal: Principal
    stale: bool
    token_id: str | None
    scopes: tuple[str, ...]
    token_station: str | None


def live_session(
    connection: Connection, id_hash: bytes, idle_seconds: float, absolute_seconds: float
) -> LiveSession | None:
    """Return whose session it is; ``None`` for one past its limits, of an inactive user, or of a token that is no more.

    A session that was used in the future is refused: the clock went back, and its age cannot be told.
    """
    row = connection.execute(
        _LIVE_SESSION,
        {
            "hash": id_hash,
            "idle": idle_seconds,
            "absolute": absolute_seconds,
            "touch": min(60.0, idle_seconds / 10),
        },
    ).one_or_none()
    if row is None:
        return None
    return LiveSession(_principal(row), row.stale, row.token_id, tuple(row.scopes or ()), row.token_station)


_LIVE_SESSION = text(
    f"SELECT u.username, {_ROLES}, now() - s.used > make_interval(secs => :touch) AS stale,"  # noqa: S608 - a constant
    " CAST(s.token_id AS text) AS token_id, t.scopes, ts.name AS token_station"
    " FROM sessions s JOIN users u ON u.id = s.user_id AND u.active"
    " LEFT JOIN api_tokens t ON t.id = s.token_id LEFT JOIN stations ts ON ts.id = t.station_id"
    " WHERE s.id_hash = :hash AND (s.token_id IS NULL OR (t.revoked IS NULL AND t.expires > now()))"
    " AND now() - s.used < make_interval(secs => :idle)"
    " AND now() - s.created < make_interval(secs => :absolute)"
    " AND s.used - now() < interval '5 minutes'"
)


def touch_session(connection: Connection, id_hash: bytes) -> None:
    """Note that the session is in use."""
    connection.execute(update(sessions).where(sessions.c.id_hash == id_hash).values(used=func.clock_timestamp()))


def remove_session(connection: Connection, id_hash: bytes) -> str | None:
    """End a session and return whose it was, if there was one."""
    statement = text(
        "DELETE FROM sessions s USING users u WHERE s.id_hash = :hash AND u.id = s.user_id RETURNING u.username"
    )
    return connection.execute(statement, {"hash": id_hash}).scalar_one_or_none()


def remove_sessions_of(connection: Connection, user_id: int, except_hash: bytes = b"") -> int:
    """End all sessions of a user but one, and return how many."""
    statement = delete(sessions).where(sessions.c.user_id == user_id, sessions.c.id_hash != except_hash)
    return connection.execute(statement).rowcount


def sessions_of(
    connection: Connection, username: str, idle_seconds: float, absolute_seconds: float
) -> Sequence[RowMapping]:
    """Return ``id_hash``, ``created``, ``used`` and ``token_id`` of a user's sessions, last used first."""
    statement = text(
        "SELECT s.id_hash, s.created, s.used, CAST(s.token_id AS text) AS token_id"
        " FROM sessions s JOIN users u ON u.id = s.user_id"
        " LEFT JOIN api_tokens t ON t.id = s.token_id"
        " WHERE u.username = :username AND (s.token_id IS NULL OR (t.revoked IS NULL AND t.expires > now()))"
        " AND now() - s.used < make_interval(secs => :idle) AND now() - s.created < make_interval(secs => :absolute)"
        " ORDER BY s.used DESC"
    )
    limits = {"username": username, "idle": idle_seconds, "absolute": absolute_seconds}
    return connection.execute(statement, limits).mappings().all()


def sweep_sessions(connection: Connection, idle_seconds: float, absolute_seconds: float) -> int:
    """Remove sessions past their limits and return how many."""
    return connection.execute(
        text(
            "DELETE FROM sessions WHERE now() - used >= make_interval(secs => :idle)"
            " OR now() - created >= make_interval(secs => :absolute)"
        ),
        {"idle": idle_seconds, "absolute": absolute_seconds},
    ).rowcount
