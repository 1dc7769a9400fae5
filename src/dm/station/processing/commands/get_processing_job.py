"""``dm-get-processing-job``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.processing.api import ProcessingJob, WorkflowProcApi


@command("dm-get-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@option("--id", required=True, help="Job id.")
@option("--owner", help="Its owner; default: whoever it is.")
def main(api: WorkflowProcApi, id: str, owner: str | None) -> ProcessingJob:
    """Show a processing job; its processes with --display-keys ALL."""
    return api.getProcessingJobById(owner, id)
