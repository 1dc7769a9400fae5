"""``dm-prune-source``"""

from __future__ import annotations

from collections.abc import Iterator

import click

from dm.common import timestamps
from dm.common.command import command, option
from dm.common.errors import InvalidObjectState
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.api_prune import PrunedFile
from dm.station.acquisition.commands.file_options import is_upload

_DAY = 86_400.0


@command("dm-prune-source", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", help="Of a DAQ or upload that has ended.")
@option("--experiment", help="All DAQs and uploads of this experiment that have ended.")
@option("--older-than", type=click.FloatRange(0), metavar="DAYS", help="Only what ended so many days ago or earlier.")
@option("--keep-days", type=click.FloatRange(0), default=0, help="Keep files that were stored in the last days.")
@option("--read-again", is_flag=True, help="Have storage read and digest its files again, too.")
@option("--delete", is_flag=True, help="Remove; without it, only what would be removed is told.")
@option("--quiet", is_flag=True, help="Print only the files that are kept, and the sum.")
def main(  # noqa: PLR0917
    api: ExperimentDaqApi,
    id: str | None,
    experiment: str | None,
    older_than: float | None,
    keep_days: float,
    read_again: bool,
    delete: bool,
    quiet: bool,
) -> Iterator[PrunedFile | str]:
    """Remove source files that storage has, each with proof; tells what became of each file.

    A file goes only if storage, asked now, has it as it verified it, if the source, read now, has the same digest, and
    if no program has it open for writing. Files that are in no ledger are never touched. Stopped in the middle, it is
    simply run again.
    """
    if (id is None) == (experiment is None and older_than is None):
        raise click.UsageError("Give either --id, or --experiment, --older-than or both.")
    counts: dict[str, list[int]] = {}
    for task, upload in [(id, is_upload(api, id))] if id else _ended(api, experiment, older_than):
        try:
            for file in (api.pruneUploadSource if upload else api.pruneDaqSource)(task, delete, keep_days, read_again):
                count = counts.setdefault(str(file["fate"]), [0, 0])
                count[0] += 1
                count[1] += int(file["size"])
                if not quiet or file["fate"] == "kept":
                    yield file
        except InvalidObjectState as error:
            if id:
                raise
            click.echo(f"Left out: {error.message}", err=True)
    told = [f"{number} {fate} ({size} bytes)" for fate, (number, size) in sorted(counts.items())]
    click.echo(f"Files: {', '.join(told) or 'none'}.", err=True)
    if counts.get("removable"):
        click.echo("Nothing was removed; add --delete to do it.", err=True)


def _ended(api: ExperimentDaqApi, experiment: str | None, days: float | None) -> Iterator[tuple[str, bool]]:
    """Yield ids of what has ended, oldest first, and whether they are uploads."""
    latest = timestamps.now() - (days or 0) * _DAY
    for upload, records in ((False, api.listDaqs(experiment)), (True, api.listUploads(experiment))):
        for record in records:
            if record.is_over and float(record.get("endTime") or latest + 1) <= latest:
                yield str(record["id"]), upload
