"""``dm-update-storage``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Storage


@command("dm-update-storage", api="dm.site.storage.api:ExperimentDsApi")
@option("--storage", required=True, metavar="NAME", help="Storage name.")
@option("--description", help="What it is.")
@option("--host", help="Host on which stations reach it.")
@option("--retired/--in-use", default=None, help="Whether it takes no new experiments; those that are there stay.")
def main(
    api: ExperimentDsApi, storage: str, description: str | None, host: str | None, retired: bool | None
) -> Storage:
    """Change a storage, or retire it (administrators)."""
    if description is None and host is None and retired is None:
        raise click.UsageError("Nothing to change is given; see --help.")
    return api.updateStorage(storage, description, host, retired)
