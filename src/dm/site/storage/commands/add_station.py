"""``dm-add-station``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Station


@command("dm-add-station", api="dm.site.storage.api:ExperimentDsApi")
@option("--station", required=True, metavar="NAME", help="Station name, e.g. 25IDC.")
@option("--description", default="", help="What it is.")
def main(api: ExperimentDsApi, station: str, description: str) -> Station:
    """Add a station (administrators)."""
    return api.addStation(station, description)
