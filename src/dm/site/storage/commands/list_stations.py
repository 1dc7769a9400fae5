"""``dm-list-stations``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import ExperimentDsApi, Station


@command("dm-list-stations", api="dm.site.storage.api:ExperimentDsApi")
def main(api: ExperimentDsApi) -> list[Station]:
    """List all stations."""
    return api.getStations()
