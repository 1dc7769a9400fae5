"""``dm-wait-processing-job``"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from dm.common import statuses
from dm.common.command import command, option, progress
from dm.common.errors import ProcessingError
from dm.station.processing.api import ProcessingJob, WorkflowProcApi


@command("dm-wait-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@option("--id", required=True, help="Job id.")
@option("--owner", help="Its owner; default: whoever it is.")
@option("--timeout", type=click.FloatRange(0), help="Most seconds to wait; default: as long as it takes.")
def main(api: WorkflowProcApi, id: str, owner: str | None, timeout: float | None) -> Iterator[ProcessingJob]:
    """Wait for the end of a processing job and show it. The exit status is 0 only when the job is done."""
    with progress(f"Job {id}") as update:
        watch = (lambda job: update(stages_begun(job), stages_of(job))) if sys.stderr.isatty() else None
        job = api.waitProcessingJob(owner, id, timeout, watch)
    yield job
    if job["status"] != statuses.DONE:
        reason = job.get("errorMessage") or f"it ended in stage {job.get('stage', '(none)')!r}."
        raise ProcessingError(f"Job {id} is {job['status']}: {reason}")


def stages_of(job: ProcessingJob) -> int:
    """Return how many stages a job has."""
    return len(job["workflow"]["stages"])


def stages_begun(job: ProcessingJob) -> int:
    """Return how many stages of a job have begun."""
    return sum("status" in stage for stage in job["workflow"]["stages"].values())
