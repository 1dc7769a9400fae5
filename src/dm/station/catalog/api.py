"""Published Python classes of the metadata catalog, and the one the station's other services use."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from dm.common.client import ApiClient, ServiceMonitorApi, segment
from dm.common.errors import InvalidArgument
from dm.common.records import DmObject
from dm.station.catalog.sending import add_up, by_experiment, experiment_of, mapping, parts, plain

__all__ = [
    "CatalogServiceApi",
    "CollectionMetadata",
    "DatasetCatApi",
    "DatasetMetadata",
    "FileCatApi",
    "FileMetadata",
    "RunCatApi",
    "RunMetadata",
    "ServiceMonitorCatApi",
]

URL_VARIABLE = "DM_CAT_WEB_SERVICE_URL"
MAX_FILES = 500_000
PAGE = 2000
LONG = 600.0
"""Seconds to wait for what walks over a whole collection."""

KeyList = str | Sequence[str] | None


class FileMetadata(DmObject):
    """A file in the catalog."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "fileName", "experimentFilePath", "fileSize", "md5Sum"]


class CollectionMetadata(DmObject):
    """Statistics of an experiment's files; sizes in bytes."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "experimentName",
        "countFiles",
        "collectionSize",
        "averageFileSize",
        "minFileSize",
        "maxFileSize",
        "stdDevFileSize",
    ]


class DatasetMetadata(DmObject):
    """A dataset."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "experimentName", "datasetName", "createTimestamp"]


