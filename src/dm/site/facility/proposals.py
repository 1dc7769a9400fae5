"""Beam-time proposals."""

from __future__ import annotations

from typing import Any

from dm.common.errors import ObjectNotFound
from dm.common.web.routes import Principal
from dm.site.facility.runs import Runs
from dm.site.facility.selection import same_beamline
from dm.site.facility.viewer import Viewer, number


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
        found = self._viewer.visible(principal, "proposals", part=f"{run}/")
        return self._sorted(self._viewer.of_station(found, station), beamline)

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
        found = self._viewer.visible(principal, "proposals", part, "record->>'id' = :id", id=str(wanted))
        found = self._sorted(self._viewer.of_station(found, station), beamline)
        if not found:
            where = "".join(f" {word} {value[:80]!a}" for word, value in _places(station, beamline, run))
            raise ObjectNotFound(f"Proposal {wanted}{where} does not exist.")
        return found[-1]

    @staticmethod
    def _sorted(found: list[dict[str, Any]], beamline: str | None) -> list[dict[str, Any]]:
        chosen = [one for one in found if not beamline or same_beamline(beamline, one["beamline"])]
        return sorted(chosen, key=lambda one: (one["startTime"], one["id"]))


def _places(station: str | None, beamline: str | None, run: str | None) -> list[tuple[str, str]]:
    given = (("of station", station), ("at beamline", beamline), ("in run", run))
    return [(word, value) for word, value in given if value]
