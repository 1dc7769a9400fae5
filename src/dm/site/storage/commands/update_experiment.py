"""``dm-update-experiment``"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from dm.common.command import command, option
from dm.common.errors import ObjectAlreadyExists, ObjectNotFound
from dm.site.storage.api import Experiment, ExperimentDsApi, UserDsApi
from dm.site.storage.commands.options import Names, chosen_experiment, experiment_choice, experiment_fields

APIS = ["dm.site.storage.api:ExperimentDsApi", "dm.site.storage.api:UserDsApi"]


@command("dm-update-experiment", api=APIS, keyvalue_arguments=True)
@experiment_choice
@option("--users", type=Names(), metavar="NAME,NAME...", help="Make exactly these the members; '' for none.")
@option("--new-name", help="Another name; its directory moves along.")
@option("--remove-key", "remove_keys", multiple=True, metavar="KEY", help="Remove this key of its own metadata.")
@experiment_fields
@option("--data-frozen/--data-not-frozen", "data_directory_frozen", default=None, help="Refuse new files in data/.")
@option(
    "--analysis-frozen/--analysis-not-frozen",
    "analysis_directory_frozen",
    default=None,
    help="Refuse new files in analysis/.",
)
def main(
    api: ExperimentDsApi,
    user_api: UserDsApi,
    *,
    experiment: str | None,
    experiment_id: int | None,
    station: str | None,
    users: list[str] | None,
    new_name: str | None,
    remove_keys: tuple[str, ...],
    words: dict[str, str],
    **fields: Any,
) -> Experiment:
    """Change an experiment and its members.

    New members get the role User; who is a member already keeps the roles. KEY:VALUE words set keys of the
    experiment's own metadata.
    """
    changes = {key: value for key, value in fields.items() if value is not None}
    if not (changes or new_name or words or remove_keys) and users is None:
        raise click.UsageError("Nothing to change is given; see --help.")
    record = chosen_experiment(api, experiment, experiment_id, station)
    if changes or new_name:
        published = {_camel(key): value for key, value in changes.items()}
        record = api.updateExperiment(record["id"], new_name, **published)
    for key, value in words.items():
        record = api.upsertExperimentMetadata(key, value, record["name"], record["stationName"])
    for key in remove_keys:
        record = api.deleteExperimentMetadata(key, record["name"], record["stationName"])
    if users is not None:
        set_members(user_api, record, users)
        record = api.getExperimentById(record["id"])
    return record


def set_members(api: UserDsApi, record: Experiment, users: list[str]) -> None:
    """Add and remove members until they are those named; additions first, so that a wrong name removes nobody."""
    where = record["name"], record["stationName"]
    for name in users:
        if name not in record["experimentUsernameList"]:
            with suppress(ObjectAlreadyExists):
                api.addUserExperimentRole(name, "User", *where)
    for member in record["experimentUsers"]:
        if member["username"] not in users:
            for role in member["roles"]:
                with suppress(ObjectNotFound):
                    api.deleteUserExperimentRole(member["username"], role, *where)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)
