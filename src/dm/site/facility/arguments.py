"""The argument models of the routes table."""

from __future__ import annotations

from pydantic import Field

from dm.common.web.routes import Arguments

_RUN = "Run name, e.g. 2026-1; default: "
_BEAMLINE = "Beamline as the facility calls it; several as comma list."


class BeamlineProposals(Arguments):
    """Proposals of a beamline and run."""

    beamline_name: str | None = Field(default=None, description=_BEAMLINE)
    run_name: str | None = Field(default=None, description=_RUN + "the current one.")


class StationProposals(BeamlineProposals):
    """Proposals of a station, beamline and run."""

    station_name: str = Field(description="Station name.")


class ProposalById(Arguments):
    """A proposal."""

    id: str = Field(description="Its number, leading zeros or not.")
    beamline_name: str | None = Field(default=None, description=_BEAMLINE)
    run_name: str | None = Field(default=None, description=_RUN + "the latest it is in.")


class StationProposalById(Arguments):
    """A proposal of a station."""

    station_name: str = Field(description="Station name.")
    id: str = Field(description="Its number, leading zeros or not.")
    run_name: str | None = Field(default=None, description=_RUN + "the latest it is in.")


class SectorEsafs(Arguments):
    """Safety forms of a sector."""

    sector: str = Field(description="Sector, e.g. 08 or 8.")
    year: int | None = Field(default=None, ge=1970, le=2261, description="Only forms that touch this year.")


class StationEsafs(Arguments):
    """Safety forms of a station."""

    station_name: str = Field(description="Station name.")
    beamline_name: str | None = Field(default=None, description=_BEAMLINE)
    year: int | None = Field(default=None, ge=1970, le=2261, description="Only forms that touch this year.")


class EsafById(Arguments):
    """A safety form."""

    id: str = Field(description="Its number, leading zeros or not.")


class StationEsafById(EsafById):
    """A safety form of a station."""

    station_name: str = Field(description="Station name.")


class StationEsafsByDate(Arguments):
    """Safety forms of a station between two days."""

    station_name: str = Field(description="Station name.")
    start_date: str = Field(description="First day, YYYY-MM-DD.")
    end_date: str = Field(description="Last day, YYYY-MM-DD.")


class Refresh(Arguments):
    """What to read again."""

    adapter: str | None = Field(default=None, description="Only this adapter, by its name in the settings.")
    kind: str | None = Field(default=None, description="Only runs, beamlines, proposals or esafs.")
    force: bool = Field(default=False, description="Also when more records would go than the settings allow.")
