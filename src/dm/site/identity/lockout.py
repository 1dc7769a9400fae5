"""Failed logins of an account, counted in PostgreSQL for all processes of the site, and what administrators see of it.

Unknown accounts are counted like known ones, so that nobody learns which exist.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from dm.common import timestamps
from dm.common.texts import storable
from dm.common.web.throttle import FROM_ADDRESS, FROM_ANYWHERE, Limit, canonical, key_of
from dm.site.database.store import Store
from dm.site.identity import audit

_SHOWN = 80
_FULL_AGAIN_HOURS = 2
_ABANDONED_SECONDS = 60  # a try that was taken so long ago was given up by a process that died: it counts as failed

# One statement makes the row or refills it, and locks it until the commit.
_REFILL = text(
    "INSERT INTO login_tallies AS t (key, username, remote, left_over) VALUES (:key, :username, :remote, :most)"
    " ON CONFLICT (key) DO UPDATE SET left_over = least(:most, t.left_over"
    "  + greatest(0, extract(epoch FROM clock_timestamp() - t.at)) * :per_second),"
    " pending = CASE WHEN t.at < clock_timestamp() - make_interval(secs => :abandoned) THEN 0 ELSE t.pending END,"
    " at = clock_timestamp() RETURNING left_over, pending"
)
_LOOK = text(
    "SELECT least(:most, left_over + greatest(0, extract(epoch FROM clock_timestamp() - at)) * :per_second),"
    " CASE WHEN at < clock_timestamp() - make_interval(secs => :abandoned) THEN 0 ELSE pending END"
    " FROM login_tallies WHERE key = :key"
)
_TAKE = text("UPDATE login_tallies SET left_over = left_over - 1, pending = pending + 1 WHERE key = ANY(:keys)")
_FAILED = text("UPDATE login_tallies SET pending = greatest(0, pending - 1) WHERE key = :key")
_FREE = text(
    "UPDATE login_tallies SET pending = greatest(0, pending - 1), left_over = least(:most, left_over + 1)"
    " WHERE key = :key"
)
_FORGIVE = text(
    "UPDATE login_tallies SET pending = greatest(0, pending - 1), left_over = :most - greatest(0, pending - 1)"
    " WHERE key = :key"
)
_LOCKED = text(
    "SELECT username, remote, at, left_over FROM (SELECT username, remote, at, least("
    "  CASE WHEN remote = '' THEN :anywhere_most ELSE :address_most END,"
    "  left_over + greatest(0, extract(epoch FROM clock_timestamp() - at))"
    "   * CASE WHEN remote = '' THEN :anywhere_rate ELSE :address_rate END) AS left_over FROM login_tallies) t"
    " WHERE left_over < 1 ORDER BY at DESC LIMIT 1000"
)


class SqlTally:
    """The throttle's tally for all processes that share the database. :raises ServiceUnavailable: no database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def take(self, account: str, remote: str) -> float | None:
        """Take one try; see :class:`dm.common.web.throttle.Tally`."""
        with self._store.transaction(durable=False) as connection:
            answer = _answer([row for row in (_look(connection, *one) for one in _both(account, remote)) if row])
            if answer != 0.0:  # refused without writing: whoever hammers a locked account costs little
                return answer
            # The account's own row comes first, always: no two can wait for each other.
            rows = [_refill(connection, account, *one) for one in _both(account, remote)]
            answer = _answer(rows)
            if answer == 0.0:
                connection.execute(_TAKE, {"keys": [key for key, _, _ in _both(account, remote)]})
            return answer

    def give(self, account: str, remote: str, failed: bool | None) -> None:
        """Say how a taken try ended."""
        with self._store.transaction(durable=False) as connection:
            for key, address, limit in _both(account, remote):
                if failed:
                    connection.execute(_FAILED, {"key": key})
                else:
                    statement = _FORGIVE if address and failed is False else _FREE
                    connection.execute(statement, {"key": key, "most": limit.at_once})


def locks(connection: Connection) -> list[dict[str, Any]]:
    """Return accounts that have used up their failures: username, remote (``*`` for any), retryAfter (s), time."""
    rows = connection.execute(
        _LOCKED,
        {
            "anywhere_most": FROM_ANYWHERE.at_once,
            "anywhere_rate": FROM_ANYWHERE.per_hour / 3600,
            "address_most": FROM_ADDRESS.at_once,
            "address_rate": FROM_ADDRESS.per_hour / 3600,
        },
    ).all()
    return [
        {
            "username": row.username,
            "remote": row.remote or "*",
            "retryAfter": round((FROM_ADDRESS if row.remote else FROM_ANYWHERE).wait(row.left_over)) or 1,
            "time": timestamps.iso(row.at),
        }
        for row in rows
    ]


def unlock(connection: Connection, username: str) -> int:
    """Forget the failures of an account from everywhere; return how many addresses that frees."""
    account = canonical(username)
    freed = connection.execute(
        text("DELETE FROM login_tallies WHERE username = :shown"), {"shown": _shown(account)}
    ).rowcount
    audit.record(connection, "login.unlocked", account[:_SHOWN], forgotten=freed)
    return max(0, freed - 1)


def sweep(connection: Connection) -> int:
    """Forget accounts whose limits are full again and return how many rows went."""
    return connection.execute(
        text("DELETE FROM login_tallies WHERE at < clock_timestamp() - make_interval(hours => :hours)"),
        {"hours": _FULL_AGAIN_HOURS},
    ).rowcount


class Lockouts:
    """What administrators see and lift."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[dict[str, Any]]:
        """Return what is locked now, latest first."""
        with self._store.transaction() as connection:
            return locks(connection)

    def lift(self, username: str) -> dict[str, Any]:
        """Let an account log in again from everywhere; one that is not locked is fine, known or not."""
        with self._store.transaction() as connection:
            unlock(connection, username)
        return {"username": username}


def _both(account: str, remote: str) -> list[tuple[bytes, str, Limit]]:
    return [(key_of(account), "", FROM_ANYWHERE), (key_of(account, remote), remote, FROM_ADDRESS)]


def _look(connection: Connection, key: bytes, _: str, limit: Limit) -> tuple[float, int, Limit] | None:
    row = connection.execute(_LOOK, _numbers(key, limit)).one_or_none()
    return (float(row[0]), int(row[1]), limit) if row else None


def _refill(connection: Connection, account: str, key: bytes, remote: str, limit: Limit) -> tuple[float, int, Limit]:
    values = _numbers(key, limit) | {"username": _shown(account), "remote": _shown(remote)}
    row = connection.execute(_REFILL, values).one()
    return float(row[0]), int(row[1]), limit


def _numbers(key: bytes, limit: Limit) -> dict[str, Any]:
    return {
        "key": key,
        "most": limit.at_once,
        "per_second": limit.per_hour / 3600,
        "abandoned": _ABANDONED_SECONDS,
    }


def _answer(rows: list[tuple[float, int, Limit]]) -> float | None:
    """Return what the throttle is told: 0 - go; seconds; ``None`` - what is missing is being checked."""
    short = [(left, pending, limit) for left, pending, limit in rows if left < 1]
    waits = [limit.wait(left) for left, pending, limit in short if not pending]
    if waits:
        return max(waits)
    return None if short else 0.0


def _shown(value: str) -> str:
    return storable(value)[:_SHOWN]
