"""``dm-list-beamlines``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.facility.api import Beamline, BssApsDbApi


@command("dm-list-beamlines", api="dm.site.facility.api:BssApsDbApi")
def main(api: BssApsDbApi) -> list[Beamline]:
    """List the beamlines of the facility."""
    return api.listBeamlines()
