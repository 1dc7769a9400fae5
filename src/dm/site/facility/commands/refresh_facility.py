"""``dm-refresh-facility``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.facility.api import Reading, ServiceMonitorApsDbApi


@command("dm-refresh-facility", api="dm.site.facility.api:ServiceMonitorApsDbApi")
@option("--adapter", metavar="NAME", help="Only this adapter, by its name in the settings.")
@option("--kind", type=click.Choice(["runs", "beamlines", "proposals", "esafs"]), help="Only this kind.")
@option("--force", is_flag=True, help="Also when more records would go than the settings allow.")
@option("--show", is_flag=True, help="Read nothing; show when and how the last reading was.")
def main(api: ServiceMonitorApsDbApi, adapter: str | None, kind: str | None, force: bool, show: bool) -> list[Reading]:
    """Read proposals, safety forms, runs and beamlines from the facility's systems now (administrators)."""
    if show:
        found = api.getReadings()
        return [one for one in found if adapter in (None, one["adapter"]) and kind in (None, one["kind"])]
    return api.refresh(adapter, kind, force)
