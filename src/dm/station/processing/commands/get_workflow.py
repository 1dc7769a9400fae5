"""``dm-get-workflow``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.station.processing.api import Workflow, WorkflowProcApi


@command("dm-get-workflow", api="dm.station.processing.api:WorkflowProcApi")
@option("--name", "--workflow-name", "name", help="Workflow name.")
@option("--owner", "--workflow-owner", "owner", help="Owner; default: yourself.")
@option("--id", help="Workflow id, instead of its name.")
def main(api: WorkflowProcApi, name: str | None, owner: str | None, id: str | None) -> Workflow:
    """Show a workflow."""
    if (name is None) == (id is None):
        raise click.UsageError("Give either --name or --id.")
    if id is not None:
        return api.getWorkflowById(owner or "", id)
    return api.getWorkflowByName(owner or api.username, name or "")
