"""``dm-update-station``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Station


@command("dm-update-station", api="dm.site.storage.api:ExperimentDsApi")
@option("--station", required=True, metavar="NAME", help="Station name.")
@option("--description", help="What it is.")
@option(
    "--path-template",
    metavar="TEXT",
    help="Directories of experiments added from now on, like {station}/{year}-{month}/{name}; '' for the usual ones.",
)
@option("--storage", metavar="NAME", help="Storage of experiments added from now on; '' for no particular one.")
def main(
    api: ExperimentDsApi, station: str, description: str | None, path_template: str | None, storage: str | None
) -> Station:
    """Change a station (administrators)."""
    if description is None and path_template is None and storage is None:
        raise click.UsageError("Nothing to change is given; see --help.")
    return api.updateStation(station, description, path_template, storage)
