"""``dm-add-storage``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Storage


@command("dm-add-storage", api="dm.site.storage.api:ExperimentDsApi")
@option("--storage", required=True, metavar="NAME", help="Storage name.")
@option("--host", required=True, help="Host on which stations reach it.")
@option("--directory", required=True, help="Existing absolute directory on the storage service's host.")
@option("--description", default="", help="What it is.")
def main(api: ExperimentDsApi, storage: str, host: str, directory: str, description: str) -> Storage:
    """Add a storage that experiments can be kept in (administrators)."""
    return api.addStorage(storage, host, directory, description)
