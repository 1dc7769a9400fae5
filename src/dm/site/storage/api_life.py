"""What scripts do with experiments beyond adding and changing them, and with stations, storages and types."""

from __future__ import annotations

from dm.common.client import segment
from dm.common.environment import STATION_NAME
from dm.common.errors import InvalidArgument
from dm.site.storage.api_base import (
    DsApi,
    Experiment,
    ExperimentType,
    Operation,
    Station,
    Storage,
    given,
    station_of,
)


class LifeMethods(DsApi):
    """Methods of :class:`ExperimentDsApi`."""

    def getDeletedExperiments(self, stationName: str | None = None) -> list[Experiment]:
        """Return the station's deleted experiments that can still be restored, the one purged next last.

        :returns: short records with ``deletedTime``, ``purgeTime`` (seconds), ``deletedTimestamp``,
            ``purgeTimestamp``, ``countFiles``, ``countBytes``.
        """
        station = station_of(stationName)
        if not station:
            raise InvalidArgument(f"No station is named; give stationName or set {STATION_NAME}.")
        return self._records(Experiment, self.client.get(f"/deletedExperimentsByStation/{segment(station)}"))

    def restoreDeletedExperiment(self, experimentId: int, newName: str | None = None) -> Operation:
        """Restore a deleted experiment with its files and members; follow it with :meth:`getOperation`.

        :param newName: if its name is used by another one by now.
        :raises ObjectNotFound: there is no such deleted experiment (any more).
        :raises ObjectAlreadyExists: its name is taken.
        """
        path = f"/deletedExperimentsById/{segment(experimentId)}/restore"
        return Operation(self.client.put(path, given(newName=newName)))

    def purgeDeletedExperiment(self, experimentId: int) -> Operation:
        """Remove a deleted experiment for good, before its time (administrators)."""
        return Operation(self.client.delete(f"/deletedExperimentsById/{segment(experimentId)}"))

    def deleteExperimentMetadata(self, key: str, experimentName: str, stationName: str | None = None) -> Experiment:
        """Remove one key of an experiment's own metadata. :raises ObjectNotFound: there is no such key."""
        query = given(stationName=station_of(stationName))
        return Experiment(self.client.delete("/experimentMetadata", key=key, experimentName=experimentName, **query))

    def pinExperiment(self, experimentName: str, nDays: float, stationName: str | None = None) -> Experiment:
        """Keep an experiment from being deleted for so many days from now; 0: no longer."""
        body = {"experimentName": experimentName, "nDays": nDays} | given(stationName=station_of(stationName))
        return Experiment(self.client.put("/experimentPins", body))

    def moveExperiment(self, experimentName: str, storageName: str, stationName: str | None = None) -> Operation:
        """Begin to move an experiment to another storage (administrators); follow it with :meth:`getOperation`.

        :returns: the operation, which tells ``countFiles`` and ``countBytes`` as it goes on.
        :raises InvalidObjectState: DAQs, uploads or jobs run, or the storage cannot take it.
        """
        body = {"experimentName": experimentName, "storageName": storageName}
        body |= given(stationName=station_of(stationName))
        return Operation(self.client.put("/experimentStorages", body))

    def archiveExperiment(self, experimentName: str, stationName: str | None = None) -> Operation:
        """Begin to copy an experiment into the site's archive; again copies what is new or has changed.

        :returns: the task; see :meth:`getArchiveTask`. :raises ConfigurationError: the site has no archive.
        :raises InvalidObjectState: DAQs, uploads or jobs run, or a task is unfinished.
        """
        body = {"experimentName": experimentName} | given(stationName=station_of(stationName))
        return Operation(self.client.post("/archiveTasks", body))

    def restoreArchivedExperiment(self, experimentName: str, stationName: str | None = None) -> Operation:
        """Begin to bring files back that the archive has and the experiment has not; what is there stays.

        :returns: the task. :raises ObjectNotFound: the experiment was never archived.
        """
        body = {"experimentName": experimentName} | given(stationName=station_of(stationName))
        return Operation(self.client.post("/archiveTasks/restore", body))

    def getArchiveTask(self, id: str) -> Operation:
        """Return a task of the archive: status, ``countFiles``, ``countBytes``, ``countCopied``."""
        return Operation(self.client.get(f"/archiveTasks/{segment(id)}"))

    def listArchiveTasks(self) -> list[Operation]:
        """Return the newest tasks of the archive at stations the caller manages, newest last."""
        return self._records(Operation, self.client.get("/archiveTasks"))

    def updateStation(
        self,
        name: str,
        description: str | None = None,
        pathTemplate: str | None = None,
        storageName: str | None = None,
    ) -> Station:
        """Change a station (administrators); ``None`` leaves a value, empty text takes it away.

        :param pathTemplate: directories of experiments added from now on, like ``{station}/{year}-{month}/{name}``;
            fields are station, root_path, name, type, year, month, day (of the start date).
        :param storageName: storage of experiments added from now on.
        """
        body = given(description=description, pathTemplate=pathTemplate, storageName=storageName)
        return Station(self.client.put(f"/stations/{segment(name)}", body))

    def deleteStation(self, name: str) -> Station:
        """Delete a station that no experiment ever used, with the roles at it (administrators)."""
        return Station(self.client.delete(f"/stations/{segment(name)}"))

    def updateStorage(
        self,
        name: str,
        description: str | None = None,
        storageHost: str | None = None,
        retired: bool | None = None,
    ) -> Storage:
        """Change a storage (administrators); ``None`` leaves a value.

        :param retired: it takes no new experiments; those that are there stay.
        """
        body = given(description=description, storageHost=storageHost, retired=retired)
        return Storage(self.client.put(f"/storages/{segment(name)}", body))

    def deleteStorage(self, name: str) -> Storage:
        """Delete a storage that no experiment ever used (administrators); its directory stays."""
        return Storage(self.client.delete(f"/storages/{segment(name)}"))

    def updateExperimentType(
        self, name: str, newName: str | None = None, description: str | None = None
    ) -> ExperimentType:
        """Change an experiment type (administrators); ``None`` leaves a value."""
        body = given(newName=newName, description=description)
        return ExperimentType(self.client.put(f"/experimentTypes/{segment(name)}", body))

    def deleteExperimentType(self, name: str) -> ExperimentType:
        """Delete an experiment type that no experiment ever used (administrators)."""
        return ExperimentType(self.client.delete(f"/experimentTypes/{segment(name)}"))
