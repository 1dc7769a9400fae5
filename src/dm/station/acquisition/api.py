"""The published Python API of the Data Acquisition Service: DAQs, uploads and what became of each file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from dm.common.client import ServiceMonitorApi, segment
from dm.common.errors import CommunicationError, InvalidArgument, InvalidRequest, ServiceUnavailable, TaskTimeout
from dm.common.paths import decode
from dm.common.records import DmObject
from dm.common.statuses import INACTIVE
from dm.station.acquisition.api_files import (
    FILE_PAGE,
    MAX_WAIT_TIME,
    PATIENCE,
    PAUSE,
    FileCounts,
    FileExplanation,
    FilesOfTasks,
    LedgerFile,
    pause_after,
)
from dm.station.acquisition.api_prune import PrunedFile, SourcesOfTasks

__all__ = [
    "FILE_PAGE",
    "MAX_WAIT_TIME",
    "RECORD_LIMIT",
    "DaqInfo",
    "ExperimentDaqApi",
    "FileCounts",
    "FileExplanation",
    "FilesOfTasks",
    "LedgerFile",
    "PluginInfo",
    "PrunedFile",
    "ServiceMonitorDaqApi",
    "UploadInfo",
]

RECORD_LIMIT = 1000
_TELL = 5.0

T = TypeVar("T", bound="DaqInfo")


class DaqInfo(DmObject):
    """A DAQ: data acquisition that watches a directory until it is stopped."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "id",
        "experimentName",
        "dataDirectory",
        "status",
        "nProcessedFiles",
        "nProcessingErrors",
        "countFiles",
        "startTime",
        "startTimestamp",
    ]

    @property
    def is_over(self) -> bool:
        """Whether the status is final."""
        return self.data.get("status") in INACTIVE


class UploadInfo(DaqInfo):
    """An upload: one pass over what a directory holds."""


