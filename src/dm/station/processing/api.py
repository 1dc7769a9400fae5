"""The published Python API of the Processing Service: workflows and processing jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from dm.common.client import ServiceMonitorApi, segment
from dm.common.errors import InvalidArgument
from dm.common.records import DmObject
from dm.station.processing.api_jobs import (
    DEFAULT_LIMIT,
    MAX_WAIT_TIME,
    ChildProcess,
    LogEntry,
    ProcessingJob,
    ProcessingJobs,
    owner_segment,
)

__all__ = [
    "DEFAULT_LIMIT",
    "MAX_WAIT_TIME",
    "ChildProcess",
    "LogEntry",
    "ProcessingJob",
    "ServiceMonitorProcApi",
    "Workflow",
    "WorkflowDifference",
    "WorkflowProcApi",
    "WorkflowVersion",
]


class Workflow(DmObject):
    """A workflow: ``id``, ``name``, ``owner``, ``userAccount``, ``description``, ``stages`` in execution order.

    ``revision`` counts the changes of its definition.
    """

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "name", "owner"]


class WorkflowVersion(DmObject):
    """A revision of a workflow."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["revision", "timestamp", "username", "isCurrent", "note", "description"]


class WorkflowDifference(DmObject):
    """What differs between two revisions of a workflow."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "fromRevision",
        "toRevision",
        "same",
        "changedKeys",
        "addedStages",
        "removedStages",
        "changedStages",
    ]


class WorkflowProcApi(ProcessingJobs):
    """Manage workflows, start and follow processing jobs."""

    URL_VARIABLE = "DM_PROC_WEB_SERVICE_URL"

    # --- workflows ------------------------------------------------------------------------------------------

    def addWorkflow(self, workflow: Mapping[str, Any]) -> Workflow:
        """Store a new workflow.

        :param workflow: ``name``, ``stages`` and perhaps ``owner`` (else the user), ``description`` ...
        :raises ObjectAlreadyExists: owner and name are taken. :raises InvalidArgument: what is wrong with it.
        """
        return Workflow(self.client.post("/workflows/addWorkflow", _spec(workflow)))

    def updateWorkflow(self, workflow: Mapping[str, Any]) -> Workflow:
        """Replace a workflow, found by ``id`` if given, else by owner and name. :raises ObjectNotFound: none."""
        return Workflow(self.client.put("/workflows/updateWorkflow", _spec(workflow)))

    def upsertWorkflow(self, workflow: Mapping[str, Any]) -> Workflow:
        """Replace a workflow, or add it when there is none."""
        return Workflow(self.client.put("/workflows/upsertWorkflow", _spec(workflow)))

    def getWorkflowByName(self, owner: str, name: str) -> Workflow:
        """Return a workflow. :raises ObjectNotFound: none the user may see."""
        return Workflow(self.client.get(f"/workflowsByOwner/{owner_segment(owner)}/{segment(name)}"))

    def getWorkflowById(self, owner: str, id: str) -> Workflow:
        """Return a workflow. :raises ObjectNotFound: none the user may see."""
        return Workflow(self.client.get(f"/workflowsById/{segment(id)}", owner=owner or None))

    def deleteWorkflowByName(self, owner: str, name: str) -> Workflow:
        """Delete a workflow and return it; jobs it started keep their copies. :raises ObjectNotFound: none."""
        return Workflow(self.client.delete(f"/workflowsByOwner/{owner_segment(owner)}/{segment(name)}"))

    def listWorkflowVersions(self, owner: str, name: str) -> list[WorkflowVersion]:
        """Return the revisions of a workflow, oldest first (the newest 1,000), also of a deleted one.

        :returns: of each ``revision``, ``time``, ``timestamp``, ``username``, ``note``, ``description``, ``isCurrent``.
        :raises ObjectNotFound: no such workflow the user may see.
        """
        return self._records(WorkflowVersion, self.client.get(f"{self._workflow(owner, name)}/versions"))

    def getWorkflowVersion(self, owner: str, name: str, revision: int) -> WorkflowVersion:
        """Return a revision with its definition under ``workflow``. :raises ObjectNotFound: no such revision."""
        return WorkflowVersion(self.client.get(f"{self._workflow(owner, name)}/versions/{segment(revision)}"))

    def diffWorkflowVersions(
        self, owner: str, name: str, fromRevision: int | None = None, toRevision: int | None = None
    ) -> WorkflowDifference:
        """Compare two revisions of a workflow.

        :param fromRevision: default: the one before ``toRevision``. :param toRevision: default: the newest.
        :returns: ``same``, ``changedKeys``, ``addedStages``, ``removedStages``, ``changedStages`` (name -> keys) and
            ``text``, a unified diff. :raises ObjectNotFound: no such revision, or there is only one.
        """
        path = f"{self._workflow(owner, name)}/diff"
        return WorkflowDifference(self.client.get(path, fromRevision=fromRevision, toRevision=toRevision))

    def restoreWorkflowVersion(self, owner: str, name: str, revision: int) -> Workflow:
        """Make an earlier definition the current one, as a new revision; a deleted workflow is there again.

        :raises ObjectNotFound: no such revision.
        """
        return Workflow(self.client.post(f"{self._workflow(owner, name)}/versions/{segment(revision)}/restore"))

    @staticmethod
    def _workflow(owner: str, name: str) -> str:
        return f"/workflowsByOwner/{owner_segment(owner)}/{segment(name)}"

    def listWorkflows(self, owner: str | None = None, queryDict: Mapping[str, Any] | None = None) -> list[Workflow]:
        """Return the workflows of an owner (default: the user), by name.

        :param queryDict: conditions on their top-level keys.
        """
        path = f"/workflowsByOwner/{owner_segment(owner or self.username)}"
        return self._records(Workflow, self.client.get(path, queryDict=dict(queryDict or {})))


class ServiceMonitorProcApi(ServiceMonitorApi):
    """Health of the Processing Service."""

    URL_VARIABLE = "DM_PROC_WEB_SERVICE_URL"


def _spec(workflow: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(workflow, Mapping):
        raise InvalidArgument(f"A workflow is a dictionary, not {type(workflow).__name__}.")
    return {"workflow": dict(workflow), "allowCurrentUsername": True}
