"""``dm-add-experiment`` and ``dm-create-experiment``"""

from __future__ import annotations

import click

from dm.common.command import command, option, say
from dm.site.facility.api import BssApsDbApi, EsafApsDbApi
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import Names, experiment_fields, station_option


@command(
    "dm-add-experiment",
    api=(
        "dm.site.storage.api:ExperimentDsApi",
        "dm.site.facility.api:EsafApsDbApi",
        "dm.site.facility.api:BssApsDbApi",
    ),
)
@option("--experiment", help="Experiment name; with --esaf or --proposal default: by the site's template.")
@option("--esaf", metavar="ID", help="Make it for this safety form: its people, dates and title.")
@option("--proposal", metavar="ID", help="Make it for this proposal: its people, dates and title.")
@option("--run", metavar="NAME", help="Run of the proposal, e.g. 2026-1; default: the latest it is in.")
@station_option
@experiment_fields
@option("--storage", help="Storage to keep it in; needed only where a site has several.")
@option("--users", type=Names(), metavar="NAME,NAME...", help="Members, with role User.")
def main(  # noqa: PLR0917
    api: ExperimentDsApi,
    esafs: EsafApsDbApi,
    proposals: BssApsDbApi,
    experiment: str | None,
    esaf: str | None,
    proposal: str | None,
    run: str | None,
    station: str | None,
    type_name: str | None,
    description: str | None,
    root_path: str | None,
    start_date: str | None,
    end_date: str | None,
    globus_group_id: str | None,
    beamline_user_account: str | None,
    beamline_admin_account: str | None,
    managed_directory_structure: bool | None,
    storage: str | None,
    users: list[str] | None,
) -> Experiment:
    """Add an experiment and make its directories.

    With --esaf or --proposal its people become its members (the principal investigator its PI); run again, it adds who
    is missing. People who are no users here are named on standard error.
    """
    given = {
        "description": description,
        "rootPath": root_path,
        "startDate": start_date,
        "endDate": end_date,
    }
    others = {
        "typeName": type_name,
        "storageName": storage,
        "globusGroupId": globus_group_id,
        "managedDirectoryStructure": managed_directory_structure,
        "beamlineUserAccount": beamline_user_account,
        "beamlineAdminAccount": beamline_admin_account,
        "usernameList": users,
    }
    if esaf is None and proposal is None:
        if not experiment:
            raise click.UsageError("Name the experiment by --experiment, or what it is for by --esaf or --proposal.")
        return api.addExperiment(experiment, station, **given, **others)  # type: ignore[arg-type]
    if esaf is not None and proposal is not None:
        raise click.UsageError("Give --esaf or --proposal, not both.")
    plan = (
        esafs.getExperimentPlan(station, esaf)
        if esaf is not None
        else proposals.getExperimentPlan(station, proposal or "", run)
    )
    plan.update({key: value for key, value in given.items() if value is not None})
    if experiment:
        plan["experimentName"] = experiment
    made = api.addExperimentByPlan(plan, **others)
    for person in made["missingUsers"]:
        name = f"{person['firstName']} {person['lastName']}".strip()
        say(f"Not a user here, left out: {person['username'] or 'without badge'} ({name})")
    return Experiment(made["experiment"])
