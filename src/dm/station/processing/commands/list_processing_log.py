"""``dm-list-processing-log``"""

from __future__ import annotations

from collections.abc import Iterator

from dm.common.command import command, option
from dm.station.processing.api import LogEntry, WorkflowProcApi


@command("dm-list-processing-log", api="dm.station.processing.api:WorkflowProcApi")
@option("--date", default="today", show_default=True, help="The day, e.g. 2026-03-05.")
def main(api: WorkflowProcApi, date: str) -> Iterator[LogEntry]:
    """List the logbook of a day: which processing jobs were accepted when, from whom. For managers of the station."""
    return api.listProcessingLog(date)
