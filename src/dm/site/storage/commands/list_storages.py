"""``dm-list-storages``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import ExperimentDsApi, Storage


@command("dm-list-storages", api="dm.site.storage.api:ExperimentDsApi")
def main(api: ExperimentDsApi) -> list[Storage]:
    """List all storages."""
    return api.getStorages()
