"""Run cycles and beamlines: the facility's calendar, which every user may see."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dm.common import timestamps
from dm.common.errors import ObjectNotFound
from dm.site.facility.viewer import Viewer


class Runs:
    """The use cases of runs and beamlines."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer

    def all(self) -> list[dict[str, Any]]:
        """Return all runs, newest last."""
        return sorted(self._viewer.all("runs"), key=lambda run: timestamps.parse(run["startTime"]))

    def current(self) -> dict[str, Any]:
        """Return today's run; between two runs the one that was, before the first the first.

        :raises ObjectNotFound: no run is known.
        """
        runs = self.all()
        if not runs:
            raise ObjectNotFound("A current run does not exist: the facility has not told any runs.")
        now = datetime.now().astimezone()
        begun = [run for run in runs if timestamps.parse(run["startTime"]) <= now]
        return begun[-1] if begun else runs[0]

    def beamlines(self) -> list[dict[str, Any]]:
        """Return all beamlines, by name."""
        return sorted(self._viewer.all("beamlines"), key=lambda one: str(one["name"]))
