"""Which records belong to which station, and who may see which."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from dm.common.web.routes import Principal
from dm.site.facility import records
from dm.site.facility.settings import StationSelection

_LEADING_DIGITS = re.compile(r"\d+")


def plain(name: str) -> str:
    """Return a beamline's or station's name without case and punctuation: ``25-ID-C`` and ``25IDC`` are one."""
    return "".join(one for one in name.upper() if one.isalnum() or one in "*?,")


def same_beamline(asked: str, of_record: str) -> bool:
    """Whether a record's beamline is the one asked for: all of it, or one of several in a comma list."""
    wanted = plain(asked)
    return wanted == plain(of_record) or plain(of_record) in wanted.split(",")


class Selection:
    """The stations' settings, applied to records.

    :param stations: of ``[facility.stations]``; a station without settings has the sector its name starts with and the
        beamline of its own name.
    """

    def __init__(self, stations: Mapping[str, StationSelection]) -> None:
        self._stations = dict(stations)

    def sector(self, station: str) -> str:
        """Return the sector of a station, empty if it has none."""
        found = self._stations.get(station)
        if found is not None and found.sector is not None:
            return records.sector(found.sector)
        digits = _LEADING_DIGITS.match(station)
        return records.sector(digits.group()) if digits else ""

    def belongs(self, record: Mapping[str, Any], station: str) -> bool:
        """Whether a record is of a station: named so, else at one of its beamlines, else of its sector."""
        if record.get("station"):
            return bool(record["station"] == station)
        beamline = str(record.get("beamline") or "")
        if beamline:
            found = self._stations.get(station)
            patterns = (found.beamlines if found is not None else []) or [station]
            return any(fnmatchcase(plain(beamline), plain(pattern)) for pattern in patterns)
        sector = self.sector(station)
        return bool(sector) and records.sector(record.get("sector")) == sector

    def visible(self, record: Mapping[str, Any], principal: Principal, named: bool) -> bool:
        """Whether somebody may see a record: administrators, the people of its station, its own people.

        :param named: whether the record names their badge.
        """
        if principal.only_station is not None and not self.belongs(record, principal.only_station):
            return False
        if principal.is_admin or named:
            return True
        return any(principal.manages(station) and self.belongs(record, station) for station in principal.station_roles)
