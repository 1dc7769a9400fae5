"""``dm-list-inspections``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import InspectionDsApi
from dm.site.storage.api_permissions import Inspection
from dm.site.storage.commands.options import station_option


@command("dm-list-inspections", api="dm.site.storage.api:InspectionDsApi")
@station_option
def main(api: InspectionDsApi, station: str | None) -> list[Inspection]:
    """List what inspections found of a station's experiments; dm-inspect-experiment --last shows it one by one."""
    return api.getInspections(station)
