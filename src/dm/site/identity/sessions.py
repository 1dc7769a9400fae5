"""Sessions in PostgreSQL: they outlive a restart of the service, and several services can share them."""

from __future__ import annotations

from typing import Any

from dm.common import timestamps
from dm.common.web.application import TOKEN_ID
from dm.common.web.routes import Principal
from dm.common.web.sessions import new_session_id, session_key
from dm.site.database.store import Store
from dm.site.identity import audit, tokens, user_store

_SESSIONS_PER_USER = 200


class SqlSessionStore:
    """The web kit's session store. Only the hash of an id is kept; roles are read anew at each request.

    :param idle_seconds: a session unused for this long is over.
    :param absolute_seconds: a session is over after this long in any case.
    """

    def __init__(self, store: Store, idle_seconds: float, absolute_seconds: float) -> None:
        self._store = store
        self.idle_seconds = idle_seconds
        self.absolute_seconds = absolute_seconds

    def create(self, principal: Principal) -> str:
        """Return the id of a new session."""
        session_id = new_session_id()
        token_id = principal.attributes.get(TOKEN_ID)
        with self._store.transaction() as connection:
            user_store.add_session(connection, _key(session_id), principal.username, _SESSIONS_PER_USER, token_id)
            audit.record(connection, "login.ok", principal.username, token=token_id)
        return session_id

    def get(self, session_id: str) -> Principal | None:
        """Return who the session belongs to, with today's roles, or ``None``.

        :raises ServiceUnavailable: no database.
        """
        key = _key(session_id)
        with self._store.transaction() as connection:
            found = user_store.live_session(connection, key, self.idle_seconds, self.absolute_seconds)
            if found is None:
                return None
            if found.stale:
                user_store.touch_session(connection, key)
            if found.token_id is None:
                return found.principal
            return tokens.limited(found.principal, found.token_id, found.scopes, found.token_station)

    def delete(self, session_id: str) -> None:
        """End the session; an unknown one is fine."""
        with self._store.transaction() as connection:
            username = user_store.remove_session(connection, _key(session_id))
            if username is not None:
                audit.record(connection, "logout", username)

    def of_user(self, username: str, current: str | None) -> list[dict[str, Any]]:
        """Return a user's sessions, last used first: ``created``, ``used``, ``tokenId`` and ``current``."""
        with self._store.transaction() as connection:
            rows = user_store.sessions_of(connection, username, self.idle_seconds, self.absolute_seconds)
        mine = _key(current) if current else b""
        return [
            {
                "created": timestamps.iso(row["created"]),
                "used": timestamps.iso(row["used"]),
                "tokenId": row["token_id"],
                "current": bytes(row["id_hash"]) == mine,
            }
            for row in rows
        ]

    def delete_others(self, username: str, current: str | None) -> int:
        """End all of a user's sessions but one, and return how many."""
        with self._store.transaction() as connection:
            row = user_store.user_by_name(connection, username)
            count = (
                user_store.remove_sessions_of(connection, row["id"], _key(current) if current else b"") if row else 0
            )
            if count:
                audit.record(connection, "sessions.ended", username, count=count)
        return count

    def sweep(self) -> int:
        """Remove sessions that are over and return how many."""
        with self._store.transaction() as connection:
            return user_store.sweep_sessions(connection, self.idle_seconds, self.absolute_seconds)


def _key(session_id: str) -> bytes:
    return bytes.fromhex(session_key(session_id))
