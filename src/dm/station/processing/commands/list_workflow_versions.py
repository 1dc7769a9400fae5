"""``dm-list-workflow-versions``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.processing.api import WorkflowProcApi, WorkflowVersion


@command("dm-list-workflow-versions", api="dm.station.processing.api:WorkflowProcApi")
@option("--name", "--workflow-name", "name", required=True, help="Workflow name.")
@option("--owner", "--workflow-owner", "owner", help="Owner; default: yourself.")
def main(api: WorkflowProcApi, name: str, owner: str | None) -> list[WorkflowVersion]:
    """List the revisions of a workflow, also of a deleted one."""
    return api.listWorkflowVersions(owner or api.username, name)
