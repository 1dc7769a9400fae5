"""Experiments made by a plan that the facility service gives for a proposal or a safety form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dm.common import timestamps
from dm.common.errors import ObjectAlreadyExists, ObjectNotFound
from dm.common.records import DmObject
from dm.site.storage.api_base import Experiment, given

if TYPE_CHECKING:
    from dm.site.storage.api_experiments import ExperimentDsApi

SOURCES = ("esafId", "proposalId")


class PlannedExperiment(DmObject):
    """What came of a plan: experiment (its record), addedUsernames, missingUsers (username, firstName, lastName)."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["experimentName", "addedUsernames", "missingUsers"]


def carry_out(api: ExperimentDsApi, plan: Mapping[str, Any], **options: Any) -> PlannedExperiment:
    """Make the experiment of a plan with its people; made already, add who is missing.

    :param options: further arguments of :meth:`ExperimentDsApi.addExperiment`.
    :raises ObjectAlreadyExists: an experiment of that name exists that is not of this plan.
    """
    name, station = str(plan["experimentName"]), plan["stationName"]
    fields = {key: plan.get(key) for key in ("description", "rootPath", "startDate", "endDate")}
    try:
        found = api.addExperiment(name, station, **given(**fields), **options)
    except ObjectAlreadyExists:
        found = api.getExperimentByName(name, station)
        _same(found, plan)
    for key, value in plan["metadata"].items():
        if found.get(key) != value:
            found = api.upsertExperimentMetadata(key, value, name, station)
    added, missing = [], []
    for person in plan["users"]:
        body = {"username": person["username"], "roleName": person["roleName"], "experimentName": name}
        try:
            if not person["username"]:
                raise ObjectNotFound("A user without badge does not exist.")
            api.client.post("/userExperimentRoles", body | {"stationName": station})
            added.append(person["username"])
        except ObjectAlreadyExists:
            continue
        except ObjectNotFound:
            missing.append({key: person[key] for key in ("username", "firstName", "lastName")})
    found = api.getExperimentByName(name, station)
    return PlannedExperiment(
        {"experimentName": name, "experiment": found.data, "addedUsernames": added, "missingUsers": missing}
    )


def _same(found: Experiment, plan: Mapping[str, Any]) -> None:
    """Return when an experiment is of the plan.

    It says so; or, where making it was cut off before it could, it is as the plan has it and nobody's yet.
    """
    wanted = {key: plan["metadata"].get(key) for key in SOURCES}
    if any(value is not None and found.get(key) == value for key, value in wanted.items()):
        return
    unfinished = (
        not any(found.get(key) for key in SOURCES)
        and not found.get("experimentUsernameList")
        and found.get("description", "") == plan["description"]
        and all(timestamps.parse(found[key]) == timestamps.parse(plan[key]) for key in ("startDate", "endDate"))
    )
    if not unfinished:
        what = ", ".join(f"{key} {value}" for key, value in wanted.items() if value is not None)
        raise ObjectAlreadyExists(
            f"Experiment {found['name']!a} exists and is not of {what}; give the new one another name."
        )
