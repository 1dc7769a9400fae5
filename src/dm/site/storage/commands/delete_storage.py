"""``dm-delete-storage``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Storage


@command("dm-delete-storage", api="dm.site.storage.api:ExperimentDsApi")
@option("--storage", required=True, metavar="NAME", help="Storage name.")
def main(api: ExperimentDsApi, storage: str) -> Storage:
    """Delete a storage that no experiment ever used (administrators)."""
    return api.deleteStorage(storage)
