"""``dm-start-processing-job``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.station.processing.api import ProcessingJob, WorkflowProcApi


@command("dm-start-processing-job", api="dm.station.processing.api:WorkflowProcApi", keyvalue_arguments=True)
@option("--workflow-name", required=True, help="Workflow name.")
@option("--workflow-owner", help="Its owner; default: yourself.")
@option("--job-owner", help="Whose job it is; default: yourself. For managers of the station.")
@option(
    "--priority", type=click.IntRange(-100, 100), help="Jobs of a higher one go first; default: the workflow's, else 0."
)
@option("--idempotency-key", help="Started again with the same key, the job is not started twice.")
def main(  # noqa: PLR0917 - given by name
    api: WorkflowProcApi,
    workflow_name: str,
    workflow_owner: str | None,
    job_owner: str | None,
    priority: int | None,
    idempotency_key: str | None,
    words: dict[str, str],
) -> ProcessingJob:
    """Start a processing job.

    KEY:VALUE words are the job's arguments: its input (filePath:/data/a.h5, filePathList:a,b, filePathPattern:*.h5,
    dataDir:/data, experimentName:e1 with datasetName:d1 or fileQuery:'{"key": "value"}') and the values of the
    workflow's variables.
    """
    owner = workflow_owner or api.username
    return api.startProcessingJob(
        owner, workflow_name, words, idempotencyKey=idempotency_key, jobOwner=job_owner, priority=priority
    )
