"""``dm-get-workflow``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.station.processing.api import Workflow, WorkflowProcApi


@command("dm-get-workflow", api="dm.station.processing.api:WorkflowProcApi")
@option("--name", "--workflow-name", "name", help="Workflow name.")
@option("--owner", "--workflow-owner", "owner", help="Owner; default: yourself.")
@option("--id", help="Workflow id, instead of its name.")
@option("--revision", type=click.IntRange(1), help="An earlier revision; default: the current one.")
def main(api: WorkflowProcApi, name: str | None, owner: str | None, id: str | None, revision: int | None) -> Workflow:
    """Show a workflow."""
    if (name is None) == (id is None):
        raise click.UsageError("Give either --name or --id.")
    if id is not None:
        found = api.getWorkflowById(owner or "", id)
        if revision is None:
            return found
        owner, name = found["owner"], found["name"]
    if revision is not None:
        return Workflow(api.getWorkflowVersion(owner or api.username, name or "", revision)["workflow"])
    return api.getWorkflowByName(owner or api.username, name or "")
