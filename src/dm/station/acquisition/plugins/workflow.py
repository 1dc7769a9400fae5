"""Plugin ``workflow``: starts a processing job for every stored file, or one for a whole directory."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from typing import Any

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


class WorkflowSettings(BaseModel):
    """Settings ``[acquisition.plugins.workflow]``.

    :param url: of the processing service; empty: ``DM_PROC_WEB_SERVICE_URL``. :param timeout: seconds per request.
    """

    model_config = ConfigDict(extra="forbid")

    url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    timeout: float = Field(default=60, gt=0)


class Workflow(Plugin):
    """Starts jobs of the workflow a DAQ names, under the station's account in the name of ``workflowJobOwner``.

    A job's arguments are the DAQ's ``workflowArgs`` and, of the file: ``filePath`` (in storage), ``experimentName``,
    ``experimentFilePath``, ``experimentRoot`` and ``daqId``. With ``processingMode`` ``directory`` one job is started
    at the end, with the directory in storage as ``filePath``.
    """

    name = "workflow"
    summary = "Starts a processing job for each stored file."
    order = Order.WORKFLOW
    settings_model = WorkflowSettings
    once_per_directory = True

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        super().__init__(settings, context)
        assert isinstance(settings, WorkflowSettings)
        self._api = WorkflowProcApi(
            context.username,
            context.password,
            settings.url or None,
            ca_file=context.ca_file,
            timeout=settings.timeout,
        )

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
        """Start the jobs. The service knows each by its key, so repeating starts none twice."""
        if batch.directory_mode:
            if batch.files:
                self._start(batch, batch.files, _directory_arguments(batch), _key(batch, "directory"))
            return
        for number, file in enumerate(batch.files):
            if self.context.stop.is_set():
                _postpone(batch.files[number:], "The service stops; the job is started later.")
                return
            if not self._start(batch, [file], _file_arguments(batch, file), _key(batch, file.key, str(file.version))):
                _postpone(batch.files[number + 1 :], file.error)
                return

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _start(self, batch: PluginBatch, files: list[PluginFile], arguments: Mapping[str, Any], key: str) -> bool:
        """Start one job for some files.

        :returns: whether it makes sense to go on with others now.
        """
        owner, name = str(batch.daq["workflowOwner"]), str(batch.daq["workflowName"])
        try:
            job_owner = str(batch.daq.get("workflowJobOwner") or batch.daq["owner"])
            self._api.startProcessingJob(owner, name, dict(arguments), idempotencyKey=key, jobOwner=job_owner)
        except DmException as error:
            passing = isinstance(error, _PASSING)
            for file in files:
                file.fail(f"No job of workflow {name!r} was started: {error.message}", transient=passing)
            return not passing
        return True


def _postpone(files: list[PluginFile], reason: str) -> None:
    for file in files:
        file.fail(reason, transient=True)


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


def _key(batch: PluginBatch, *parts: str) -> str:
    """Return an idempotency key: of DAQ, workflow and the file's own key."""
    daq = batch.daq
    text = "\0".join([str(daq["id"]), str(daq["workflowOwner"]), str(daq["workflowName"]), *parts])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
