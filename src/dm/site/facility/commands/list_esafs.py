"""``dm-list-esafs``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.facility.api import Esaf, EsafApsDbApi
from dm.site.facility.commands.options import beamline_option, station_option


@command("dm-list-esafs", api="dm.site.facility.api:EsafApsDbApi")
@station_option
@beamline_option
@option("--sector", metavar="NN", help="All of this sector instead of a station's.")
@option("--year", type=int, help="Only those that touch this year.")
@option("--start-date", metavar="DATE", help="With --end-date: only those that touch these days.")
@option("--end-date", metavar="DATE", help="Last of these days.")
def main(  # noqa: PLR0917
    api: EsafApsDbApi,
    station: str | None,
    beamline: str | None,
    sector: str | None,
    year: int | None,
    start_date: str | None,
    end_date: str | None,
) -> list[Esaf]:
    """List the safety forms (ESAFs) of a station that you may see, earliest first."""
    if (start_date is None) != (end_date is None):
        raise click.UsageError("Give --start-date and --end-date together.")
    if start_date is not None and end_date is not None:
        if year is not None or sector is not None or beamline is not None:
            raise click.UsageError("Give --start-date and --end-date without --year, --sector and --beamline.")
        return api.listStationEsafsByDateRange(station, start_date, end_date)
    if sector is not None:
        return api.listEsafs(sector, year)
    return api.listStationEsafs(station, beamline, year)
