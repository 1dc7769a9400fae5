"""``dm-resume-processing-job``"""

from __future__ import annotations

from dm.common.command import command
from dm.station.processing.api import ProcessingJob, WorkflowProcApi
from dm.station.processing.commands.job_options import job_options


@command("dm-resume-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@job_options
def main(api: WorkflowProcApi, id: str, owner: str | None) -> ProcessingJob:
    """Let a failed or aborted processing job go on where it stopped.

    Processes that are done are not run again. The job keeps its id.
    """
    return api.resumeProcessingJob(owner, id)
