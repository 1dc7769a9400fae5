"""``dm-delete-station``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Station


@command("dm-delete-station", api="dm.site.storage.api:ExperimentDsApi")
@option("--station", required=True, metavar="NAME", help="Station name.")
def main(api: ExperimentDsApi, station: str) -> Station:
    """Delete a station that no experiment ever used (administrators)."""
    return api.deleteStation(station)
