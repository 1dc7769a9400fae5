"""Options that several storage commands share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dm.common.command import option
from dm.common.errors import ProcessingError
from dm.site.storage.api import Experiment, ExperimentDsApi, Operation

POLL_SECONDS = 0.5
F = TypeVar("F", bound=Callable[..., Any])

experiment_option: Callable[[F], F] = option("--experiment", required=True, help="Experiment name.")
station_option: Callable[[F], F] = option(
    "--station", metavar="NAME", help="Station name; default: the station of the setup file."
)
root_option: Callable[[F], F] = option(
    "--root", type=click.Choice(["data", "analysis"]), help="Directory of the experiment; default: data, else analysis."
)


def experiment_choice(function: F) -> F:
    """Add options that name an existing experiment; see :func:`chosen_experiment`."""
    decorated = option("--id", "experiment_id", type=int, help="Its number, instead of its name.")(
        station_option(function)
    )
    return option("--experiment", help="Experiment name.")(decorated)


def chosen_experiment(
    api: ExperimentDsApi, experiment: str | None, experiment_id: int | None, station: str | None
) -> Experiment:
    """Return the experiment that the options name. :raises click.UsageError: none, or by name and number."""
    if (experiment is None) == (experiment_id is None):
        raise click.UsageError("Name the experiment by --experiment or --id.")
    if experiment is None:
        return api.getExperimentById(experiment_id or 0)
    return api.getExperimentByName(experiment, station)


def finished(api: ExperimentDsApi, operation: Operation, failure: str) -> Operation:
    """Wait for the end of an operation and return it. :raises ProcessingError: it failed; begins with ``failure``."""
    while operation["status"] in ("pending", "running"):
        time.sleep(POLL_SECONDS)
        operation = api.getOperation(operation["id"])
    if operation["status"] == "failed":
        raise ProcessingError(f"{failure}: {operation['errorMessage']}")
    return operation


_EXPERIMENT_FIELDS: tuple[tuple[str, ...], ...] = (
    ("--type", "type_name", "Experiment type; see dm-list-experiment-types."),
    ("--description", "description", "What it is about."),
    ("--root-path", "root_path", "Directories between the station's and the experiment's, e.g. 2026-1."),
    ("--start-date", "start_date", "Begin, e.g. 05-Mar-26 or 2026-03-05."),
    ("--end-date", "end_date", "End, e.g. 07-Mar-26 or 2026-03-07."),
    ("--globus-group-id", "globus_group_id", "Globus group of the members."),
    ("--beamline-user-account", "beamline_user_account", "Account of the beamline that users work under."),
    ("--beamline-admin-account", "beamline_admin_account", "Account of the beamline's staff."),
)


def experiment_fields(function: F) -> F:
    """Add options for what can be set on an experiment; those not given are ``None``."""
    decorated = option(
        "--managed/--not-managed",
        "managed_directory_structure",
        default=None,
        help="Whether DM owns directories and permissions of the experiment; default: it does.",
    )(function)
    for flag, name, text in reversed(_EXPERIMENT_FIELDS):
        decorated = option(flag, name, help=text)(decorated)
    return decorated


class Names(click.ParamType):
    """A comma list of names; the value is a list without doublets, in order."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Split the text; an empty one is an empty list."""
        words = value if isinstance(value, list) else str(value).split(",")
        return list(dict.fromkeys(word.strip() for word in words if word.strip()))
