"""``dm-list-processing-jobs``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.station.processing.api import DEFAULT_LIMIT, ProcessingJob, WorkflowProcApi


@command("dm-list-processing-jobs", api="dm.station.processing.api:WorkflowProcApi", keyvalue_arguments=True)
@option("--owner", help="Owner; default: all jobs you may see.")
@option("--skip", type=click.IntRange(0), default=0, help="Jobs to leave out, counted from the newest.")
@option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, show_default=True, help="Most jobs to list.")
def main(api: WorkflowProcApi, owner: str | None, skip: int, limit: int, words: dict[str, str]) -> list[ProcessingJob]:
    """List processing jobs, oldest first.

    KEY:VALUE words choose among them by job keys (id, status, stage), arguments and captured variables.
    """
    return api.listProcessingJobs(owner, words, skip, limit, wanted_keys(click.get_current_context()))


def wanted_keys(context: click.Context) -> str:
    """Return the key list to ask the service for: no more than what will be printed."""
    if context.params.get("all_keys"):
        return "ALL"
    return context.params.get("display_keys") or "DEFAULT"
