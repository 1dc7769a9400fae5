"""``dm-get-current-run``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.facility.api import BssApsDbApi, Run


@command("dm-get-current-run", api="dm.site.facility.api:BssApsDbApi")
def main(api: BssApsDbApi) -> Run:
    """Show the run cycle of today."""
    return api.getCurrentRun()
