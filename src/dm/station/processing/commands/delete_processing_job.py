"""``dm-delete-processing-job``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.processing.api import ProcessingJob, WorkflowProcApi


@command("dm-delete-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@option("--id", required=True, help="Job id.")
@option("--owner", help="Its owner; default: whoever it is.")
def main(api: WorkflowProcApi, id: str, owner: str | None) -> ProcessingJob:
    """Delete the record of a processing job that has ended."""
    return api.deleteProcessingJob(owner, id)
