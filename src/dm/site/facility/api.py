"""Published Python API of the facility database service: beam-time proposals (BSS) and safety forms (ESAF)."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from dm.common.client import ApiClient, ServiceMonitorApi, segment
from dm.common.environment import URL_VARIABLES, station_name
from dm.common.records import DmObject

_LONG = 120.0  # seconds; tens of thousands of people
_READING_SECONDS = 600.0
_RUN_NAME = re.compile(r"\d{4}-\d+")


class Run(DmObject):
    """A run cycle: name, startTime, endTime (ISO 8601)."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["name", "startTime", "endTime"]


class Beamline(DmObject):
    """A beamline: name."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["name"]


class Proposal(DmObject):
    """A beam-time proposal: id, title, startTime and endTime (ISO 8601), duration in s, experimenters ..."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "title", "startTime", "endTime"]

    def getStartDate(self) -> str | None:
        """Return when it starts, as the record says it."""
        return self.data.get("startTime")

    def getEndDate(self) -> str | None:
        """Return when it ends, as the record says it."""
        return self.data.get("endTime")


class Esaf(DmObject):
    """A safety form: esafId, esafTitle, description, sector, esafStatus, experimentStartDate, experimentUsers ..."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["esafId", "esafTitle", "experimentStartDate", "experimentEndDate"]

    def getStartDate(self) -> str | None:
        """Return the first day, ``YYYY-MM-DD HH:MM:SS``."""
        return self.data.get("experimentStartDate")

    def getEndDate(self) -> str | None:
        """Return the last day, ``YYYY-MM-DD HH:MM:SS``."""
        return self.data.get("experimentEndDate")


class ExperimentPlan(DmObject):
    """What an experiment for a proposal or safety form is to be; ``ExperimentDsApi.addExperimentByPlan`` makes it."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["experimentName", "stationName", "rootPath", "startDate", "endDate"]


class Reading(DmObject):
    """How reading one kind of record from one of the facility's systems went."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "adapter",
        "kind",
        "status",
        "readTimestamp",
        "countRecords",
        "countRejected",
        "errorMessage",
    ]


class _FacilityApi(ApiClient):
    URL_VARIABLE: ClassVar[str] = URL_VARIABLES["facility"]

    def listStationProposals(
        self, stationName: str | None = None, beamlineName: str | None = None, runName: str | None = None
    ) -> list[Proposal]:
        """Return the proposals of a station (default ``DM_STATION_NAME``), optionally of one beamline and run."""
        path = f"/bss/stationProposals/{segment(station_name(stationName))}{_optional(beamlineName)}"
        return self._records(Proposal, self.client.get(path, runName=runName))


class BssApsDbApi(_FacilityApi):
    """Runs, beamlines and proposals. Every method raises CommunicationError when the service does not answer."""

    def listRuns(self) -> list[Run]:
        """Return all run cycles."""
        return self._records(Run, self.client.get("/bss/runs"))

    def getCurrentRun(self) -> Run:
        """Return the run cycle of today."""
        return self._record(Run, self.client.get("/bss/runs/current"))

    def listBeamlines(self) -> list[Beamline]:
        """Return all beamlines."""
        return self._records(Beamline, self.client.get("/bss/beamlines"))

    def listProposals(self, beamlineName: str | None = None, runName: str | None = None) -> list[Proposal]:
        """Return the proposals of a beamline and run; without a run those of the current one.

        A first argument that looks like a run (``2026-1``) is the run.
        """
        beamline, run = beamlineName, runName
        if run is None and beamline and _RUN_NAME.fullmatch(beamline):
            beamline, run = None, beamline
        return self._records(Proposal, self.client.get(f"/bss/beamlineProposals{_optional(beamline)}", runName=run))

    def getProposal(self, id: int | str, runName: str | None = None, beamlineName: str | None = None) -> Proposal:
        """Return one proposal. :raises ObjectNotFound: no such proposal in that run at that beamline."""
        path = f"/bss/proposalsById/{segment(id)}"
        return self._record(Proposal, self.client.get(path, runName=runName, beamlineName=beamlineName))

    def getStationProposalById(self, stationName: str | None, id: int | str, runName: str | None = None) -> Proposal:
        """Return one proposal of a station. :raises ObjectNotFound: the station has no such proposal in that run."""
        path = f"/bss/stationProposalsById/{segment(station_name(stationName))}/{segment(id)}"
        return self._record(Proposal, self.client.get(path, runName=runName))

    def getExperimentPlan(self, stationName: str | None, id: int | str, runName: str | None = None) -> ExperimentPlan:
        """Return name, dates, place and people of an experiment for a proposal, as the site's template has them."""
        path = f"/bss/experimentPlans/{segment(station_name(stationName))}/{segment(id)}"
        return self._record(ExperimentPlan, self.client.get(path, runName=runName))


