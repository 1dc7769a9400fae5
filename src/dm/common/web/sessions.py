"""Sessions: who is logged in. Only a successful login creates one, and only the hash of its id is kept."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dm.common.web.routes import Principal

IDLE_SECONDS = 1800.0
ABSOLUTE_SECONDS = 12 * 3600.0


class SessionStore(Protocol):
    """What the web application needs of a session store.

    ``absolute_seconds`` is how long a session may live at most; the cookie expires with it.
    """

    absolute_seconds: float

    def create(self, principal: Principal) -> str:
        """Return the id of a new session: unguessable, never one the caller chose."""
        ...

    def get(self, session_id: str) -> Principal | None:
        """Return who the session belongs to, and count as use of it; ``None`` when unknown or expired."""
        ...

    def delete(self, session_id: str) -> None:
        """End the session; an unknown one is fine."""
        ...


def new_session_id() -> str:
    """Return a fresh id of 256 random bits in URL-safe text."""
    return secrets.token_urlsafe(32)


def session_key(session_id: str) -> str:
    """Return what a store keeps instead of the id (SHA-256, hexadecimal)."""
    return hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass
class _Session:
    principal: Principal
    created: float
    used: float


class MemorySessionStore:
    """Sessions in memory, for station services: they end when the service stops.

    :param idle_seconds: a session unused for this long is over.
    :param absolute_seconds: a session is over after this long in any case.
    :param capacity: when full, the session unused for longest ends; bounds memory.
    :param clock: monotonic seconds; clock changes neither end nor prolong sessions.
    """

    def __init__(
        self,
        idle_seconds: float = IDLE_SECONDS,
        absolute_seconds: float = ABSOLUTE_SECONDS,
        capacity: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.idle_seconds = idle_seconds
        self.absolute_seconds = absolute_seconds
        self.capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # least recently used first

    @property
    def count(self) -> int:
        """How many sessions are kept."""
        return len(self._sessions)

    def create(self, principal: Principal) -> str:
        """Return the id of a new session."""
        session_id = new_session_id()
        now = self._clock()
        with self._lock:
            self._drop_idle(now)
            while len(self._sessions) >= self.capacity:
                self._sessions.popitem(last=False)
            self._sessions[session_key(session_id)] = _Session(principal, now, now)
        return session_id

    def get(self, session_id: str) -> Principal | None:
        """Return the session's principal and note the use, or ``None``."""
        key = session_key(session_id)
        now = self._clock()
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                return None
            if now - session.used > self.idle_seconds or now - session.created > self.absolute_seconds:
                del self._sessions[key]
                return None
            session.used = now
            self._sessions.move_to_end(key)
            return session.principal

    def delete(self, session_id: str) -> None:
        """End the session."""
        with self._lock:
            self._sessions.pop(session_key(session_id), None)

    def _drop_idle(self, now: float) -> None:
        while self._sessions:
            session = next(iter(self._sessions.values()))
            if now - session.used <= self.idle_seconds:
                return
            self._sessions.popitem(last=False)
