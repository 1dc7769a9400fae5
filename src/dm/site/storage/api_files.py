"""The published class for files in storage."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dm.common import paths
from dm.common.client import ApiClient
from dm.common.downloads import Downloads, Wanted, sentence
from dm.common.errors import InvalidArgument, ObjectNotFound
from dm.common.records import DmObject
from dm.common.wire import literal, segment
from dm.site.storage.api_base import DsApi, FileMetadata, Operation, given, station_of

ROUTE = "/files/download"
_RECORD_SECONDS = 3600.0
_MANIFEST_SECONDS = 600.0  # without a line: each file is looked at on a disk that may be busy
PARALLEL = 4  # downloads at the same time; a service lends a third of its threads to all downloads together
COMPRESSIONS = ("", "gz", "bz2", "xz", "zst", "lz4")
Progress = Callable[[int, int], None]


class FileDsApi(DsApi):
    """Files in storage."""

    def recordFilesAgain(self, experimentId: int, dryRun: bool = False) -> DmObject:
        """Have storage record again what its manifest and disk have and its database lost (managers).

        :returns: countRecorded (published and there), countGone (not as published), countMissing (recorded again).
        """
        path = f"/experimentsById/{segment(experimentId)}/recordedFiles"
        return DmObject(self.client.post(path, {"dryRun": dryRun}, timeout=_RECORD_SECONDS))

    def iterateManifest(self, experimentId: int) -> Iterator[dict[str, Any]]:
        """Yield the record of every file that was published into an experiment, oldest first (managers).

        Each has root, path, size, mtimeNs, digests, version, source, time and present (whether it is on disk as it was
        published); the last is ``{"event": "end", "countFiles": n}``.
        """
        rest = b""
        path = f"/experimentsById/{segment(experimentId)}/manifest"
        for piece in self.client.stream(path, timeout=_MANIFEST_SECONDS):
            *lines, rest = (rest + piece).split(b"\n")
            yield from map(json.loads, lines)

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

    def compressFile(
        self,
        experimentFilePath: str,
        experimentName: str,
        stationName: str | None = None,
        compression: str | None = None,
        root: str | None = None,
    ) -> Operation:
        """Begin to compress a published file, whose path then ends in ``.`` and the name of the compression.

        :param stationName: or, when it is the name of a compression, that.
        :param compression: ``gz`` (default), ``bz2`` or ``xz``.
        :returns: the operation. Follow it, or ask for :meth:`statFile` of the new path until it is there.
        """
        return self._repack("compress", experimentFilePath, experimentName, stationName, compression, root)

    def decompressFile(
        self,
        experimentFilePath: str,
        experimentName: str,
        stationName: str | None = None,
        compression: str | None = None,
        root: str | None = None,
    ) -> Operation:
        """Begin to decompress a published file; see :meth:`compressFile`.

        :param experimentFilePath: with the suffix of the compression, or, if that is given, without.
        """
        return self._repack("decompress", experimentFilePath, experimentName, stationName, compression, root)

    def _repack(  # noqa: PLR0917
        self, how: str, path: str, experiment: str, station: str | None, compression: str | None, root: str | None
    ) -> Operation:
        if station in COMPRESSIONS and compression is None:
            station, compression = None, station
        body = {"path": literal(path), "experimentName": experiment, "compression": compression or ""}
        return Operation(self.client.post(f"/files/{how}", body | given(stationName=station_of(station), root=root)))

    def deleteFile(
        self,
        experimentFilePath: str,
        experimentName: str,
        stationName: str | None = None,
        compression: str | None = None,
        root: str | None = None,
    ) -> Operation:
        """Delete a file from storage; its catalog record is the catalog's.

        :param stationName: or, when it is the name of a compression, that.
        :param compression: delete the file compressed so, whose path has that suffix.
        :raises ObjectNotFound: no such file.
        """
        path, station = experimentFilePath, stationName
        if station in COMPRESSIONS and compression is None:
            station, compression = None, station
        if compression and not path.endswith(f".{compression}"):
            path = f"{path}.{compression}"
        chosen = root or self.statFile(path, experimentName, stationName=station)["root"]
        operation = self.deleteFiles([path], experimentName, station, chosen)
        if operation.get("countMissing"):
            raise ObjectNotFound(f"File {path[:300]!a} does not exist in experiment {experimentName!a}.")
        return operation

    def deleteFiles(
        self,
        experimentFilePaths: Sequence[str],
        experimentName: str,
        stationName: str | None = None,
        root: str = "data",
    ) -> Operation:
        """Delete up to 1,000 files from storage, published or not.

        :returns: the operation; when it is done, with ``countFiles`` and ``countMissing``.
        """
        body = {"paths": list(experimentFilePaths), "experimentName": experimentName, "root": root}
        return Operation(self.client.post("/files/delete", body | given(stationName=station_of(stationName))))

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

        An equal file that is there already stays. The file keeps its time of last change.

        :param progress: called with (bytes so far, total bytes).
        :returns: the file's record with ``localFilePath``. :raises TransferError: what arrived is not what was sent.
        """
        return download(self, experimentFilePath, experimentName, destDir, station_of(stationName), root, progress)

    def downloadFiles(  # noqa: PLR0917
        self,
        experimentName: str,
        destDir: str | os.PathLike[str] = ".",
        stationName: str | None = None,
        root: str | None = None,
        path: str | None = None,
        pattern: str | None = None,
        *,
        parallel: int = PARALLEL,
        verify: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[FileMetadata]:
        """Download an experiment's published files, or some of them, several at once; yield their records in order.

        They keep their directories, ``data/`` and ``analysis/``. Files that are there and equal stay; interrupted
        ones go on where they stopped; each is verified.

        :param path: only this file or directory below the root. :param pattern: only files whose path, or name when it
            has no ``/``, matches this shell wildcard.
        :param parallel: files at the same time, at most 32. :param verify: read again what is there already, instead of
            trusting its size and time.
        :param progress: called with the count of bytes that are there so far.
        :returns: records with ``localFilePath``; of files that could not be had with ``error``, a sentence, instead.
        :raises DmException: trouble that all further files would have, too.
        """
        station = station_of(stationName)
        chosen = selection(path, pattern)
        downloads = Downloads(self.client, ROUTE, destDir, verify=verify, progress=progress)
        refused: list[FileMetadata] = []

        def wanted() -> Iterator[Wanted[FileMetadata]]:
            for record in self.getFiles(experimentName, stationName, root):
                try:
                    if chosen(record):
                        yield as_wanted(record, in_experiment(record), station)
                except InvalidArgument as error:
                    record["error"] = str(error)
                    refused.append(record)

        for outcome in downloads.run(wanted(), parallel):
            record = outcome.wanted.note
            if outcome.error is None:
                record["localFilePath"] = downloads.local(outcome.wanted)
                record["fetched"] = outcome.fetched
            else:
                record["error"] = sentence(outcome.error)
            yield record
        yield from refused

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
    query = given(stationName=station, root=root)
    record = FileMetadata(api.client.get("/files/stat", path=literal(path), experimentName=experiment, **query))
    name = paths.relative(path).rpartition(b"/")[2]  # not what the service calls it: it chooses no place here
    size = record["fileSize"]
    downloads = Downloads(
        api.client, ROUTE, directory, progress=None if progress is None else lambda count: progress(count, size)
    )
    wanted = as_wanted(record, name, station, path)
    downloads.one(wanted)
    record["localFilePath"] = downloads.local(wanted)
    return record


def as_wanted(
    record: FileMetadata, target: bytes, station: str | None, path: str | None = None
) -> Wanted[FileMetadata]:
    """Return what to ask for, to have the file of a record.

    :param target: where it is to lie, below the destination. :param path: default: the record's.
    """
    query = {
        "path": literal(record["experimentFilePath"] if path is None else path),
        "experimentName": record["experimentName"],
        "root": record["root"],
    } | given(stationName=station)
    mtime = record.get("fileModificationTime")
    mtime_ns = None if mtime is None else round(float(mtime) * 1e9)
    digests = dict(record.get("digests") or {})
    return Wanted(target, query, int(record["fileSize"]), digests, mtime_ns, record)


def in_experiment(record: FileMetadata) -> bytes:
    """Return a file's path below its experiment, with its root. :raises InvalidArgument: one that leads elsewhere."""
    path = paths.relative(record["experimentFilePath"])
    return paths.relative(paths.encode(str(record["root"])) + b"/" + path)


def selection(path: str | None, pattern: str | None) -> Callable[[FileMetadata], bool]:
    """Return whether a file is among those asked for.

    :param path: a file or directory below the root. :param pattern: a shell wildcard of the path below the root, or
        of the name alone when it has no ``/``.
    """
    beneath = paths.relative(path) if path else None
    expression = re.compile(fnmatch.translate(pattern), re.DOTALL) if pattern else None
    whole = "/" in (pattern or "")

    def chosen(record: FileMetadata) -> bool:
        found = record["experimentFilePath"]
        if beneath is not None and not (paths.encode(found) + b"/").startswith(beneath + b"/"):
            return False
        return expression is None or bool(expression.match(found if whole else found.rpartition("/")[2]))

    return chosen
