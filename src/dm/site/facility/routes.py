"""The routes table of the facility service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dm.common.health import Health
from dm.common.web.common import reset_alarms
from dm.common.web.routes import ADMIN, MANAGER, USER, NoArguments, Request, Route
from dm.site.facility import arguments as a
from dm.site.facility import user_routes
from dm.site.facility.access import CONCERNED
from dm.site.facility.esafs import Esafs
from dm.site.facility.people import People
from dm.site.facility.plans import Plans
from dm.site.facility.proposals import Proposals
from dm.site.facility.reading import Readings
from dm.site.facility.runs import Runs
from dm.site.identity.synchronisation import UserSynchronisation

_STATION = frozenset({"stationName"})
_STATION_AND_BEAMLINE = frozenset({"stationName", "beamlineName"})


@dataclass(frozen=True)
class UseCases:
    """Everything the handlers call."""

    runs: Runs
    proposals: Proposals
    esafs: Esafs
    plans: Plans
    readings: Readings
    people: People
    user_syncs: UserSynchronisation
    health: Health


def routes(use: UseCases) -> list[Route]:
    """Return the table, bound to the use cases."""
    return [
        *_proposals(use),
        *_esafs(use),
        *user_routes.routes(use.people, use.user_syncs),
        *_service(use),
    ]


def _proposals(use: UseCases) -> list[Route]:
    def runs(request: Request, arguments: NoArguments) -> list[dict[str, Any]]:
        return use.runs.all()

    def current(request: Request, arguments: NoArguments) -> dict[str, Any]:
        return use.runs.current()

    def beamlines(request: Request, arguments: NoArguments) -> list[dict[str, Any]]:
        return use.runs.beamlines()

    def at_beamline(request: Request, arguments: a.BeamlineProposals) -> list[dict[str, Any]]:
        return use.proposals.all(request.principal, None, arguments.beamline_name, arguments.run_name)

    def at_station(request: Request, arguments: a.StationProposals) -> list[dict[str, Any]]:
        return use.proposals.all(request.principal, arguments.station_name, arguments.beamline_name, arguments.run_name)

    def get(request: Request, arguments: a.ProposalById) -> dict[str, Any]:
        return use.proposals.get(
            request.principal, arguments.id, beamline=arguments.beamline_name, run=arguments.run_name
        )

    def get_of_station(request: Request, arguments: a.StationProposalById) -> dict[str, Any]:
        return use.proposals.get(request.principal, arguments.id, arguments.station_name, run=arguments.run_name)

    def plan(request: Request, arguments: a.StationProposalById) -> dict[str, Any]:
        return use.plans.from_proposal(request.principal, arguments.station_name, arguments.id, arguments.run_name)

    return [
        Route("GET", "/bss/runs", runs, USER, "List the run cycles, newest last."),
        Route("GET", "/bss/runs/current", current, USER, "Give the current run cycle."),
        Route("GET", "/bss/beamlines", beamlines, USER, "List the beamlines."),
        Route("GET", "/bss/beamlineProposals[/{beamlineName}]", at_beamline, CONCERNED,
              "List the proposals of a run, optionally of one beamline.", a.BeamlineProposals,
              frozenset({"beamlineName"})),
        Route("GET", "/bss/proposalsById/{id}", get, CONCERNED, "Give a proposal.", a.ProposalById,
              frozenset({"beamlineName"})),
        Route("GET", "/bss/stationProposals/{stationName}[/{beamlineName}]", at_station, CONCERNED,
              "List the proposals of a station and run, optionally of one beamline.", a.StationProposals,
              _STATION_AND_BEAMLINE),
        Route("GET", "/bss/stationProposalsById/{stationName}/{id}", get_of_station, CONCERNED,
              "Give a proposal of a station.", a.StationProposalById, _STATION),
        Route("GET", "/bss/experimentPlans/{stationName}/{id}", plan, CONCERNED,
              "Give name, dates, place and people of an experiment to be made for a proposal.",
              a.StationProposalById, _STATION),
    ]  # fmt: skip


def _esafs(use: UseCases) -> list[Route]:
    def of_sector(request: Request, arguments: a.SectorEsafs) -> list[dict[str, Any]]:
        return use.esafs.of_sector(request.principal, arguments.sector, arguments.year)

    def of_station(request: Request, arguments: a.StationEsafs) -> list[dict[str, Any]]:
        return use.esafs.of_station(request.principal, arguments.station_name, arguments.beamline_name, arguments.year)

    def between(request: Request, arguments: a.StationEsafsByDate) -> list[dict[str, Any]]:
        return use.esafs.between(request.principal, arguments.station_name, arguments.start_date, arguments.end_date)

    def get(request: Request, arguments: a.EsafById) -> dict[str, Any]:
        return use.esafs.get(request.principal, arguments.id)

    def get_of_station(request: Request, arguments: a.StationEsafById) -> dict[str, Any]:
        return use.esafs.get(request.principal, arguments.id, arguments.station_name)

    def plan(request: Request, arguments: a.StationEsafById) -> dict[str, Any]:
        return use.plans.from_esaf(request.principal, arguments.station_name, arguments.id)

    return [
        Route("GET", "/esaf/sectorEsafs/{sector}", of_sector, CONCERNED,
              "List the safety forms of a sector, optionally of one year.", a.SectorEsafs),
        Route("GET", "/esaf/esafsById/{id}", get, CONCERNED, "Give a safety form.", a.EsafById),
        Route("GET", "/esaf/stationEsafs/{stationName}[/{beamlineName}]", of_station, CONCERNED,
              "List the safety forms of a station, optionally of one beamline and year.", a.StationEsafs,
              _STATION_AND_BEAMLINE),
        Route("GET", "/esaf/stationEsafsById/{stationName}/{id}", get_of_station, CONCERNED,
              "Give a safety form of a station.", a.StationEsafById, _STATION),
        Route("GET", "/esaf/stationEsafsByDateRange/{stationName}", between, CONCERNED,
              "List the safety forms of a station that touch some days.", a.StationEsafsByDate, _STATION),
        Route("GET", "/esaf/experimentPlans/{stationName}/{id}", plan, CONCERNED,
              "Give name, dates, place and people of an experiment to be made for a safety form.",
              a.StationEsafById, _STATION),
    ]  # fmt: skip


def _service(use: UseCases) -> list[Route]:
    def readings(request: Request, arguments: NoArguments) -> list[dict[str, Any]]:
        return use.readings.state()

    def refresh(request: Request, arguments: a.Refresh) -> list[dict[str, Any]]:
        outcomes = use.readings.read(arguments.adapter, arguments.kind, arguments.force)
        return [outcome.record() for outcome in outcomes]

    return [
        Route("GET", "/facility/readings", readings, MANAGER,
              "Tell when the facility's systems were read last, and how that went."),
        Route("POST", "/facility/readings", refresh, ADMIN, "Read the facility's systems now.", a.Refresh),
        reset_alarms(use.health, MANAGER),
    ]  # fmt: skip
