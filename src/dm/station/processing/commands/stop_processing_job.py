"""``dm-stop-processing-job``, also called ``dm-abort-processing-job``"""

from __future__ import annotations

from dm.common.command import command
from dm.station.processing.api import ProcessingJob, WorkflowProcApi
from dm.station.processing.commands.job_options import job_options


@command("dm-stop-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@job_options
def main(api: WorkflowProcApi, id: str, owner: str | None) -> ProcessingJob:
    """Stop a processing job: its processes are asked to end, then killed."""
    return api.stopProcessingJob(owner, id)
