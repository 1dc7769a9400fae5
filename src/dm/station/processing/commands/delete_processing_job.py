"""``dm-delete-processing-job``"""

from __future__ import annotations

from dm.common.command import command
from dm.station.processing.api import ProcessingJob, WorkflowProcApi
from dm.station.processing.commands.job_options import job_options


@command("dm-delete-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@job_options
def main(api: WorkflowProcApi, id: str, owner: str | None) -> ProcessingJob:
    """Delete the record of a processing job that has ended."""
    return api.deleteProcessingJob(owner, id)
