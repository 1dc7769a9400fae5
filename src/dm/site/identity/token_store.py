"""SQL about API tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, text, update
from sqlalchemy import func as sql

from dm.site.database.tables import api_tokens

_COLUMNS = (
    "SELECT CAST(t.id AS text) AS id, t.name, t.scopes, t.created, t.created_by, t.expires, t.used, t.revoked,"
    " u.username, u.badge, s.name AS station, t.expires <= now() AS expired"
    " FROM api_tokens t JOIN users u ON u.id = t.user_id"
    " LEFT JOIN stations s ON s.id = t.station_id"
)
_LIVE = text(
    "SELECT t.user_id, t.scopes, s.name AS station, coalesce(now() - t.used > interval '1 minute', true) AS stale"
    " FROM api_tokens t JOIN users u ON u.id = t.user_id AND u.active LEFT JOIN stations s ON s.id = t.station_id"
    " WHERE t.id = :id AND t.secret_hash = :hash AND t.revoked IS NULL AND t.expires > now()"
)


def add(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a token; ``lifetime_days`` is counted by the database's clock, which also judges it later."""
    days = values.pop("lifetime_days")
    lifetime = sql.make_interval(0, 0, 0, days)
    connection.execute(insert(api_tokens).values(**values, created=sql.now(), expires=sql.now() + lifetime))


def live(connection: Connection, token_id: str, secret_hash: bytes) -> Any:
    """Return ``user_id``, ``scopes``, ``station`` and ``stale`` (its use is worth noting) of a good token."""
    return connection.execute(_LIVE, {"id": token_id, "hash": secret_hash}).one_or_none()


def touch(connection: Connection, token_id: str) -> None:
    """Note that the token is in use."""
    connection.execute(update(api_tokens).where(api_tokens.c.id == token_id).values(used=sql.now()))


def get(connection: Connection, token_id: str) -> RowMapping | None:
    """Return a token with its owner's ``username`` and its ``station``."""
    return connection.execute(text(f"{_COLUMNS} WHERE t.id = :id"), {"id": token_id}).mappings().one_or_none()


def listing(
    connection: Connection, username: str | None, stations: Sequence[str] | None, dead: bool
) -> Sequence[RowMapping]:
    """Return tokens of a user, or bound to one of the stations, newest last.

    :param username: ``None`` and no stations: all. :param dead: also those that are revoked or expired.
    """
    clauses = ["true"]
    if username is not None and stations is not None:
        clauses.append("(u.username = :username OR s.name = ANY(:stations))")
    elif username is not None:
        clauses.append("u.username = :username")
    if not dead:
        clauses.append("t.revoked IS NULL AND t.expires > now()")
    statement = text(f"{_COLUMNS} WHERE {' AND '.join(clauses)} ORDER BY t.created, t.id")
    parameters = {"username": username, "stations": list(stations or [])}
    used = {name: value for name, value in parameters.items() if f":{name}" in str(statement)}
    return connection.execute(statement, used).mappings().all()


def count_live(connection: Connection, user_id: int) -> int:
    """Return how many good tokens a user has."""
    return int(
        connection.execute(
            text("SELECT count(*) FROM api_tokens WHERE user_id = :id AND revoked IS NULL AND expires > now()"),
            {"id": user_id},
        ).scalar_one()
    )


def revoke(connection: Connection, token_id: str) -> bool:
    """Revoke a token and end the sessions opened with it; ``False`` if it was before."""
    connection.execute(text("DELETE FROM sessions WHERE token_id = :id"), {"id": token_id})
    statement = update(api_tokens).where(api_tokens.c.id == token_id, api_tokens.c.revoked.is_(None))
    return connection.execute(statement.values(revoked=sql.now())).rowcount == 1


def ending(connection: Connection, days: float) -> Sequence[RowMapping]:
    """Return good tokens that end within so many days and were used in the last thirty."""
    statement = text(
        f"{_COLUMNS} WHERE t.revoked IS NULL AND t.expires > now() AND u.active"
        " AND t.expires < now() + make_interval(secs => :seconds) AND t.used > now() - interval '30 days'"
        " ORDER BY t.expires"
    )
    return connection.execute(statement, {"seconds": days * 86400}).mappings().all()


def forget(connection: Connection, days: float) -> int:
    """Remove tokens that ended so many days ago and return how many."""
    return connection.execute(
        text("DELETE FROM api_tokens WHERE least(expires, revoked) < now() - make_interval(secs => :seconds)"),
        {"seconds": days * 86400},
    ).rowcount
