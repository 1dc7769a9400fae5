"""``dm-restart-processing-job``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.processing.api import ProcessingJob, WorkflowProcApi
from dm.station.processing.commands.job_options import job_options


@command("dm-restart-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@job_options
@option("--from-stage", help="Name of the first stage to run again; default: the whole job.")
def main(api: WorkflowProcApi, id: str, owner: str | None, from_stage: str | None) -> ProcessingJob:
    """Run an ended processing job anew, from a stage on or all of it. The job keeps its id."""
    return api.restartProcessingJob(owner, id, from_stage)
