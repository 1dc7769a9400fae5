"""The routes of workflows and their revisions."""

from __future__ import annotations

from typing import Any

from dm.common.web.routes import USER, Request, Route
from dm.station.processing import arguments as given
from dm.station.processing.rows import OWNER, row
from dm.station.processing.workflows import Workflows

Record = dict[str, Any]
_BY_NAME = "/workflowsByOwner/{owner}/{name}"


def workflow_routes(workflows: Workflows) -> list[Route]:
    """Return the rows, bound to the use cases."""
    return [*_definitions(workflows), *_revisions(workflows)]


def _definitions(workflows: Workflows) -> list[Route]:
    def find(request: Request, arguments: given.WorkflowList) -> list[Record]:
        return workflows.find(request.principal, arguments.owner, arguments.query_dict)

    def get(request: Request, arguments: given.WorkflowName) -> Record:
        return workflows.get(request.principal, arguments.owner, arguments.name)

    def get_by_id(request: Request, arguments: given.WorkflowId) -> Record:
        return workflows.get_by_id(request.principal, arguments.id, arguments.owner)

    def add(request: Request, arguments: given.WorkflowSpec) -> Record:
        return workflows.add(request.principal, arguments.workflow, arguments.allow_current_username)

    def update(request: Request, arguments: given.WorkflowSpec) -> Record:
        return workflows.update(request.principal, arguments.workflow, arguments.allow_current_username)

    def upsert(request: Request, arguments: given.WorkflowSpec) -> Record:
        return workflows.upsert(request.principal, arguments.workflow, arguments.allow_current_username)

    def delete(request: Request, arguments: given.WorkflowName) -> Record:
        return workflows.delete(request.principal, arguments.owner, arguments.name)

    by_owner, spec = "/workflowsByOwner/{owner}", given.WorkflowSpec
    return [
        row("GET", by_owner, find, OWNER, "List the workflows of an owner, by name.", given.WorkflowList),
        row("GET", _BY_NAME, get, OWNER, "Get a workflow; its stages are in execution order.", given.WorkflowName),
        row("DELETE", _BY_NAME, delete, OWNER, "Delete a workflow; its revisions are kept.", given.WorkflowName),
        row("GET", "/workflowsById/{id}", get_by_id, USER, "Get a workflow by its id.", given.WorkflowId),
        row("POST", "/workflows/addWorkflow", add, USER, "Add a workflow.", spec),
        row("PUT", "/workflows/updateWorkflow", update, USER, "Replace a workflow, found by id or name.", spec),
        row("PUT", "/workflows/upsertWorkflow", upsert, USER, "Replace a workflow, or add it.", spec),
    ]


def _revisions(workflows: Workflows) -> list[Route]:
    def versions(request: Request, arguments: given.WorkflowName) -> list[Record]:
        return workflows.versions(request.principal, arguments.owner, arguments.name)

    def version(request: Request, arguments: given.WorkflowRevision) -> Record:
        return workflows.version(request.principal, arguments.owner, arguments.name, arguments.revision)

    def diff(request: Request, arguments: given.WorkflowDiff) -> Record:
        return workflows.diff(
            request.principal, arguments.owner, arguments.name, arguments.from_revision, arguments.to_revision
        )

    def restore(request: Request, arguments: given.WorkflowRevision) -> Record:
        return workflows.restore(request.principal, arguments.owner, arguments.name, arguments.revision)

    listed = f"{_BY_NAME}/versions"
    one = f"{listed}/{{revision}}"
    listing = "List the revisions of a workflow, oldest first; also of a deleted one."
    again = "Make an earlier revision of a workflow the current one."
    return [
        row("GET", listed, versions, OWNER, listing, given.WorkflowName),
        row("GET", one, version, OWNER, "Get a revision of a workflow with its definition.", given.WorkflowRevision),
        row("POST", f"{one}/restore", restore, OWNER, again, given.WorkflowRevision),
        row("GET", f"{_BY_NAME}/diff", diff, OWNER, "Compare two revisions of a workflow.", given.WorkflowDiff),
    ]
