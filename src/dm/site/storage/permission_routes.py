"""The routes about permissions: inspections of files, and why somebody may read something or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from dm.common.web.routes import Access, Request, Route, Who
from dm.site.storage import arguments as a
from dm.site.storage.access import reference
from dm.site.storage.explain import Explanations
from dm.site.storage.inspection import Inspections, Inspector

_EXPERIMENT = frozenset({"experimentName"})
_MANAGER_BY_NAME = Access(Who.MANAGER, "experiment_name")
_MANAGER_OF_STATION = Access(Who.MANAGER, "station_name")
_ONESELF = Access(Who.OWNER, "username")


class Inspect(a.ByName):
    """An experiment to look through."""

    read_again: bool = Field(default=False, description="Read and digest every file, not only look at size and time.")
    repair: bool = Field(default=False, description="Set owners, modes and access lists right that are wrong.")


class Findings(a.ByName):
    """A page of what an inspection found."""

    after: int = Field(default=0, ge=0, description="nextAfter of the page before.")
    limit: int = Field(default=1000, ge=1, le=10_000, description="Most findings of the page.")


class Explain(a.ByName):
    """Somebody and something they may or may not read."""

    username: str = Field(description="Login name of whom it is about.")
    path: str = Field(default="", description="Path below the experiment's directory, e.g. data/run1; default: data.")


@dataclass(frozen=True)
class Permitting:
    """What the handlers call, and what works for them."""

    inspections: Inspections
    explanations: Explanations
    inspector: Inspector


def routes(use: Permitting) -> list[Route]:
    """Return the rows."""

    def ask(request: Request, arguments: Inspect) -> dict[str, Any]:
        return use.inspections.ask(request.principal, reference(arguments), arguments.read_again, arguments.repair)

    def get(request: Request, arguments: Findings) -> dict[str, Any]:
        return use.inspections.get(request.principal, reference(arguments), arguments.after, arguments.limit)

    def at_station(request: Request, arguments: a.ByStation) -> list[dict[str, Any]]:
        return use.inspections.at_station(arguments.station_name)

    def explain(request: Request, arguments: Explain) -> dict[str, Any]:
        return use.explanations.explain(request.principal, arguments.username, reference(arguments), arguments.path)

    by_name = "/inspectionsByExperiment/{experimentName}[/{stationName}]"
    return [
        Route("POST", "/inspections", ask, _MANAGER_BY_NAME,
              "Look through an experiment's files as soon as possible.", Inspect, _EXPERIMENT),
        Route("GET", "/inspectionsByStation/{stationName}", at_station, _MANAGER_OF_STATION,
              "List the inspections of a station's experiments.", a.ByStation),
        Route("GET", by_name, get, _MANAGER_BY_NAME,
              "Give an experiment's last inspection with what it found, by pages.", Findings, _EXPERIMENT),
        Route("GET", "/access/{username}", explain, _ONESELF,
              "Say whether somebody may read something of an experiment, and by which rule.", Explain,
              _EXPERIMENT | {"path"}),
    ]  # fmt: skip