class RunMetadata(DmObject):
    """A run."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "experimentName", "runId", "createTimestamp"]


def _keys(key_list: KeyList) -> str | list[str] | None:
    return key_list if key_list is None or isinstance(key_list, str) else list(key_list)


class _CatApi(ApiClient):
    URL_VARIABLE: ClassVar[str] = URL_VARIABLE


class FileCatApi(_CatApi):
    """File records of experiments. Paths are below the experiment's ``data`` directory, else below ``analysis``."""

    def addExperimentFile(self, fileMetadata: Mapping[str, Any]) -> FileMetadata:
        """Add a file's record.

        :param fileMetadata: ``experimentName``, ``experimentFilePath``, any system key, free metadata beside them.
        :raises ObjectAlreadyExists: it is there.
        """
        record = mapping(fileMetadata, "fileMetadata")
        name = experiment_of(record, "File record")
        path = f"/experimentFiles/{segment(name)}"
        return self._record(FileMetadata, self.client.post(path, {"fileInfo": record}))

    def updateExperimentFile(self, fileMetadata: Mapping[str, Any]) -> FileMetadata:
        """Set the given keys of a file's record (``experimentName`` and ``experimentFilePath`` say which).

        :raises ObjectNotFound: no such file.
        """
        record = mapping(fileMetadata, "fileMetadata")
        name = experiment_of(record, "File record")
        file_path = record.get("experimentFilePath")
        if not isinstance(file_path, str) or not file_path:
            raise InvalidArgument("File record has no experimentFilePath; name the file.")
        path = f"/experimentFilesByPath/{segment(name)}/{segment(file_path)}"
        return self._record(FileMetadata, self.client.put(path, {"fileInfo": record}, root=record.get("root")))

    def updateExperimentFileById(self, fileMetadata: Mapping[str, Any]) -> FileMetadata:
        """Set the given keys of a file's record (``experimentName`` and ``id`` say which)."""
        record = mapping(fileMetadata, "fileMetadata")
        name = experiment_of(record, "File record")
        if not record.get("id"):
            raise InvalidArgument("File record has no id; give it, or update by path.")
        path = f"/experimentFilesById/{segment(name)}/{segment(record['id'])}"
        return self._record(FileMetadata, self.client.put(path, {"fileInfo": record}))

    def updateExperimentFiles(
        self, fileMetadataList: Iterable[Mapping[str, Any]], experimentName: str | None = None
    ) -> DmObject:
        """Set the given keys of many records.

        :param fileMetadataList: records as for :meth:`updateExperimentFile`.
        :param experimentName: for records that do not name their experiment.
        :returns: ``countFiles``, ``nUpdated``, ``nUnchanged``, ``nErrors`` and ``errors``.
        """
        total: dict[str, Any] = {}
        for name, records in by_experiment(fileMetadataList, experimentName).items():
            for part in parts(records):
                outcome = self.client.put(f"/experimentFiles/{segment(name)}", {"files": part}, timeout=LONG)
                add_up(total, outcome, name)
        return DmObject(total)

    def updateExperimentFilesAsync(
        self, fileMetadataList: Iterable[Mapping[str, Any]], experimentName: str | None = None
    ) -> DmObject:
        """Hand over an update of many records of one experiment; it is carried out in the background.

        :returns: the operation, with ``id`` and ``status``; see :meth:`getAsyncUpdateStatus`.
        """
        groups = by_experiment(fileMetadataList, experimentName)
        if len(groups) != 1:
            raise InvalidArgument("Give the records of one experiment at a time.")
        [(name, records)] = groups.items()
        return DmObject(self.client.post(f"/fileUpdates/{segment(name)}", {"files": records}, timeout=LONG))

    def getAsyncUpdateStatus(self, updateId: str) -> DmObject:
        """Return an operation: ``id``, ``status`` (pending, running, done, failed), counts, ``errors``."""
        return DmObject(self.client.get(f"/fileUpdates/{segment(updateId)}"))

    def getExperimentFile(self, experimentName: str, experimentFilePath: str) -> FileMetadata:
        """Return a file's record. :raises ObjectNotFound: no such file."""
        path = f"/experimentFilesByPath/{segment(experimentName)}/{segment(experimentFilePath)}"
        return self._record(FileMetadata, self.client.get(path))

    def getExperimentFileById(self, experimentName: str, id: str) -> FileMetadata:
        """Return the record with this id."""
        return self._record(
            FileMetadata, self.client.get(f"/experimentFilesById/{segment(experimentName)}/{segment(id)}")
        )

    def getExperimentFiles(  # noqa: PLR0917 - published
        self,
        experimentName: str,
        queryDict: Mapping[str, Any] | None = None,
        skip: int = 0,
        limit: int = MAX_FILES,
        keyList: KeyList = "ALL",
        rawData: bool = False,
    ) -> list[FileMetadata] | str:
        """Return the records that match, in the order in which their files were first seen.

        Any number is fetched page by page; :meth:`iterateExperimentFiles` needs no memory for them all.

        :param queryDict: ``{key: value}`` or with operators, ``{"fileSize": {"$gt": 1000}}``.
        :param keyList: ``"ALL"``, ``"DEFAULT"`` or names.
        :param rawData: return the JSON text of the list instead.
        """
        limit = max(0, min(int(limit), MAX_FILES))
        records = self._pages(experimentName, queryDict, max(0, int(skip)), limit, keyList)
        if rawData:
            return json.dumps(list(records))
        return [FileMetadata(record) for record in records]

    def iterateExperimentFiles(
        self, experimentName: str, queryDict: Mapping[str, Any] | None = None, keyList: KeyList = "ALL"
    ) -> Iterator[FileMetadata]:
        """Yield all matching records, fetching them as they are consumed."""
        return (FileMetadata(record) for record in self._pages(experimentName, queryDict, 0, None, keyList))

    def deleteExperimentFile(self, experimentName: str, experimentFilePath: str) -> FileMetadata:
        """Remove a file's record (not the file) and return it."""
        path = f"/experimentFilesByPath/{segment(experimentName)}/{segment(experimentFilePath)}"
        return self._record(FileMetadata, self.client.delete(path))

    def deleteExperimentFileById(self, experimentName: str, id: str) -> FileMetadata:
        """Remove the record with this id (not the file) and return it."""
        return self._record(
            FileMetadata, self.client.delete(f"/experimentFilesById/{segment(experimentName)}/{segment(id)}")
        )

    def getExperimentFileCollectionStats(self, experimentName: str) -> CollectionMetadata:
        """Return number and sizes of an experiment's files."""
        path = f"/experimentFileCollections/{segment(experimentName)}/stats"
        return self._record(CollectionMetadata, self.client.get(path, timeout=LONG))

    def renameExperimentFileCollection(self, experimentName: str, newExperimentName: str) -> CollectionMetadata:
        """Give an experiment's records to the experiment of another name.

        An experiment that was renamed takes its records along by itself; then this only confirms it.

        :raises ObjectNotFound: there are none. :raises ObjectAlreadyExists: the other experiment has records.
        """
        path = f"/experimentFileCollections/{segment(experimentName)}/rename"
        reply = self.client.put(path, {"newExperimentName": newExperimentName}, timeout=LONG)
        return self._record(CollectionMetadata, reply)

    def deleteExperimentFileCollection(self, experimentName: str) -> DmObject:
        """Remove all records of an experiment (not the files); return ``experimentName`` and ``countFiles``.

        :raises ObjectNotFound: there are none.
        """
        path = f"/experimentFileCollections/{segment(experimentName)}"
        return DmObject(self.client.delete(path, timeout=LONG))

    def _pages(
        self, name: str, query: Mapping[str, Any] | None, skip: int, limit: int | None, key_list: KeyList
    ) -> Iterator[dict[str, Any]]:
        """Yield matching records, page by page."""
        path = f"/experimentFilePages/{segment(name)}"
        arguments: dict[str, Any] = {"queryDict": plain(query) if query else None, "keyList": _keys(key_list)}
        left = math.inf if limit is None else limit
        after = None
        while left > 0:
            page = self.client.get(
                path, after=after, skip=skip or None, limit=int(min(left, PAGE)), timeout=LONG, **arguments
            )
            skip = page["skip"]
            left -= len(page["files"])
            yield from page["files"]
            after = page["after"]
            if after is None:
                return


