"""Experiment safety forms (ESAFs)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dm.common import timestamps
from dm.common.errors import InvalidArgument, ObjectNotFound
from dm.common.web.routes import Principal
from dm.site.facility import records
from dm.site.facility.selection import same_beamline
from dm.site.facility.viewer import Viewer, Wanted, number

_TOUCHES = "record->>'experimentStartDate' < :end AND record->>'experimentEndDate' >= :start"


class Esafs:
    """The use cases of safety forms. Callers get those they may see; others do not exist for them."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer

    def of_sector(self, principal: Principal, sector: str, year: int | None = None) -> list[dict[str, Any]]:
        """Return the forms of a sector, optionally only those that touch a year, earliest first."""
        wanted = records.sector(sector)
        return self._of_year(principal, year, lambda one: one["sector"] == wanted)

    def of_station(
        self, principal: Principal, station: str, beamline: str | None = None, year: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the forms of a station, optionally of one beamline and year, earliest first."""
        at_station = self._viewer.of_station(station)
        # forms that name only their sector are of all its beamlines
        return self._of_year(
            principal,
            year,
            lambda one: (
                at_station(one) and (not beamline or not one["beamline"] or same_beamline(beamline, one["beamline"]))
            ),
        )

    def between(self, principal: Principal, station: str, start: str, end: str) -> list[dict[str, Any]]:
        """Return the forms of a station that touch the days from ``start`` to ``end``, both included.

        :raises InvalidArgument: not dates, or the wrong way round.
        """
        first, last = timestamps.parse(start), timestamps.parse(end)
        if last < first:
            raise InvalidArgument(f"End date {end[:40]!a} is before start date {start[:40]!a}.")
        return self._touching(principal, _day(first), f"{_day(last)} 24", self._viewer.of_station(station))

    def get(self, principal: Principal, id: str | int, station: str | None = None) -> dict[str, Any]:
        """Return a form, of a station if one is named. :raises ObjectNotFound: none the caller may see."""
        wanted = number(id, "ESAF")
        found = self._viewer.visible(
            principal, "esafs", "", "record->>'esafId' = :id", self._viewer.of_station(station), id=str(wanted)
        )
        if not found:
            where = f" of station {station[:80]!a}" if station else ""
            raise ObjectNotFound(f"ESAF {wanted}{where} does not exist.")
        return _earliest_first(found)[-1]

    def _of_year(self, principal: Principal, year: int | None, wanted: Wanted) -> list[dict[str, Any]]:
        if year is None:
            return _earliest_first(self._viewer.visible(principal, "esafs", wanted=wanted))
        return self._touching(principal, f"{year:04d}", f"{year + 1:04d}", wanted)

    def _touching(self, principal: Principal, start: str, end: str, wanted: Wanted) -> list[dict[str, Any]]:
        return _earliest_first(self._viewer.visible(principal, "esafs", "", _TOUCHES, wanted, start=start, end=end))


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _earliest_first(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda one: (one["experimentStartDate"], one["esafId"]))
