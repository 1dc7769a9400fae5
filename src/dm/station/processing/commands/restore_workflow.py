"""``dm-restore-workflow``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.station.processing.api import Workflow, WorkflowProcApi


@command("dm-restore-workflow", api="dm.station.processing.api:WorkflowProcApi")
@option("--name", "--workflow-name", "name", required=True, help="Workflow name.")
@option("--owner", "--workflow-owner", "owner", help="Owner; default: yourself.")
@option("--revision", type=click.IntRange(1), required=True, help="Number of the revision.")
def main(api: WorkflowProcApi, name: str, owner: str | None, revision: int) -> Workflow:
    """Make an earlier revision of a workflow the current one; a deleted workflow is there again."""
    return api.restoreWorkflowVersion(owner or api.username, name, revision)
