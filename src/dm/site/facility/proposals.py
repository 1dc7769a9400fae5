"""Beam-time proposals."""

from __future__ import annotations

from typing import Any

from dm.common.errors import ObjectNotFound
from dm.common.web.routes import Principal
from dm.site.facility.runs import Runs
from dm.site.facility.selection import same_beamline
from dm.site.facility.viewer import Viewer, Wanted, number


class Proposals:
    """The use cases of proposals. Callers get those they may see; others do not exist for them."""

    def __init__(self, viewer: Viewer, runs: Runs) -> None:
        self._viewer = viewer
        self._runs = runs

    def all(
        self, principal: Principal, station: str | None = None, beamline: str | None = None, run: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the proposals of a run (default: the current one), of a station and a beamline, earliest first."""
        if not run:
            try:
                run = self._runs.current()["name"]
            except ObjectNotFound:
                run = ""
        found = self._viewer.visible(principal, "proposals", f"{run}/", wanted=self._at(station, beamline))
        return _sorted(found)

    def get(
        self,
        principal: Principal,
        id: str | int,
        station: str | None = None,
        beamline: str | None = None,
        run: str | None = None,
    ) -> dict[str, Any]:
        """Return a proposal of a run; without one its latest.

        :raises ObjectNotFound: none that the caller may see.
        """
        wanted = number(id, "Proposal")
        part = f"{run}/{wanted}/" if run else ""
        found = self._viewer.visible(
            principal, "proposals", part, "record->>'id' = :id", self._at(station, beamline), id=str(wanted)
        )
        if not found:
            where = "".join(f" {word} {value[:80]!a}" for word, value in _places(station, beamline, run))
            raise ObjectNotFound(f"Proposal {wanted}{where} does not exist.")
        return _sorted(found)[-1]

    def _at(self, station: str | None, beamline: str | None) -> Wanted:
        at_station = self._viewer.of_station(station)
        return lambda one: at_station(one) and (not beamline or same_beamline(beamline, one["beamline"]))


def _sorted(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda one: (one["startTime"], one["id"]))


def _places(station: str | None, beamline: str | None, run: str | None) -> list[tuple[str, str]]:
    given = (("of station", station), ("at beamline", beamline), ("in run", run))
    return [(word, value) for word, value in given if value]
