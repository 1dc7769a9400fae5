"""SQL about grants: which station account may publish into which experiment, and on whose behalf."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, text, update
from sqlalchemy import func as sql

from dm.site.database.tables import grants

_VALID = text(  # made once: every batch asks twice
    "SELECT g.experiment_id, s.name AS station_name, u.username FROM grants g"
    " JOIN experiments e ON e.id = g.experiment_id AND e.state = 'active'"
    " JOIN stations s ON s.id = e.station_id JOIN users u ON u.id = g.user_id AND u.active"
    " WHERE g.id = :id AND g.secret_hash = :secret AND g.revoked IS NULL"
    " AND (EXISTS (SELECT 1 FROM station_roles r WHERE r.user_id = u.id AND r.station_id = e.station_id)"
    "      OR EXISTS (SELECT 1 FROM system_roles r WHERE r.user_id = u.id))"
)


def add(connection: Connection, values: dict[str, Any]) -> None:
    """Insert a grant."""
    connection.execute(insert(grants).values(values))


def valid(connection: Connection, grant_id: str, secret_hash: bytes) -> Any:
    """Return ``experiment_id``, ``station_name``, ``username`` of a grant that holds now, or ``None``.

    It holds as long as it is not revoked, the experiment is active, and the person who asked for it still manages the
    experiment's station or is an administrator.
    """
    return connection.execute(
        _VALID,
        {"id": grant_id, "secret": secret_hash},
    ).one_or_none()


def station_of(connection: Connection, grant_id: str) -> str | None:
    """Return the station of a grant's experiment, or ``None`` for an unknown grant."""
    return connection.execute(
        text(
            "SELECT s.name FROM grants g JOIN experiments e ON e.id = g.experiment_id"
            " JOIN stations s ON s.id = e.station_id WHERE g.id = :id"
        ),
        {"id": grant_id},
    ).scalar_one_or_none()


def revoke(connection: Connection, grant_id: str) -> bool:
    """Revoke a grant; ``False`` if it was before."""
    statement = update(grants).where(grants.c.id == grant_id, grants.c.revoked.is_(None))
    return connection.execute(statement.values(revoked=sql.now())).rowcount == 1


def revoke_all(connection: Connection, experiment_id: int) -> int:
    """Revoke all grants of an experiment and return how many."""
    statement = update(grants).where(grants.c.experiment_id == experiment_id, grants.c.revoked.is_(None))
    return connection.execute(statement.values(revoked=sql.now())).rowcount
