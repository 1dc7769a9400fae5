"""The published class for files in storage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dm.common.client import ApiClient
from dm.common.records import DmObject
from dm.common.wire import literal
from dm.site.storage.api_base import DsApi, FileMetadata, given, station_of

COMPRESSIONS = ("", "gz", "bz2", "xz", "zst", "lz4")
Progress = Callable[[int, int], None]


class FileDsApi(DsApi):
    """Files in storage."""

    def statFile(
        self,
        experimentFilePath: str,
        experimentName: str,
        stationOrCompression: str | None = None,
        retrieveMd5Sum: bool | str | None = None,
        *,
        stationName: str | None = None,
        compression: str | None = None,
        root: str | None = None,
    ) -> FileMetadata:
        """Return a file's record: fileSize, fileModificationTime, md5Sum (if known or asked for), readyForProcessing.

        Two orders of positional arguments are published: ``(path, experiment, compression, retrieveMd5Sum)`` and
        ``(path, experiment, stationName[, compression])``. A bool in fourth place, an empty text or the name of a
        compression in third place mean the first.

        :param root: ``data`` or ``analysis``; default: data, else analysis.
        :raises ObjectNotFound: no such file or experiment.
        """
        third, fourth, station = stationOrCompression, retrieveMd5Sum, stationName
        if isinstance(fourth, bool) or third in COMPRESSIONS:
            compression = third if compression is None else compression
        elif third is not None:
            station = third if station is None else station
            if isinstance(fourth, str):
                compression = fourth if compression is None else compression
        query = given(stationName=station_of(station), compression=compression or None, root=root)
        if fourth is True:
            query["retrieveMd5Sum"] = True
        return FileMetadata(
            self.client.get("/files/stat", path=literal(experimentFilePath), experimentName=experimentName, **query)
        )

    def getFiles(
        self, experimentName: str, stationName: str | None = None, root: str | None = None
    ) -> Iterator[FileMetadata]:
        """Yield the records of all published files, in order of publication."""
        query = given(stationName=station_of(stationName), root=root)
        after: int | None = 0
        while after is not None:
            page = self.client.get("/files", experimentName=experimentName, after=after, **query)
            yield from self._records(FileMetadata, page["files"])
            after = page["nextAfter"]

    def getTotals(self, experimentName: str, stationName: str | None = None) -> DmObject:
        """Return ``countFiles`` and ``countBytes`` of an experiment's published files."""
        query = given(stationName=station_of(stationName))
        page = self.client.get("/files", experimentName=experimentName, limit=1, **query)
        return DmObject({key: page[key] for key in ("countFiles", "countBytes")})

    def downloadFile(  # noqa: PLR0917
        self,
        experimentFilePath: str,
        experimentName: str,
        destDir: str | os.PathLike[str] = ".",
        stationName: str | None = None,
        root: str | None = None,
        progress: Progress | None = None,
    ) -> FileMetadata:
        """Download one file into a directory; an interrupted download is resumed, the digest verified.

        :param progress: called with (bytes so far, total bytes).
        :returns: the file's record with ``localFilePath``. :raises TransferError: what arrived is not what was sent.
        """
        return download(self, experimentFilePath, experimentName, destDir, station_of(stationName), root, progress)

    def downloadArchive(
        self,
        experimentName: str,
        destFile: str | os.PathLike[str],
        stationName: str | None = None,
        root: str | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Download all published files of an experiment as one tar; an interrupted download is resumed."""
        query = given(stationName=station_of(stationName), root=root)
        return self.client.download(
            "/files/archive", destFile, progress=progress, experimentName=experimentName, **query
        )


def download(  # noqa: PLR0917
    api: ApiClient,
    path: str,
    experiment: str,
    directory: str | os.PathLike[str],
    station: str | None,
    root: str | None,
    progress: Progress | None,
) -> FileMetadata:
    """Download one file into a directory; see :meth:`FileDsApi.downloadFile`."""
    query: dict[str, Any] = {"path": literal(path), "experimentName": experiment} | given(
        stationName=station, root=root
    )
    record = FileMetadata(api.client.get("/files/stat", **query))
    target = Path(directory) / record["fileName"]
    known = dict(record.get("digests") or {})
    api.client.download(
        "/files/download",
        target,
        size=record["fileSize"],
        digests=known,
        progress=progress,
        **query | {"root": record["root"]},
    )
    record["localFilePath"] = str(target)
    return record
