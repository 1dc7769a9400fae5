"""``dm-update-experiment-type``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, ExperimentType


@command("dm-update-experiment-type", api="dm.site.storage.api:ExperimentDsApi")
@option("--type", "type_name", required=True, metavar="NAME", help="Type name.")
@option("--new-name", help="Another name.")
@option("--description", help="What it is.")
def main(api: ExperimentDsApi, type_name: str, new_name: str | None, description: str | None) -> ExperimentType:
    """Change an experiment type (administrators)."""
    if new_name is None and description is None:
        raise click.UsageError("Nothing to change is given; see --help.")
    return api.updateExperimentType(type_name, new_name, description)
