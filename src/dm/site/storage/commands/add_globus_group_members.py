"""``dm-add-globus-group-members``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import GlobusDsApi, GlobusGroup
from dm.site.storage.commands.options import Names, experiment_option, station_option


@command("dm-add-globus-group-members", api="dm.site.storage.api:GlobusDsApi")
@experiment_option
@option("--users", type=Names(), default="", help="Users of DM or names of Globus identities (comma list).")
@option(
    "--managers",
    type=Names(),
    default="",
    envvar="DM_GLOBUS_GROUP_MANAGERS",
    help="The same, to manage the group; default: DM_GLOBUS_GROUP_MANAGERS.",
)
@option(
    "--admins",
    type=Names(),
    default="",
    envvar="DM_GLOBUS_GROUP_ADMINS",
    help="The same, to administrate the group; default: DM_GLOBUS_GROUP_ADMINS.",
)
@station_option
def main(  # noqa: PLR0917
    api: GlobusDsApi,
    experiment: str,
    users: list[str],
    managers: list[str],
    admins: list[str],
    station: str | None,
) -> GlobusGroup:
    """Add identities to the Globus group of an experiment beyond its members.

    The experiment's own members are in it anyway; without names, the group is only compared with the experiment.
    """
    return api.addGlobusGroupMembers(experiment, users, managers, admins, station)
