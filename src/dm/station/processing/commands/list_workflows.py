"""``dm-list-workflows``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.processing.api import Workflow, WorkflowProcApi


@command("dm-list-workflows", api="dm.station.processing.api:WorkflowProcApi")
@option("--owner", help="Owner; default: yourself.")
def main(api: WorkflowProcApi, owner: str | None) -> list[Workflow]:
    """List workflows."""
    return api.listWorkflows(owner)
