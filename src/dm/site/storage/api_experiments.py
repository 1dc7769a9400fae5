"""The published class for experiments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from dm.common.client import segment
from dm.common.environment import STATION_NAME
from dm.common.errors import InvalidArgument
from dm.common.records import DmObject
from dm.site.storage.api_base import (
    Experiment,
    ExperimentType,
    FileMetadata,
    Operation,
    Station,
    Storage,
    by_name,
    given,
    station_of,
)
from dm.site.storage.api_files import Progress, download
from dm.site.storage.api_life import LifeMethods
from dm.site.storage.api_plans import PlannedExperiment, carry_out


class ExperimentDsApi(LifeMethods):
    """Experiments."""

    def addExperiment(  # noqa: PLR0917 - the published order
        self,
        experimentName: str,
        stationName: str | None = None,
        typeName: str | None = None,
        description: str | None = None,
        rootPath: str | None = None,
        storageName: str | None = None,
        globusGroupId: str | None = None,
        startDate: str | float | None = None,
        endDate: str | float | None = None,
        managedDirectoryStructure: bool | None = None,
        beamlineUserAccount: str | None = None,
        beamlineAdminAccount: str | None = None,
        usernameList: Sequence[str] | None = None,
    ) -> Experiment:
        """Add an experiment and make its directories.

        :param startDate: :param endDate: like ``05-Mar-26`` or ISO 8601.
        :param usernameList: members from the start, with role ``User``.
        :raises ObjectAlreadyExists: the station has one of that name. :raises InvalidArgument: a bad value.
        """
        body = given(
            experimentName=experimentName,
            stationName=station_of(stationName),
            typeName=typeName,
            description=description,
            rootPath=rootPath,
            storageName=storageName,
            globusGroupId=globusGroupId,
            startDate=startDate,
            endDate=endDate,
            managedDirectoryStructure=managedDirectoryStructure,
            beamlineUserAccount=beamlineUserAccount,
            beamlineAdminAccount=beamlineAdminAccount,
            usernames=list(usernameList) if usernameList else None,
        )
        return Experiment(self.client.post("/experiments", body))

    def addExperimentByPlan(self, plan: Mapping[str, Any], **options: Any) -> PlannedExperiment:
        """Make the experiment that the facility service plans for a proposal or a safety form, with its people.

        Repeated, it adds who is missing. People who are no users here are reported, not refused.

        :param plan: of ``EsafApsDbApi.getExperimentPlan`` or ``BssApsDbApi.getExperimentPlan``; its
            ``experimentName``, ``description``, ``rootPath``, ``startDate`` and ``endDate`` may be changed before.
        :param options: further arguments of :meth:`addExperiment`, e.g. ``typeName``.
        :returns: experiment (its record), addedUsernames, missingUsers.
        :raises ObjectAlreadyExists: an experiment of that name exists that is not of this plan.
        """
        return carry_out(self, plan, **options)

    def updateExperiment(  # noqa: PLR0917
        self,
        experimentId: int | None = None,
        experimentName: str | None = None,
        startDate: str | float | None = None,
        endDate: str | float | None = None,
        typeName: str | None = None,
        description: str | None = None,
        rootPath: str | None = None,
        stationName: str | None = None,
        **others: Any,
    ) -> Experiment:
        """Change an experiment; ``None`` leaves a value. Another name or root path moves its directory along.

        :param experimentId: which one; then ``experimentName`` may be a new name.
        :param experimentName: which one, when there is no number.
        :param others: ``globusGroupId``, ``beamlineUserAccount``, ``beamlineAdminAccount``,
            ``managedDirectoryStructure``, ``dataDirectoryFrozen``, ``analysisDirectoryFrozen``.
        """
        body = given(
            startDate=startDate,
            endDate=endDate,
            typeName=typeName,
            description=description,
            rootPath=rootPath,
            **others,
        )
        if experimentId is not None:
            body |= given(newName=experimentName)
            return Experiment(self.client.put(f"/experimentsById/{segment(experimentId)}", body))
        if not experimentName:
            raise InvalidArgument("Name the experiment to change: give experimentId or experimentName.")
        return Experiment(self.client.put(by_name(experimentName, stationName), body))

    def getExperimentByName(self, experimentName: str, stationName: str | None = None) -> Experiment:
        """Return an experiment. :raises ObjectNotFound: ``... does not exist``, for the caller."""
        return Experiment(self.client.get(by_name(experimentName, stationName)))

    def getExperimentById(self, experimentId: int) -> Experiment:
        """Return an experiment. :raises ObjectNotFound: ``... does not exist``, for the caller."""
        return Experiment(self.client.get(f"/experimentsById/{segment(experimentId)}"))

    def getExperimentsByStation(self, stationName: str | None = None) -> list[Experiment]:
        """Return the station's experiments that the caller may see (short records), newest last."""
        station = station_of(stationName)
        if not station:
            raise InvalidArgument(f"No station is named; give stationName or set {STATION_NAME}.")
        return self._records(Experiment, self.client.get(f"/experimentsByStation/{segment(station)}"))

    def deleteExperimentByName(
        self, experimentName: str, stationName: str | None = None, force: bool = False
    ) -> Operation:
        """Begin to delete an experiment with all its files; follow it with :meth:`getOperation`.

        It can be restored for as long as the site keeps deleted experiments; see :meth:`getDeletedExperiments`.

        :param force: also while DAQs, uploads or jobs run, or if it is pinned. :raises InvalidObjectState: so it is.
        """
        return Operation(self.client.delete(by_name(experimentName, stationName), force=force))

    def deleteExperimentById(self, experimentId: int, force: bool = False) -> Operation:
        """Begin to delete an experiment; see :meth:`deleteExperimentByName`."""
        return Operation(self.client.delete(f"/experimentsById/{segment(experimentId)}", force=force))

    def getOperation(self, id: str) -> Operation:
        """Return an operation; its ``status`` is pending, running, done or failed."""
        return Operation(self.client.get(f"/operations/{segment(id)}"))

    def upsertExperimentMetadata(
        self, key: str, value: Any, experimentName: str, stationName: str | None = None
    ) -> Experiment:
        """Set one key of an experiment's own metadata; it is then a key of the experiment's record."""
        body = {"key": key, "value": value, "experimentName": experimentName} | given(
            stationName=station_of(stationName)
        )
        return Experiment(self.client.put("/experimentMetadata", body))

    def downloadFile(  # noqa: PLR0917
        self,
        experimentFilePath: str,
        experimentName: str,
        destDir: str | os.PathLike[str] = ".",
        stationName: str | None = None,
        root: str | None = None,
        progress: Progress | None = None,
    ) -> FileMetadata:
        """Download one file, verified; see :meth:`FileDsApi.downloadFile`."""
        return download(self, experimentFilePath, experimentName, destDir, station_of(stationName), root, progress)

    def restorePermissions(
        self, experimentName: str, relativePath: str = "", stationName: str | None = None
    ) -> DmObject:
        """Give files and directories of an experiment their owner and mode again.

        :param relativePath: below the experiment's directory; empty for all of it.
        :returns: countDirectories, countFiles, countSkipped, skipped.
        """
        body = {"experimentName": experimentName, "relativePath": relativePath}
        return DmObject(
            self.client.post("/files/restorePermissions", body | given(stationName=station_of(stationName)))
        )

    def getStations(self) -> list[Station]:
        """Return all stations."""
        return self._records(Station, self.client.get("/stations"))

    def addStation(self, name: str, description: str = "") -> Station:
        """Add a station (administrators)."""
        return Station(self.client.post("/stations", {"name": name, "description": description}))

    def getExperimentTypes(self) -> list[ExperimentType]:
        """Return all experiment types."""
        return self._records(ExperimentType, self.client.get("/experimentTypes"))

    def addExperimentType(self, name: str, description: str = "") -> ExperimentType:
        """Add an experiment type (administrators)."""
        return ExperimentType(self.client.post("/experimentTypes", {"name": name, "description": description}))

    def getStorages(self) -> list[Storage]:
        """Return all storages."""
        return self._records(Storage, self.client.get("/storages"))

    def addStorage(self, name: str, storageHost: str, storageDirectory: str, description: str = "") -> Storage:
        """Add a storage (administrators); its directory must exist on the service's host."""
        body = {
            "name": name,
            "storageHost": storageHost,
            "storageDirectory": storageDirectory,
            "description": description,
        }
        return Storage(self.client.post("/storages", body))
