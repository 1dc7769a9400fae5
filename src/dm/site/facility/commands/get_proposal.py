"""``dm-get-proposal``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.facility.api import BssApsDbApi, Proposal


@command("dm-get-proposal", api="dm.site.facility.api:BssApsDbApi")
@option("--id", "proposal_id", required=True, help="Its number.")
@option("--run", metavar="NAME", help="Run, e.g. 2026-1; default: the latest it is in.")
@option("--beamline", metavar="NAME", help="Only if it is of this beamline.")
def main(api: BssApsDbApi, proposal_id: str, run: str | None, beamline: str | None) -> Proposal:
    """Show one beam-time proposal."""
    return api.getProposal(proposal_id, run, beamline)