class DatasetCatApi(_CatApi):
    """Datasets: named parts of an experiment with free, nested metadata."""

    def addExperimentDataset(self, datasetInfo: Mapping[str, Any]) -> DatasetMetadata:
        """Add a dataset and return it with its ``id``.

        :param datasetInfo: ``experimentName``, ``datasetName`` and anything else. ``experimentFilePathList`` (paths) or
            ``fileQueryDict`` (a query) says which files belong to it. An ``_id`` may be given and becomes the id.
        :raises ObjectAlreadyExists: the experiment has a dataset of that name. :raises InvalidArgument: bad input.
        """
        info = mapping(datasetInfo, "datasetInfo")
        path = f"/experimentDatasets/{segment(experiment_of(info, 'Dataset'))}"
        return self._record(DatasetMetadata, self.client.post(path, {"datasetInfo": info}))

    def updateExperimentDataset(self, datasetInfo: Mapping[str, Any]) -> DatasetMetadata:
        """Set the given keys of the dataset that ``experimentName`` and ``datasetName`` name."""
        info = mapping(datasetInfo, "datasetInfo")
        name = info.get("datasetName")
        if not isinstance(name, str) or not name:
            raise InvalidArgument("Dataset has no datasetName; name it.")
        path = f"/experimentDatasets/{segment(experiment_of(info, 'Dataset'))}/{segment(name)}"
        return self._record(DatasetMetadata, self.client.put(path, {"datasetInfo": info}))

    def updateDatasetById(self, datasetInfo: Mapping[str, Any]) -> DatasetMetadata:
        """Set the given keys of the dataset with this ``id``."""
        info = mapping(datasetInfo, "datasetInfo")
        dataset_id = info.get("id") or info.get("_id")
        if not isinstance(dataset_id, str):
            raise InvalidArgument("Dataset has no id; give it, or update by name.")
        reply = self.client.put(f"/datasetsById/{segment(dataset_id)}", {"datasetInfo": info})
        return self._record(DatasetMetadata, reply)

    def getDatasets(
        self, queryDict: Mapping[str, Any] | None = None, skip: int = 0, limit: int = 5000, keyList: KeyList = "ALL"
    ) -> list[DatasetMetadata]:
        """Return the datasets of all experiments the caller may see, by experiment, oldest first."""
        query: dict[str, Any] = {"queryDict": plain(queryDict) if queryDict else None, "keyList": _keys(keyList)}
        return self._records(
            DatasetMetadata, self.client.get("/datasets", skip=skip, limit=limit, timeout=LONG, **query)
        )

    def getExperimentDatasets(
        self,
        experimentName: str,
        queryDict: Mapping[str, Any] | None = None,
        skip: int = 0,
        limit: int = 5000,
        keyList: KeyList = "ALL",
    ) -> list[DatasetMetadata]:
        """Return an experiment's datasets, oldest first."""
        query: dict[str, Any] = {"queryDict": plain(queryDict) if queryDict else None, "keyList": _keys(keyList)}
        path = f"/experimentDatasets/{segment(experimentName)}"
        return self._records(DatasetMetadata, self.client.get(path, skip=skip, limit=limit, timeout=LONG, **query))

    def getDatasetById(self, id: str) -> DatasetMetadata:
        """Return the dataset with this id. :raises ObjectNotFound: there is none the caller may see."""
        return self._record(DatasetMetadata, self.client.get(f"/datasetsById/{segment(id)}"))

    def getExperimentDataset(self, experimentName: str, datasetName: str) -> DatasetMetadata:
        """Return a dataset by name. :raises ObjectNotFound: there is none."""
        path = f"/experimentDatasets/{segment(experimentName)}/{segment(datasetName)}"
        return self._record(DatasetMetadata, self.client.get(path))

    def getExperimentDatasetFiles(
        self, experimentName: str, datasetName: str, skip: int = 0, limit: int = MAX_FILES
    ) -> list[FileMetadata]:
        """Return the records of a dataset's files."""
        path = f"/experimentDatasets/{segment(experimentName)}/{segment(datasetName)}/files"
        found: list[FileMetadata] = []
        while len(found) < limit:
            wanted = min(PAGE, limit - len(found))
            page = self.client.get(path, skip=skip + len(found), limit=wanted, timeout=LONG)
            found += self._records(FileMetadata, page)
            if len(page) < wanted:
                break
        return found

    def deleteExperimentDataset(self, experimentName: str, datasetName: str) -> DatasetMetadata:
        """Remove a dataset (not its files) and return it."""
        path = f"/experimentDatasets/{segment(experimentName)}/{segment(datasetName)}"
        return self._record(DatasetMetadata, self.client.delete(path))


