"""What a caller may see of the records: the database, the selection of stations, and the caller's badge together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dm.common.errors import ObjectNotFound
from dm.common.web.routes import Principal
from dm.site import rules
from dm.site.database.store import Store
from dm.site.facility import store
from dm.site.facility.reading import Readings
from dm.site.facility.selection import Selection


class Viewer:
    """Reads records for a caller; what the caller may not see is as if it were not there."""

    def __init__(self, database: Store, readings: Readings, selection: Selection) -> None:
        self._store = database
        self._readings = readings
        self.selection = selection

    def all(self, kind: str, part: str = "", where: str = "", **values: Any) -> list[dict[str, Any]]:
        """Return records of a kind whoever asks; see :func:`store.records`."""
        with self._store.transaction() as connection:
            return store.records(connection, self._readings.names, kind, part, where, **values)

    def visible(
        self, principal: Principal, kind: str, part: str = "", where: str = "", **values: Any
    ) -> list[dict[str, Any]]:
        """Return the records of a kind that the caller may see."""
        with self._store.transaction() as connection:
            found = store.records(connection, self._readings.names, kind, part, where, **values)
            badge = store.badge_of(connection, principal.username) or rules.badge_of(principal.username)
        return [one for one in found if self.selection.visible(one, principal, str(badge or ""))]

    def of_station(self, found: Iterable[dict[str, Any]], station: str | None) -> list[dict[str, Any]]:
        """Return those of the records that belong to a station; all without one."""
        return [one for one in found if not station or self.selection.belongs(one, station)]


def number(value: str | int, what: str) -> int:
    """Return a record's number as callers write it (``0158394`` is 158394).

    :raises ObjectNotFound: no number, so there is no such record either.
    """
    text = str(value).strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ObjectNotFound(f"{what} {text[:80]!a} does not exist.")
    return int(text)
