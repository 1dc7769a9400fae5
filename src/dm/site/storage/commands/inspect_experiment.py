"""``dm-inspect-experiment``"""

from __future__ import annotations

from collections.abc import Iterator

import click

from dm.common.command import command, option, progress
from dm.common.records import DmObject
from dm.site.storage.api import InspectionDsApi
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-inspect-experiment", api="dm.site.storage.api:InspectionDsApi")
@experiment_option
@station_option
@option("--read-again", is_flag=True, help="Read and digest every file, not only look at its size and time.")
@option("--repair", is_flag=True, help="Set owners, modes and access lists right; contents are never changed.")
@option("--no-wait", is_flag=True, help="Only ask for it; see dm-list-inspections.")
@option("--last", is_flag=True, help="Show what the last inspection found, without another one.")
def main(  # noqa: PLR0917 - one per option
    api: InspectionDsApi,
    experiment: str,
    station: str | None,
    read_again: bool,
    repair: bool,
    no_wait: bool,
    last: bool,
) -> Iterator[DmObject]:
    """Compare an experiment's files with what is recorded of them; prints the result and what is wrong.

    What cannot be repaired comes with what to do about it. What the service cannot give, because it is not run as
    root, is said on standard error.
    """
    if last and (read_again or repair or no_wait):
        raise click.UsageError("--last shows what is known; it goes with no other choice.")
    if last:
        record = api.getInspection(experiment, station)
    else:
        record = api.inspectExperiment(experiment, station, read_again, repair)
        if not no_wait:
            with progress("Looking at files") as update:
                record = api.waitForInspection(record, progress=update)
    for sentence in record["limits"]:
        click.echo(sentence, err=True)
    yield record
    if not no_wait:
        yield from api.getFindings(experiment, station)
