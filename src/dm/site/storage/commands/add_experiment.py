"""``dm-add-experiment`` and ``dm-create-experiment``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import Names, experiment_fields, experiment_option, station_option


@command("dm-add-experiment", api="dm.site.storage.api:ExperimentDsApi")
@experiment_option
@station_option
@experiment_fields
@option("--storage", help="Storage to keep it in; needed only where a site has several.")
@option("--users", type=Names(), metavar="NAME,NAME...", help="Members, with role User.")
def main(  # noqa: PLR0917
    api: ExperimentDsApi,
    experiment: str,
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
    """Add an experiment and make its directories."""
    return api.addExperiment(
        experiment,
        station,
        type_name,
        description,
        root_path,
        storage,
        globusGroupId=globus_group_id,
        startDate=start_date,
        endDate=end_date,
        managedDirectoryStructure=managed_directory_structure,
        beamlineUserAccount=beamline_user_account,
        beamlineAdminAccount=beamline_admin_account,
        usernameList=users,
    )
