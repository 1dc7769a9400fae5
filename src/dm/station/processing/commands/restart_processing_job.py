"""``dm-restart-processing-job``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.processing.api import ProcessingJob, WorkflowProcApi
from dm.station.processing.commands.job_options import job_options


@command("dm-restart-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@job_options
@option("--from-stage", required=True, help="Name of the first stage to run again.")
def main(api: WorkflowProcApi, id: str, owner: str | None, from_stage: str) -> ProcessingJob:
    """Run a stage of an ended processing job and all later ones anew. The job keeps its id."""
    return api.restartProcessingJob(owner, id, from_stage)
