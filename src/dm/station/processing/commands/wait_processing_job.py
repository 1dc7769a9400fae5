"""``dm-wait-processing-job``"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import click

from dm.common import statuses
from dm.common.command import command, option, progress
from dm.common.errors import DmException, InvalidObjectState, ProcessingError, TaskTimeout
from dm.station.processing.api import ProcessingJob, WorkflowProcApi

Watch = Callable[[ProcessingJob], None] | None


@command("dm-wait-processing-job", api="dm.station.processing.api:WorkflowProcApi")
@option("--id", "ids", required=True, multiple=True, help="Job id; repeatable.")
@option("--owner", help="Its owner; default: whoever it is.")
@option("--timeout", type=click.FloatRange(0), help="Most seconds to wait; default: as long as it takes.")
def main(
    api: WorkflowProcApi, ids: tuple[str, ...], owner: str | None, timeout: float | None
) -> Iterator[ProcessingJob]:
    """Wait for the end of processing jobs and show them. The exit status is 0 only when all are done.

    It is 11 when a job failed, else 16 when one was aborted, else 22 when one has not ended in time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    worst: DmException | None = None
    with progress(f"Job {ids[0]}" if len(ids) == 1 else f"{len(ids)} jobs") as update:
        for number, id in enumerate(ids):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                job = api.waitProcessingJob(owner, id, left, _watch(update, number, len(ids)))
                yield job
                problem = judged(job)
            except TaskTimeout as error:
                problem = error
            if problem is not None and (worst is None or _RANK[type(problem)] < _RANK[type(worst)]):
                worst = problem
    if worst is not None:
        raise worst


_RANK: dict[type[DmException], int] = {ProcessingError: 0, InvalidObjectState: 1, TaskTimeout: 2}


def judged(job: ProcessingJob) -> DmException | None:
    """Return what is wrong with an ended job; ``None`` when it is done."""
    if job["status"] == statuses.DONE:
        return None
    reason = job.get("errorMessage") or f"it ended in stage {_last_stage(job)!r}."
    kind = InvalidObjectState if job["status"] == statuses.ABORTED else ProcessingError
    return kind(f"Job {job['id']} is {job['status']}: {reason}")


def _last_stage(job: ProcessingJob) -> str:
    """Return the stage that decided how a job ended; cleanup stages come after it and decide nothing."""
    stages = job["workflow"]["stages"].items()
    decided = (
        name
        for name, stage in stages
        if stage.get("status") == job["status"] and stage.get("onFailure") != "continue" and not stage.get("cleanup")
    )
    return str(next(decided, job.get("stage", "(none)")))


def _watch(update: Callable[..., None], number: int, count: int) -> Watch:
    """Return what shows progress on a terminal: of one job its stages, of several how many have ended."""
    if not sys.stderr.isatty():
        return None
    if count == 1:
        return lambda job: update(stages_begun(job), stages_of(job))
    return lambda job: update(number + job.is_over, count)


def stages_of(job: ProcessingJob) -> int:
    """Return how many stages a job has."""
    return len(job["workflow"]["stages"])


def stages_begun(job: ProcessingJob) -> int:
    """Return how many stages of a job have begun."""
    return sum("status" in stage for stage in job["workflow"]["stages"].values())
