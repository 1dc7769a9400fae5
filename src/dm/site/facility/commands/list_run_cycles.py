"""``dm-list-run-cycles``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.facility.api import BssApsDbApi, Run


@command("dm-list-run-cycles", api="dm.site.facility.api:BssApsDbApi")
def main(api: BssApsDbApi) -> list[Run]:
    """List the run cycles of the facility, newest last."""
    return api.listRuns()
