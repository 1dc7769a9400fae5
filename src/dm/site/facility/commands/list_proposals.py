"""``dm-list-proposals``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.facility.api import BssApsDbApi, Proposal
from dm.site.facility.commands.options import beamline_option, run_option, station_option


@command("dm-list-proposals", api="dm.site.facility.api:BssApsDbApi")
@station_option
@beamline_option
@run_option
def main(api: BssApsDbApi, station: str | None, beamline: str | None, run: str | None) -> list[Proposal]:
    """List the beam-time proposals of a station that you may see, earliest first."""
    return api.listStationProposals(station, beamline, run)
