"""``dm-list-daq-files``"""

from __future__ import annotations

from collections.abc import Iterator

import click

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import FILE_PAGE, ExperimentDaqApi
from dm.station.acquisition.commands.file_options import STATES, Since, is_upload


@command("dm-list-daq-files", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ or upload id.")
@option("--state", type=click.Choice(STATES), help="Only files in this state.")
@option("--pattern", help="Only files whose path, or name, matches this shell wildcard.")
@option("--since", type=Since(), help="Only files found whole or finished since: 90m (ago), or 2026-03-05T14:00.")
@option("--skip", type=click.IntRange(0), default=0, help="Leave out this many first.")
@option("--limit", type=click.IntRange(1), help="At most so many; default: all.")
@option("--counts", is_flag=True, help="Print how many files are in which state instead.")
def main(  # noqa: PLR0917
    api: ExperimentDaqApi,
    id: str,
    state: str | None,
    pattern: str | None,
    since: float | None,
    skip: int,
    limit: int | None,
    counts: bool,
) -> Iterator[DmObject]:
    """List the files of a DAQ or upload with state, attempts and last error."""
    upload = is_upload(api, id)
    if counts:
        yield api.countUploadFiles(id) if upload else api.countDaqFiles(id)
        return
    fetch = api.listUploadFiles if upload else api.listDaqFiles
    left, after = limit, None
    while True:
        count = FILE_PAGE if left is None else min(left, FILE_PAGE)
        page = fetch(id, state, skip if after is None else 0, count, pattern, since, after)
        yield from page
        left = None if left is None else left - len(page)
        if len(page) < count or left == 0:
            return
        after = int(page[-1]["position"])
