"""``dm-list-daq-files``"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click

from dm.common.command import command, option
from dm.common.errors import ObjectNotFound
from dm.station.acquisition.api import FILE_PAGE, ExperimentDaqApi, LedgerFile

STATES = ["seen", "settling", "ready", "moving", "stored", "done", "failed", "skipped", "vanished"]


@command("dm-list-daq-files", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ or upload id.")
@option("--state", type=click.Choice(STATES), help="Only files in this state.")
@option("--skip", type=click.IntRange(0), default=0, help="Leave out this many first.")
@option("--limit", type=click.IntRange(1), help="At most so many; default: all.")
def main(api: ExperimentDaqApi, id: str, state: str | None, skip: int, limit: int | None) -> Iterator[LedgerFile]:
    """List the files of a DAQ or upload with state, attempts and last error."""
    fetch = api.listDaqFiles
    try:
        page = fetch(id, state, skip, min(limit or FILE_PAGE, FILE_PAGE))
    except ObjectNotFound:
        fetch = api.listUploadFiles
        page = fetch(id, state, skip, min(limit or FILE_PAGE, FILE_PAGE))
    return _pages(page, lambda first, count: fetch(id, state, first, count), skip, limit)


def _pages(
    page: list[LedgerFile], fetch: Callable[[int, int], list[LedgerFile]], skip: int, limit: int | None
) -> Iterator[LedgerFile]:
    """Yield the first page and fetch the following ones as they are printed."""
    left = limit
    while page:
        yield from page
        skip += len(page)
        if left is not None:
            left -= len(page)
        if len(page) < FILE_PAGE or left == 0:
            return
        page = fetch(skip, min(left or FILE_PAGE, FILE_PAGE))
