"""``dm-delete-workflow``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.processing.api import Workflow, WorkflowProcApi


@command("dm-delete-workflow", api="dm.station.processing.api:WorkflowProcApi")
@option("--name", "--workflow-name", "name", required=True, help="Workflow name.")
@option("--owner", "--workflow-owner", "owner", help="Owner; default: yourself.")
def main(api: WorkflowProcApi, name: str, owner: str | None) -> Workflow:
    """Delete a workflow. Jobs it started keep their copies of it."""
    return api.deleteWorkflowByName(owner or api.username, name)
