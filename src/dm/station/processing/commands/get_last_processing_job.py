"""``dm-get-last-processing-job``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.processing.api import ProcessingJob, WorkflowProcApi


@command("dm-get-last-processing-job", api="dm.station.processing.api:WorkflowProcApi", keyvalue_arguments=True)
@option("--owner", help="Owner; default: all jobs you may see.")
def main(api: WorkflowProcApi, owner: str | None, words: dict[str, str]) -> ProcessingJob:
    """Show the newest processing job.

    KEY:VALUE words choose among jobs by job keys (status), arguments and captured variables.
    """
    return api.getLastProcessingJob(owner, words)
