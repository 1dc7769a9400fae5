"""The routes about Globus groups of experiments."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dm.common.web.routes import MANAGER, Access, NoArguments, Request, Route, Who
from dm.site.storage import arguments as a
from dm.site.storage.access import reference
from dm.site.storage.globus_groups import GlobusGroups

_EXPERIMENT = frozenset({"experimentName"})
_MEMBER = Access(Who.EXPERIMENT, "experiment_name")
_MANAGER = Access(Who.MANAGER, "experiment_name")
_USERS = "User names of DM, or names of Globus identities"


class GroupMembers(a.ByName):
    """Identities beyond an experiment's members."""

    usernames: list[str] = Field(default_factory=list, max_length=1000, description=f"{_USERS}.")
    managers: list[str] = Field(default_factory=list, max_length=1000, description=f"{_USERS}, to manage the group.")
    admins: list[str] = Field(default_factory=list, max_length=1000, description=f"{_USERS}, to administrate it.")


class RemovedMembers(a.ByName):
    """Identities to take out again."""

    usernames: list[str] = Field(max_length=1000, description=f"{_USERS}.")


class SyncGroup(a.ByName):
    """An experiment's group to compare."""

    dry_run: bool = Field(default=False, description="Only say what differs.")


def routes(groups: GlobusGroups) -> list[Route]:
    """Return the rows."""

    def create(request: Request, arguments: a.ByName) -> dict[str, Any]:
        return groups.create(reference(arguments))

    def get(request: Request, arguments: a.ByName) -> dict[str, Any]:
        return groups.get(request.principal, reference(arguments))

    def listing(request: Request, arguments: NoArguments) -> list[dict[str, Any]]:
        return groups.all(request.principal)

    def add(request: Request, arguments: GroupMembers) -> dict[str, Any]:
        return groups.add_members(reference(arguments), arguments.usernames, arguments.managers, arguments.admins)

    def remove(request: Request, arguments: RemovedMembers) -> dict[str, Any]:
        return groups.delete_members(reference(arguments), arguments.usernames)

    def sync(request: Request, arguments: SyncGroup) -> dict[str, Any]:
        return groups.sync(reference(arguments), arguments.dry_run)

    def delete(request: Request, arguments: a.ByName) -> dict[str, Any]:
        return groups.delete(reference(arguments))

    by_name = "/globusGroupsByExperiment/{experimentName}[/{stationName}]"
    return [
        Route("GET", "/globusGroups", listing, MANAGER, "List the Globus groups of the caller's stations."),
        Route("POST", "/globusGroups", create, _MANAGER,
              "Create the Globus group of an experiment, with its members.", a.ByName, _EXPERIMENT),
        Route("POST", "/globusGroups/members", add, _MANAGER,
              "Add identities to an experiment's Globus group beyond its members.", GroupMembers, _EXPERIMENT),
        Route("DELETE", "/globusGroups/members", remove, _MANAGER,
              "Take such identities out of an experiment's Globus group.", RemovedMembers, _EXPERIMENT),
        Route("POST", "/globusGroups/sync", sync, _MANAGER,
              "Compare an experiment's Globus group with its members and put right what differs.", SyncGroup,
              _EXPERIMENT),
        Route("GET", by_name, get, _MEMBER, "Give the Globus group of an experiment.", a.ByName, _EXPERIMENT),
        Route("DELETE", by_name, delete, _MANAGER, "Delete the Globus group of an experiment and its access rule.",
              a.ByName, _EXPERIMENT),
    ]  # fmt: skip
