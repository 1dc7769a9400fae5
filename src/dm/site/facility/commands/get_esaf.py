"""``dm-get-esaf``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.facility.api import Esaf, EsafApsDbApi


@command("dm-get-esaf", api="dm.site.facility.api:EsafApsDbApi")
@option("--id", "esaf_id", required=True, help="Its number.")
def main(api: EsafApsDbApi, esaf_id: str) -> Esaf:
    """Show one safety form (ESAF)."""
    return api.getEsaf(esaf_id)