class PluginInfo(DmObject):
    """A processing plugin."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["name", "description"]


class ExperimentDaqApi(FilesOfTasks, SourcesOfTasks):
    """Start, stop and follow DAQs and uploads.

    ``daqInfo`` arguments are dictionaries with the published keys (``destDirectory``, ``processExistingFiles``,
    ``includeFileExtensions``, ``workflowName`` ...); any other key is kept as metadata of the files.
    """

    URL_VARIABLE = "DM_DAQ_WEB_SERVICE_URL"

    # --- DAQs -----------------------------------------------------------------------------------------------

    def startDaq(
        self, experimentName: str, dataDirectory: str | bytes, daqInfo: Mapping[str, Any] | None = None
    ) -> DaqInfo:
        """Start to watch a directory; every file that is complete is moved, verified, cataloged and processed.

        :param dataDirectory: absolute path, ``@host:/path`` or a URL.
        :returns: the DAQ; the running one when the same experiment and directory are watched already.
        :raises ObjectNotFound: no such experiment. :raises InvalidArgument: the directory cannot be read, or a key of
            ``daqInfo`` has a value that cannot be.
        """
        return DaqInfo(self._task(experimentName, "startDaq", dataDirectory, daqInfo))

    def stopDaq(self, experimentName: str, dataDirectory: str | bytes) -> DaqInfo:
        """Stop a DAQ, found by experiment and exactly the same directory text; files it has seen are finished.

        :raises ObjectNotFound: no such DAQ.
        """
        return DaqInfo(self.client.post(_task_path(experimentName, "stopDaq", dataDirectory)))

    def listDaqs(self, experimentName: str | None = None, status: str | None = None) -> list[DaqInfo]:
        """Return all DAQs the user may see, newest last.

        :param experimentName: :param status: only these.
        """
        return self._records(DaqInfo, self.client.get("/daqs", experimentName=experimentName, status=status))

    def getDaqInfo(self, id: str, waitTime: float | None = None, revision: str | None = None) -> DaqInfo:
        """Return a DAQ.

        :param waitTime: seconds (at most 30) to wait for a change of its status first.
        :param revision: of the record that the caller has: with ``waitTime``, wait for any change of the record, its
            counts among them.
        :raises ObjectNotFound: no such DAQ.
        """
        return DaqInfo(self.client.get(f"/daqs/{segment(id)}", waitTime=waitTime, revision=revision))

    def clearDaq(self, id: str) -> DaqInfo:
        """Take a finished DAQ off the list; stored files stay.

        :returns: its last record. :raises InvalidObjectState: it is still running.
        """
        return DaqInfo(self.client.delete(f"/daqs/{segment(id)}"))

    def waitDaq(
        self, id: str, timeout: float | None = None, progress: Callable[[DaqInfo], None] | None = None
    ) -> DaqInfo:
        """Wait until a DAQ that was stopped has finished its files; see :meth:`waitUpload`."""
        return _wait(self.getDaqInfo, id, timeout, progress)

    # --- uploads --------------------------------------------------------------------------------------------

    def upload(
        self, experimentName: str, dataDirectory: str | bytes, daqInfo: Mapping[str, Any] | None = None
    ) -> UploadInfo:
        """Start to upload what a directory holds now; arguments and errors as in :meth:`startDaq`."""
        return UploadInfo(self._task(experimentName, "upload", dataDirectory, daqInfo))

    def stopUpload(self, id: str) -> UploadInfo:
        """Stop an upload; files on their way are finished, the others are left.

        :raises ObjectNotFound: no such upload.
        """
        return UploadInfo(self.client.post(f"/uploads/{segment(id)}/stop"))

    def listUploads(self, experimentName: str | None = None, status: str | None = None) -> list[UploadInfo]:
        """Return all uploads the user may see, newest last; arguments as in :meth:`listDaqs`."""
        return self._records(UploadInfo, self.client.get("/uploads", experimentName=experimentName, status=status))

    def getUploadInfo(self, id: str, waitTime: float | None = None, revision: str | None = None) -> UploadInfo:
        """Return an upload; arguments and errors as in :meth:`getDaqInfo`."""
        return UploadInfo(self.client.get(f"/uploads/{segment(id)}", waitTime=waitTime, revision=revision))

    def clearUpload(self, id: str) -> UploadInfo:
        """Take a finished upload off the list; see :meth:`clearDaq`."""
        return UploadInfo(self.client.delete(f"/uploads/{segment(id)}"))

    def waitUpload(
        self, id: str, timeout: float | None = None, progress: Callable[[UploadInfo], None] | None = None
    ) -> UploadInfo:
        """Wait for the end of an upload. A restart of the service meanwhile is waited out.

        :param timeout: seconds; ``None`` waits as long as it takes.
        :param progress: called with the record when it has changed (up to four times a second), else every 5 s.
        :returns: the final record; look at ``status`` and ``nProcessingErrors``.
        :raises TaskTimeout: it is not finished in time.
        """
        return _wait(self.getUploadInfo, id, timeout, progress)

    def listUploadRecords(
        self, queryDict: Mapping[str, Any] | None = None, skip: int = 0, limit: int = RECORD_LIMIT
    ) -> list[UploadInfo]:
        """Return uploads of the past, cleared ones too, newest last.

        :param queryDict: keys that must be equal, e.g. ``{"experimentName": "e1"}``.
        :param skip: :param limit: page, counted from the newest.
        """
        found = self.client.get("/uploadRecords", queryDict=dict(queryDict or {}), skip=skip, limit=limit)
        return self._records(UploadInfo, found)

    def completeDaqFiles(
        self, id: str, paths: str | bytes | list[str] | list[bytes], waitTime: float | None = None
    ) -> DmObject:
        """Say that files of a running DAQ are whole, as whoever wrote them knows.

        :param paths: one or several, relative to the data directory or absolute; a directory means all files in it.
        :param waitTime: seconds to wait (at most 30, default 10) until the ledger has them.
        :returns: ``count`` of files that are safely in the ledger; lists of paths that are not: ``missing``,
            ``ignored`` (not wanted by the DAQ, or no regular file), ``pending`` (say them again).
        :raises InvalidObjectState: the DAQ is over. :raises InvalidArgument: a path outside the data directory.
        """
        named = [paths] if isinstance(paths, str | bytes) else paths
        texts = [decode(path) if isinstance(path, bytes) else path for path in named]
        body: dict[str, Any] = {"paths": texts}
        if waitTime is not None:
            body["waitTime"] = waitTime
        return DmObject(self.client.post(f"/daqs/{segment(id)}/completeFiles", body))

    # --- plugins --------------------------------------------------------------------------------------------

    def listProcessingPlugins(self) -> list[PluginInfo]:
        """Return the processing plugins of this station in their order, each with ``name`` and ``description``."""
        return self._records(PluginInfo, self.client.get("/processingPlugins"))

    # --- isolation, which is not offered ----------------------------------------------------------------------

    def isConfiguredForIsolation(self, beamline: str) -> bool:
        """Return whether experiments of a beamline can be isolated: no, of none."""
        return False

    def isolateExperiment(self, stage: str, beamline: str, optionsJson: str | None = None) -> DmObject:
        """Refuse: this release does not isolate experiments.

        :raises InvalidRequest: always, as for a beamline that is not configured.
        """
        raise InvalidRequest(
            f"Beamline {beamline!a:.80} is not configured for isolation (stage {stage!a:.40}); "
            "let a workflow or a script of the beamline prepare and clear its directories."
        )

    # --------------------------------------------------------------------------------------------------------

    def _task(
        self, experiment: str, verb: str, directory: str | bytes, daq_info: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        if daq_info is not None and not isinstance(daq_info, Mapping):
            raise InvalidArgument(f"daqInfo is {daq_info!r:.80}; give a dictionary.")
        body = {"taskInfo": dict(daq_info)} if daq_info else None
        answer: dict[str, Any] = self.client.post(_task_path(experiment, verb, directory), body)
        return answer


class ServiceMonitorDaqApi(ServiceMonitorApi):
    """Health of the Data Acquisition Service."""

    URL_VARIABLE = "DM_DAQ_WEB_SERVICE_URL"


def _task_path(experiment: str, verb: str, directory: str | bytes) -> str:
    if not experiment:
        raise InvalidArgument("The experiment name is empty; name an experiment.")
    if not directory:
        raise InvalidArgument("The data directory is empty; name a directory.")
    return f"/experimentsByName/{segment(experiment)}/{verb}/{segment(directory)}"


def _wait(get: Callable[..., T], id: str, timeout: float | None, progress: Callable[[T], None] | None) -> T:
    """Long-poll until the status is final, waiting out short absences of the service."""
    deadline = None if timeout is None else time.monotonic() + timeout
    poll = _TELL if progress else MAX_WAIT_TIME
    revision: str | None = None  # for each change of the record, when somebody wants to be told of it
    last_answer = time.monotonic()
    info: T | None = None
    while True:
        left = MAX_WAIT_TIME if deadline is None else deadline - time.monotonic()
        try:
            # The first answer comes at once: there may be a long way to the next change.
            wait = 0.0 if progress and info is None else max(0.0, min(poll, left))
            asked = time.monotonic()
            info = get(id, waitTime=wait, revision=revision)
            last_answer = time.monotonic()
            if progress:
                progress(info)
                revision = str(info.get("revision") or "") or None
            if info.is_over:
                return info
            pause_after(asked, wait)
        except (CommunicationError, ServiceUnavailable):
            if time.monotonic() - last_answer > PATIENCE:
                raise
            time.sleep(max(0.0, min(PAUSE, left)))
        if deadline is not None and time.monotonic() >= deadline:
            status = info.get("status") if info is not None else "unknown"
            raise TaskTimeout(f"{id} is not finished after {timeout:g} s: its status is {status!r}.")