class RunCatApi(_CatApi):
    """Runs of an experiment's measurement, with free, nested metadata."""

    def addExperimentRun(self, runInfo: Mapping[str, Any]) -> RunMetadata:
        """Add a run and return it with its ``id``.

        :param runInfo: ``experimentName``, ``runId`` and anything else, usually ``metadata``.
        :raises ObjectAlreadyExists: the experiment has that run. :raises InvalidArgument: bad input.
        """
        info = mapping(runInfo, "runInfo")
        path = f"/experimentRuns/{segment(experiment_of(info, 'Run'))}"
        return self._record(RunMetadata, self.client.post(path, {"runInfo": info}))

    def updateExperimentRun(self, runInfo: Mapping[str, Any]) -> RunMetadata:
        """Set the given keys of the run that ``experimentName`` and ``runId`` name."""
        info = mapping(runInfo, "runInfo")
        run_id = info.get("runId")
        if not isinstance(run_id, str) or not run_id:
            raise InvalidArgument("Run has no runId; name it.")
        path = f"/experimentRuns/{segment(experiment_of(info, 'Run'))}/{segment(run_id)}"
        return self._record(RunMetadata, self.client.put(path, {"runInfo": info}))

    def getExperimentRuns(
        self,
        experimentName: str,
        queryDict: Mapping[str, Any] | None = None,
        skip: int = 0,
        limit: int = 5000,
        keyList: KeyList = "ALL",
    ) -> list[RunMetadata]:
        """Return an experiment's runs, oldest first."""
        query: dict[str, Any] = {"queryDict": plain(queryDict) if queryDict else None, "keyList": _keys(keyList)}
        path = f"/experimentRuns/{segment(experimentName)}"
        return self._records(RunMetadata, self.client.get(path, skip=skip, limit=limit, timeout=LONG, **query))

    def getExperimentRun(self, experimentName: str, runId: str) -> RunMetadata:
        """Return a run. :raises ObjectNotFound: there is none."""
        path = f"/experimentRuns/{segment(experimentName)}/{segment(runId)}"
        return self._record(RunMetadata, self.client.get(path))

    def deleteExperimentRun(self, experimentName: str, runId: str) -> RunMetadata:
        """Remove a run and return it."""
        path = f"/experimentRuns/{segment(experimentName)}/{segment(runId)}"
        return self._record(RunMetadata, self.client.delete(path))


class ServiceMonitorCatApi(ServiceMonitorApi):
    """The catalog's health."""

    URL_VARIABLE: ClassVar[str] = URL_VARIABLE


class CatalogServiceApi(_CatApi):
    """What the station's other services ask of the catalog, under the station's service account."""

    def upsertFiles(self, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Store what file records bring; repeatable, in any order (see :mod:`dm.station.catalog.items`).

        :param files: each ``experimentId``, ``experimentName``, ``path``, ``root``, any of ``fileSize``,
            ``fileModificationTime``, ``md5Sum``, ``digests``, ``version``, ``replicas``, all plain JSON values, and
            ``metadata``, which may be anything :func:`plain` takes.
        :returns: ``{countFiles, nAdded, nUpdated, nUnchanged, nErrors, errors}``. ``errors`` names by ``index`` the
            records that were refused for good (``errorClass``, ``errorMessage``); all others are stored.
        """
        total: dict[str, Any] = {}
        records = [{**record, "metadata": plain(record.get("metadata") or {})} for record in files]
        for part in parts(records):
            add_up(total, self.client.post("/files/bulk", {"files": part}), None)
        empty = {"countFiles": 0, "nAdded": 0, "nUpdated": 0, "nUnchanged": 0, "nErrors": 0, "errors": []}
        return total or empty