class EsafApsDbApi(_FacilityApi):
    """Safety forms. Every method raises CommunicationError when the service does not answer."""

    def listEsafs(self, sector: int | str, year: int | str | None = None) -> list[Esaf]:
        """Return the safety forms of a sector (``"08"``), optionally of one year."""
        return self._records(Esaf, self.client.get(f"/esaf/sectorEsafs/{segment(sector)}", year=year))

    def getEsaf(self, id: int | str) -> Esaf:
        """Return one safety form. :raises ObjectNotFound: no such form."""
        return self._record(Esaf, self.client.get(f"/esaf/esafsById/{segment(id)}"))

    def listStationEsafs(
        self, stationName: str | None = None, beamlineName: str | None = None, year: int | str | None = None
    ) -> list[Esaf]:
        """Return the safety forms of a station (default ``DM_STATION_NAME``), optionally of one beamline and year."""
        path = f"/esaf/stationEsafs/{segment(station_name(stationName))}{_optional(beamlineName)}"
        return self._records(Esaf, self.client.get(path, year=year))

    def getStationEsafById(self, stationName: str | None, id: int | str) -> Esaf:
        """Return one safety form of a station. :raises ObjectNotFound: the station has no such form."""
        path = f"/esaf/stationEsafsById/{segment(station_name(stationName))}/{segment(id)}"
        return self._record(Esaf, self.client.get(path))

    def getExperimentPlan(self, stationName: str | None, id: int | str) -> ExperimentPlan:
        """Return name, dates, place and people of an experiment for a safety form, as the site's template has them."""
        path = f"/esaf/experimentPlans/{segment(station_name(stationName))}/{segment(id)}"
        return self._record(ExperimentPlan, self.client.get(path))

    def listStationEsafsByDateRange(self, stationName: str | None, startDate: str, endDate: str) -> list[Esaf]:
        """Return the safety forms of a station that touch the days from ``startDate`` to ``endDate`` (YYYY-MM-DD)."""
        path = f"/esaf/stationEsafsByDateRange/{segment(station_name(stationName))}"
        return self._records(Esaf, self.client.get(path, startDate=startDate, endDate=endDate))


class ServiceMonitorApsDbApi(ServiceMonitorApi):
    """The service itself, and its reading of the facility's systems."""

    URL_VARIABLE: ClassVar[str] = URL_VARIABLES["facility"]

    def getReadings(self) -> list[Reading]:
        """Return for each adapter and kind when it was read last, and how that went (managers)."""
        return self._records(Reading, self.client.get("/facility/readings"))

    def refresh(self, adapter: str | None = None, kind: str | None = None, force: bool = False) -> list[Reading]:
        """Read the facility's systems now (administrators).

        :param adapter: :param kind: only this one. :param force: also when many records would go.
        """
        body = {"adapter": adapter, "kind": kind, "force": force}
        return self._records(Reading, self.client.post("/facility/readings", body, timeout=_READING_SECONDS))


class FacilityUser(DmObject):
    """A person of the facility: username, badge, firstName, lastName, email, institution, active ..."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["username", "badge", "firstName", "lastName", "email", "institution"]


class UserSync(DmObject):
    """A run that brought users up to date: id, adapter, status, message, counts, lists of what changed."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "id", "adapter", "status", "startTimestamp", "added", "updated", "reactivated", "deactivated", "absent",
        "unchanged", "skipped", "message",
    ]  # fmt: skip


class ApsUserDbApi(ApiClient):
    """The facility's people, as the last synchronisation with its user directories found them, and those runs."""

    URL_VARIABLE: ClassVar[str] = URL_VARIABLES["facility"]

    def listUsers(self) -> list[FacilityUser]:
        """Return everybody (managers)."""
        found: list[FacilityUser] = []
        after: int | None = 0
        while after is not None:
            page = self.client.get("/facilityUsers", after=after, timeout=_LONG)
            found += self._records(FacilityUser, page["users"])
            after = page["nextAfter"]
        return found

    def getUserByBadge(self, badge: int | str) -> FacilityUser:
        """Return the person with a badge (managers). :raises ObjectNotFound: nobody has it."""
        return self._record(FacilityUser, self.client.get(f"/facilityUsersByBadge/{segment(badge)}"))

    def getUserByUsername(self, username: str) -> FacilityUser:
        """Return a person by user name (managers). :raises ObjectNotFound: nobody has it."""
        return self._record(FacilityUser, self.client.get(f"/facilityUsersByUsername/{segment(username)}"))

    def syncUsers(
        self, adapterName: str | None = None, dryRun: bool = False, force: bool = False, waitTime: float = 0.0
    ) -> UserSync:
        """Begin to bring users up to date with a user directory and return the run (administrators).

        :param adapterName: may be left out where there is only one. :param dryRun: only say what would be done.
        :param force: also where more would change than the settings allow.
        :param waitTime: wait up to so many seconds (30 at most) for the end; see :meth:`getUserSync`.
        :raises InvalidObjectState: a run is going on.
        """
        body = {"adapter": adapterName, "dryRun": dryRun, "force": force, "waitTime": waitTime}
        given = {key: value for key, value in body.items() if value is not None}
        return self._record(UserSync, self.client.post("/userSyncs", given, timeout=waitTime + _LONG))

    def getUserSync(self, id: str, waitTime: float = 0.0) -> UserSync:
        """Return a run with all it changed or left out, after waiting up to ``waitTime`` seconds (30) for its end."""
        reply = self.client.get(f"/userSyncs/{segment(id)}", waitTime=waitTime or None, timeout=waitTime + _LONG)
        return self._record(UserSync, reply)

    def listUserSyncs(self, adapterName: str | None = None, limit: int = 100) -> list[UserSync]:
        """Return the last runs without their lists, newest last (administrators)."""
        return self._records(UserSync, self.client.get("/userSyncs", adapter=adapterName, limit=limit))


def _optional(value: Any) -> str:
    return f"/{segment(value)}" if value else ""
