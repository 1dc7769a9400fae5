"""``dm-get-processing-job-output``"""

from __future__ import annotations

import sys

import click

from dm.common.command import command, option
from dm.common.errors import ObjectNotFound
from dm.station.processing.api import WorkflowProcApi
from dm.station.processing.commands.job_options import job_options


@command("dm-get-processing-job-output", api="dm.station.processing.api:WorkflowProcApi", display=False)
@job_options
@option("--process", type=click.IntRange(0), help="Number of the process; default: the last one that has ended.")
@option("--stderr", "errors", is_flag=True, help="What it printed to standard error instead.")
@option("--follow", is_flag=True, help="Go on until the process ends; Ctrl-C ends the showing only.")
def main(  # noqa: PLR0917 - given by name
    api: WorkflowProcApi, id: str, owner: str | None, process: int | None, errors: bool, follow: bool
) -> None:
    """Print all that a process of a job printed, byte for byte."""
    if process is None:
        if follow:
            raise click.UsageError("Which process is to be followed? Give --process.")
        process = last_process(api, id, owner)
    for piece in api.getProcessingJobOutput(owner, id, process, "stdErr" if errors else "stdOut", follow):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def last_process(api: WorkflowProcApi, id: str, owner: str | None) -> int:
    """Return the number of the last process that has ended. :raises ObjectNotFound: none has."""
    job = api.getProcessingJobById(owner, id)
    numbers = [int(number) for stage in job["workflow"]["stages"].values() for number in stage["childProcesses"]]
    if not numbers:
        raise ObjectNotFound(f"A process of job {id} that has ended does not exist yet; its status is {job['status']}.")
    return max(numbers)
