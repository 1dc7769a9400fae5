"""What a caller may see of the records: the database, the selection of stations, and the caller's badge together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dm.common.errors import ObjectNotFound
from dm.common.web.routes import Principal
from dm.site import rules
from dm.site.database.store import Store
from dm.site.facility import store
from dm.site.facility.reading import Readings
from dm.site.facility.selection import Selection

Wanted = Callable[[Mapping[str, Any]], bool]
PEOPLE = {"proposals": "experimenters", "esafs": "experimentUsers"}


class Viewer:
    """Reads records for a caller; what the caller may not see is as if it were not there."""

    def __init__(self, database: Store, readings: Readings, selection: Selection) -> None:
        self._store = database
        self._readings = readings
        self.selection = selection

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of a kind whoever asks."""
        with self._store.transaction() as connection:
            return store.records(connection, self._readings.names, kind)

    def visible(
        self,
        principal: Principal,
        kind: str,
        part: str = "",
        where: str = "",
        wanted: Wanted = lambda place: True,
        **values: Any,
    ) -> list[dict[str, Any]]:
        """Return the records of a kind that the caller may see.

        Of many thousands most callers may see a few: which ones is decided before they are fetched.

        :param part: :param where: see :func:`store.places`. :param wanted: called with the place of a record (station,
            beamline, sector) that the caller may see.
        """
        with self._store.transaction() as connection:
            badge = store.badge_of(connection, principal.username) or rules.badge_of(principal.username)
            places = store.places(
                connection, self._readings.names, kind, (PEOPLE[kind], str(badge or "")), part, where, **values
            )
            keys = [
                (place["adapter"], place["key"])
                for place in places
                if self.selection.visible(place, principal, place["named"]) and wanted(place)
            ]
            return store.fetched(connection, kind, keys)

    def usernames(self, badges: Iterable[str]) -> dict[str, str]:
        """Return badge -> user name, ``d<badge>`` where nobody has the badge.

        Left out: what is no badge number, and badges of nobody whose ``d<badge>`` is somebody with another badge.
        """
        numbers = [int(badge) for badge in badges if badge.isascii() and badge.isdigit() and len(badge) <= 9]
        with self._store.transaction() as connection:
            found = store.usernames_of(connection, numbers)
            likely = {number: f"d{number}" for number in numbers if number not in found}
            others = store.badges_of(connection, list(likely.values()))
        found |= {number: name for number, name in likely.items() if others.get(name, number) == number}
        return {str(number): found[number] for number in numbers if number in found}

    def of_station(self, station: str | None) -> Wanted:
        """Return the condition that a record belongs to a station; without one that there is a record."""
        return lambda place: not station or self.selection.belongs(place, station)


def number(value: str | int, what: str) -> int:
    """Return a record's number as callers write it (``0158394`` is 158394).

    :raises ObjectNotFound: no number, so there is no such record either.
    """
    text = str(value).strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ObjectNotFound(f"{what} {text[:80]!a} does not exist.")
    return int(text)
