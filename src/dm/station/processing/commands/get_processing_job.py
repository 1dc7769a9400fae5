"""``dm-get-processing-job``"""

from __future__ import annotations

from dm.common.command import command
from dm.station.processing.api import ProcessingJob, WorkflowProcApi
from dm.station.processing.commands.job_options import job_options


@command("dm-get-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@job_options
def main(api: WorkflowProcApi, id: str, owner: str | None) -> ProcessingJob:
    """Show a processing job; its processes with --display-keys ALL."""
    return api.getProcessingJobById(owner, id)
