"""Plugin ``workflow``: starts a processing job for every stored file, for every batch, or one for a whole directory."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dm.common.errors import (
    AuthenticationError,
    CommunicationError,
    DmException,
    InternalError,
    InvalidSession,
    ServiceLimit,
    ServiceUnavailable,
    TaskTimeout,
)
from dm.common.paths import decode
from dm.station.acquisition.plugins.base import Order, Plugin, PluginBatch, PluginContext, PluginFile
from dm.station.processing.api import WorkflowProcApi

_log = logging.getLogger(__name__)
_PASSING = (
    CommunicationError,
    ServiceUnavailable,
    TaskTimeout,
    ServiceLimit,
    InternalError,
    AuthenticationError,
    InvalidSession,
)
_PASSING_NAMES = frozenset(error.__name__ for error in _PASSING)


class WorkflowSettings(BaseModel):
    """Settings ``[acquisition.plugins.workflow]``.

    :param url: of the processing service; empty: ``DM_PROC_WEB_SERVICE_URL``. :param timeout: seconds per request.
    :param per: ``file`` starts a job for each file, ``batch`` one for those that were moved together (its
        ``filePathList``); the key ``workflowPer`` of a DAQ or upload goes first.
    """

    model_config = ConfigDict(extra="forbid")

    url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    timeout: float = Field(default=60, gt=0)
    per: Literal["file", "batch"] = "file"


class Workflow(Plugin):
    """Starts jobs of the workflow a DAQ names, under the station's account in the name of ``workflowJobOwner``.

    A job's arguments are the DAQ's ``workflowArgs``, ``experimentName``, ``experimentRoot``, ``daqId`` and, of a file,
    ``filePath`` (in storage) and ``experimentFilePath``; of a batch, ``filePathList``. With ``processingMode``
    ``directory`` one job is started at the end, with the directory in storage as ``filePath``.
    """

    name = "workflow"
    summary = "Starts a processing job for each stored file, or for each batch of them."
    order = Order.WORKFLOW
    settings_model = WorkflowSettings
    once_per_directory = True

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        super().__init__(settings, context)
        assert isinstance(settings, WorkflowSettings)
        self._per = settings.per
        self._api = context.client(WorkflowProcApi, settings.url, settings.timeout)

    def applies(self, daq: dict[str, Any]) -> bool:
        """Whether the DAQ names a workflow."""
        return bool(daq.get("workflowName"))

    def check(self, daq: dict[str, Any]) -> None:
        """Refuse a DAQ whose workflow does not exist. Processing that is down refuses nothing: data come first.

        :raises ObjectNotFound: no such workflow.
        """
        try:
            self._api.getWorkflowByName(str(daq["workflowOwner"]), str(daq["workflowName"]))
        except _PASSING as error:
            _log.warning("Workflow %s cannot be checked now: %s", daq["workflowName"], error)

    def process(self, batch: PluginBatch) -> None:
        """Start the jobs. The service knows each by its key, so repeating starts none twice.

        :raises DmException: the processing service is away.
        """
        if batch.directory_mode:
            if batch.files:
                self._start_one(batch, _directory_arguments(batch), _directory_key(batch))
        elif self._wanted(batch.daq) == "batch":
            self._start_for_batch(batch)
        else:
            self._start_each(batch)

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _wanted(self, daq: dict[str, Any]) -> str:
        return str(daq.get("workflowPer") or self._per)

    def _start_each(self, batch: PluginBatch) -> None:
        """Start a job for each file, with few calls."""
        jobs = [
            {
                "argsDict": _file_arguments(batch, file),
                "idempotencyKey": _file_key(batch, file),
                "jobOwner": _owner(batch),
            }
            for file in batch.files
        ]
        owner, name = str(batch.daq["workflowOwner"]), str(batch.daq["workflowName"])
        try:
            answers = self._api.startProcessingJobs(owner, name, jobs)
        except _PASSING:
            raise
        except DmException as error:
            _fail(batch, batch.files, error.message, transient=False)
            return
        for file, answer in zip(batch.files, answers, strict=True):
            if message := answer.get("errorMessage"):
                _fail(batch, [file], str(message), str(answer.get("errorClass")) in _PASSING_NAMES)

    def _start_for_batch(self, batch: PluginBatch) -> None:
        """Start one job for all files of the batch.

        The key is the batch's. Seen again after a crash, perhaps with files that another plugin held back at first, the
        batch gets the job of then; files which that one does not name get one of their own.
        """
        left = list(batch.files)
        for number in range(len(batch.files)):
            names = {decode(file.storage_path): file for file in left}
            arguments = {**_common_arguments(batch), "filePathList": list(names)}
            job = self._start_one(batch, arguments, _key(batch, "batch", batch.id, str(number)), left)
            if job is None:
                return
            started = set(job.get("filePathList") or names)
            left = [file for path, file in names.items() if path not in started]
            if not left:
                return

    def _start_one(
        self, batch: PluginBatch, arguments: dict[str, Any], key: str, files: Sequence[PluginFile] | None = None
    ) -> Any:
        """Start one job for some files and return it, or ``None`` after failing them."""
        owner, name = str(batch.daq["workflowOwner"]), str(batch.daq["workflowName"])
        try:
            return self._api.startProcessingJob(owner, name, arguments, idempotencyKey=key, jobOwner=_owner(batch))
        except ServiceLimit as error:
            _fail(batch, batch.files if files is None else files, error.message, transient=True)
        except _PASSING:
            raise
        except DmException as error:
            _fail(batch, batch.files if files is None else files, error.message, transient=False)
        return None


def _fail(batch: PluginBatch, files: Sequence[PluginFile], message: str, transient: bool) -> None:
    for file in files:
        file.fail(f"No job of workflow {batch.daq['workflowName']!r} was started: {message}", transient=transient)


def _owner(batch: PluginBatch) -> str:
    return str(batch.daq.get("workflowJobOwner") or batch.daq["owner"])


def _common_arguments(batch: PluginBatch) -> dict[str, Any]:
    daq = batch.daq
    return {
        **dict(daq.get("workflowArgs") or {}),
        "experimentName": batch.experiment["name"],
        "experimentRoot": batch.root,
        "daqId": daq["id"],
    }


def _file_arguments(batch: PluginBatch, file: PluginFile) -> dict[str, Any]:
    return {
        **_common_arguments(batch),
        "filePath": decode(file.storage_path),
        "experimentFilePath": decode(file.path),
    }


def _directory_arguments(batch: PluginBatch) -> dict[str, Any]:
    """Name the directory that holds all files of the batch."""
    directory = os.path.commonpath([os.path.dirname(file.storage_path) for file in batch.files])
    return {**_common_arguments(batch), "filePath": decode(directory)}


def _file_key(batch: PluginBatch, file: PluginFile) -> str:
    """Return the key of a file's job: DAQ, workflow, path and version, so a file taken again changed is another job.

    Nobody counts the versions of files that are not moved; there the file's own key, which has its digest, says it.
    """
    again = [f"run {file.run}"] if file.run else []
    return _key(batch, file.key if file.in_place else decode(file.path), str(file.version), *again)


def _directory_key(batch: PluginBatch) -> str:
    again = batch.daq.get("reprocessRuns")
    return _key(batch, "directory", *([f"run {again}"] if again else []))


def _key(batch: PluginBatch, *parts: str) -> str:
    """Return an idempotency key of DAQ, workflow and more."""
    daq = batch.daq
    text = "\0".join([str(daq["id"]), str(daq["workflowOwner"]), str(daq["workflowName"]), *parts])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
