"""``dm-list-processing-jobs``"""

from __future__ import annotations

from typing import Any

import click

from dm.common import statuses
from dm.common.command import command, option
from dm.station.processing.api import DEFAULT_LIMIT, ProcessingJob, WorkflowProcApi
from dm.station.processing.commands.job_options import Moment

STATES = (*statuses.ACTIVE, *(status for status in statuses.INACTIVE if status != statuses.SKIPPED))


@command("dm-list-processing-jobs", api="dm.station.processing.api:WorkflowProcApi", keyvalue_arguments=True)
@option("--owner", help="Owner; default: all jobs you may see.")
@option("--status", "states", multiple=True, type=click.Choice(STATES), help="Only of this status; repeatable.")
@option("--workflow-name", help="Only jobs of the workflow of this name.")
@option("--from", "since", type=Moment(), help="Only jobs submitted since: 90m (ago), 2026-03-05 or 2026-03-05T14:00.")
@option(
    "--to", "until", type=Moment(end=True), help="Only jobs submitted until then; a date means the end of that day."
)
@option("--skip", type=click.IntRange(0), default=0, help="Jobs to leave out, counted from the newest.")
@option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, show_default=True, help="Most jobs to list.")
def main(  # noqa: PLR0917 - given by name
    api: WorkflowProcApi,
    owner: str | None,
    states: tuple[str, ...],
    workflow_name: str | None,
    since: float | None,
    until: float | None,
    skip: int,
    limit: int,
    words: dict[str, str],
) -> list[ProcessingJob]:
    """List processing jobs, oldest first.

    KEY:VALUE words choose among them by job keys (id, status, stage), arguments and captured variables.
    """
    query: dict[str, Any] = dict(words)
    if states:
        query["status"] = {"$in": list(states)}
    if workflow_name is not None:
        query["workflow.name"] = workflow_name
    bounds = {"$gte": since, "$lte": until}
    if bounds := {operator: moment for operator, moment in bounds.items() if moment is not None}:
        query["submissionTime"] = bounds
    keys = wanted_keys(click.get_current_context())
    if limit <= DEFAULT_LIMIT:
        return api.listProcessingJobs(owner, query, skip, limit, keys)
    newest_first = list(api.iterateProcessingJobs(owner, query, skip + limit, keys))
    return newest_first[skip:][::-1]


def wanted_keys(context: click.Context) -> str:
    """Return the key list to ask the service for: no more than what will be printed."""
    if context.params.get("all_keys"):
        return "ALL"
    return context.params.get("display_keys") or "DEFAULT"
