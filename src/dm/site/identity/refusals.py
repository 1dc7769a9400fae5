"""Refused logins in the audit log: bounded, and without what may be a password typed into the wrong field."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dm.common.caller import CALLER, Caller, calling, typed_name
from dm.site.database.store import Store
from dm.site.identity import audit

WINDOW_SECONDS = 600.0
MOST_ROWS = 100


@dataclass
class _Counted:
    caller: Caller
    name: str
    known: bool
    token: bool
    count: int = 0


class Refusals:
    """Notes refused logins.

    The first of a name and address within ten minutes has a row at once, the others are counted and noted together
    when the time is over; after a hundred rows all further ones are counted as one. So a process writes fewer than
    three hundred rows in ten minutes, whatever strangers do. Names that exist and names that do not cost the same.

    :param clock: monotonic seconds.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._counted: dict[bytes, _Counted] = {}

    def note(self, username: str, known: bool, token: bool = False) -> None:
        """Note one. :param known: whether there is such a user; :param token: it was tried with an API token."""
        caller = CALLER.get()
        shown = username if known else typed_name(username)
        key = hashlib.sha256(f"{username}\0{caller.remote}".encode("utf-8", "surrogateescape")).digest()[:16]
        self.flush(only_due=True)
        with self._lock:
            first = key not in self._counted
            if first and len(self._counted) >= MOST_ROWS:
                key, first, shown, known = b"", False, "", False
                self._counted.setdefault(key, _Counted(Caller(service=caller.service), "", False, False))
            if first:
                self._counted[key] = _Counted(caller, shown, known, token)
            else:
                self._counted[key].count += 1
        if first:
            self._write([_Counted(caller, shown, known, token, 1)])

    def flush(self, only_due: bool = False) -> None:
        """Write what was only counted. :param only_due: nothing before the ten minutes are over."""
        with self._lock:
            if only_due and self._clock() - self._began < WINDOW_SECONDS:
                return
            counted, self._counted, self._began = self._counted, {}, self._clock()
        self._write([entry for entry in counted.values() if entry.count])

    def _write(self, entries: list[_Counted]) -> None:
        if not entries:
            return
        with self._store.transaction(durable=False) as connection:
            for entry in entries:
                with calling(entry.caller):
                    audit.record(
                        connection,
                        "login.refused",
                        entry.name,
                        known=entry.known,
                        count=entry.count,
                        byToken=True if entry.token else None,
                    )
