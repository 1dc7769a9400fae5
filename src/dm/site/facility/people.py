"""The facility's people, as the last synchronisation found them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import RowMapping

from dm.common.errors import ObjectNotFound
from dm.site.database.store import Store
from dm.site.identity import sync_store
from dm.site.identity.users import user_record


def record(row: RowMapping) -> dict[str, Any]:
    """Return the published record of a person: that of a user, ``institution``, ``source``."""
    return user_record(row) | {"institution": row["institution"], "source": row["source"]}


class People:
    """The use cases."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def page(self, after: int, limit: int) -> dict[str, Any]:
        """Return ``users`` (records) and ``nextAfter``, ``None`` at the end."""
        with self._store.transaction() as connection:
            rows = sync_store.people(connection, after, limit)
        return {"users": [record(row) for row in rows], "nextAfter": rows[-1]["id"] if len(rows) == limit else None}

    def by_badge(self, badge: int) -> dict[str, Any]:
        """Return who has a badge. :raises ObjectNotFound: nobody."""
        return self._one(f"badge {badge}", badge=badge)

    def by_username(self, username: str) -> dict[str, Any]:
        """Return a person by user name. :raises ObjectNotFound: nobody."""
        return self._one(f"user name {username[:80]!a}", username=username)

    def _one(self, what: str, **wanted: Any) -> dict[str, Any]:
        row = None
        if "\0" not in str(wanted.get("username", "")):
            with self._store.transaction() as connection:
                row = sync_store.person(connection, **wanted)
        if row is None:
            raise ObjectNotFound(f"The facility's user directories have nobody with {what}.")
        return record(row)
