"""The class for inspections of files in storage, and for why somebody may read something."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import ClassVar

from dm.common.client import segment
from dm.common.environment import STATION_NAME
from dm.common.errors import InvalidArgument, TaskTimeout
from dm.common.records import DmObject
from dm.site.storage.api_base import DsApi, given, station_of

_PAGE = 1000
_POLL_SECONDS = 0.5


class Inspection(DmObject):
    """What is known of an experiment's files: status (never, waiting, running, done), rounds, times, counts by kind."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "experimentName",
        "stationName",
        "status",
        "rounds",
        "endTimestamp",
        "countFiles",
        "countMissing",
        "countChanged",
        "countDigest",
        "countExtra",
        "countPermissions",
        "countRepaired",
    ]


class Finding(DmObject):
    """Something wrong with a path: kind, path, detail, repaired, foundTimestamp, advice."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["kind", "path", "detail", "repaired", "advice"]


class Explanation(DmObject):
    """Whether somebody may read something, over HTTPS and on the file system, and by which rules."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "username",
        "experimentName",
        "path",
        "httpsAllowed",
        "httpsRule",
        "diskAllowed",
        "diskRule",
        "differences",
        "limits",
    ]


class InspectionDsApi(DsApi):
    """Files in storage compared with what is recorded of them, and permissions explained."""

    def inspectExperiment(
        self, experimentName: str, stationName: str | None = None, readAgain: bool = False, repair: bool = False
    ) -> Inspection:
        """Have an experiment's files looked through as soon as possible (managers of the station).

        :param readAgain: read and digest every file, not only look at size and time.
        :param repair: set owners, modes and access lists right; contents are never changed.
        :returns: the record with ``untilRound``, see :meth:`waitForInspection`.
        """
        body = {"experimentName": experimentName, "readAgain": readAgain, "repair": repair}
        return Inspection(self.client.post("/inspections", body | given(stationName=station_of(stationName))))

    def waitForInspection(
        self, asked: Inspection, timeout: float | None = None, progress: Callable[[int], None] | None = None
    ) -> Inspection:
        """Wait for the end of what :meth:`inspectExperiment` returned and return the record.

        :param timeout: seconds; ``None``: for ever. :param progress: called with the number of files looked at.
        :raises TaskTimeout: it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            found = self._page(asked["experimentName"], asked["stationName"], 0, 1)
            if found["rounds"] >= asked["untilRound"]:
                return found
            if progress is not None:
                progress(int(found.get("countFiles") or 0))
            if deadline is not None and time.monotonic() >= deadline:
                raise TaskTimeout(f"The inspection of experiment {asked['experimentName']!a} goes on.")
            time.sleep(_POLL_SECONDS)

    def getInspection(self, experimentName: str, stationName: str | None = None) -> Inspection:
        """Return what is known of an experiment's files (managers of the station)."""
        return self._page(experimentName, stationName, 0, 1)

    def getFindings(self, experimentName: str, stationName: str | None = None) -> Iterator[Finding]:
        """Yield what is wrong with an experiment's files, in the order it was found first."""
        after: int | None = 0
        while after is not None:
            page = self._page(experimentName, stationName, after, _PAGE)
            yield from (Finding(one) for one in page["findings"])
            after = page["nextAfter"]

    def getInspections(self, stationName: str | None = None) -> list[Inspection]:
        """Return the inspections of a station's experiments (managers)."""
        station = station_of(stationName)
        if not station:
            raise InvalidArgument(f"No station is named; give stationName or set {STATION_NAME}.")
        return self._records(Inspection, self.client.get(f"/inspectionsByStation/{segment(station)}"))

    def explainAccess(
        self, username: str, experimentName: str, path: str = "", stationName: str | None = None
    ) -> Explanation:
        """Say whether somebody may read something of an experiment; everybody may ask about themselves.

        :param path: below the experiment's directory, e.g. ``data/run1``; default: ``data``.
        :returns: httpsAllowed, httpsRule, diskAllowed, diskRule, components, groupName, inGroupRecorded (by DM),
            inGroupOnHost (as the storage host says), differences, limits.
        """
        query = {"experimentName": experimentName, "path": path} | given(stationName=station_of(stationName))
        return Explanation(self.client.get(f"/access/{segment(username)}", **query))

    def _page(self, experiment: str, station: str | None, after: int, limit: int) -> Inspection:
        chosen = station_of(station)
        place = f"/{segment(experiment)}" + (f"/{segment(chosen)}" if chosen else "")
        return Inspection(self.client.get(f"/inspectionsByExperiment{place}", after=after, limit=limit))
