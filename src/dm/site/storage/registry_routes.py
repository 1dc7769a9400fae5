"""The routes about stations, storages and experiment types."""

from __future__ import annotations

from typing import Any

from dm.common.web.routes import ADMIN, USER, Request, Route
from dm.site.storage import arguments as a
from dm.site.storage import life_arguments as la
from dm.site.storage.registry import Registry


def routes(registry: Registry) -> list[Route]:
    """Return the rows."""

    def listing(kind: str) -> Any:
        return lambda request, arguments: registry.all(kind)

    def removal(kind: str) -> Any:
        return lambda request, arguments: registry.delete(kind, arguments.name)

    def add_station(request: Request, arguments: a.Named) -> dict[str, Any]:
        return registry.add_station(arguments.name, arguments.description)

    def update_station(request: Request, arguments: la.UpdateStation) -> dict[str, Any]:
        return registry.update_station(
            arguments.name, arguments.description, arguments.path_template, arguments.storage_name
        )

    def add_type(request: Request, arguments: a.Named) -> dict[str, Any]:
        return registry.add_experiment_type(arguments.name, arguments.description)

    def update_type(request: Request, arguments: la.UpdateExperimentType) -> dict[str, Any]:
        return registry.update_experiment_type(arguments.name, arguments.new_name, arguments.description)

    def add_storage(request: Request, arguments: a.AddStorage) -> dict[str, Any]:
        return registry.add_storage(
            arguments.name, arguments.storage_host, arguments.storage_directory, arguments.description
        )

    def update_storage(request: Request, arguments: la.UpdateStorage) -> dict[str, Any]:
        return registry.update_storage(arguments.name, arguments.description, arguments.storage_host, arguments.retired)

    station, storage, kind = "/stations/{name}", "/storages/{name}", "/experimentTypes/{name}"
    return [
        Route("GET", "/stations", listing("station"), USER, "List the stations."),
        Route("POST", "/stations", add_station, ADMIN, "Add a station.", a.Named),
        Route("PUT", station, update_station, ADMIN, "Change a station.", la.UpdateStation),
        Route("DELETE", station, removal("station"), ADMIN, "Delete a station that no experiment ever used.",
              la.OneName),
        Route("GET", "/storages", listing("storage"), USER, "List the storages."),
        Route("POST", "/storages", add_storage, ADMIN, "Add a storage.", a.AddStorage),
        Route("PUT", storage, update_storage, ADMIN, "Change a storage, or retire it.", la.UpdateStorage),
        Route("DELETE", storage, removal("storage"), ADMIN, "Delete a storage that no experiment ever used.",
              la.OneName),
        Route("GET", "/experimentTypes", listing("experiment type"), USER, "List the experiment types."),
        Route("POST", "/experimentTypes", add_type, ADMIN, "Add an experiment type.", a.Named),
        Route("PUT", kind, update_type, ADMIN, "Change an experiment type.", la.UpdateExperimentType),
        Route("DELETE", kind, removal("experiment type"), ADMIN,
              "Delete an experiment type that no experiment ever used.", la.OneName),
    ]  # fmt: skip
