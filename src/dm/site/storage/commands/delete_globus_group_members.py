"""``dm-delete-globus-group-members``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import GlobusDsApi, GlobusGroup
from dm.site.storage.commands.options import Names, experiment_option, station_option


@command("dm-delete-globus-group-members", api="dm.site.storage.api:GlobusDsApi")
@experiment_option
@option("--users", type=Names(), required=True, help="Users of DM or names of Globus identities (comma list).")
@station_option
def main(api: GlobusDsApi, experiment: str, users: list[str], station: str | None) -> GlobusGroup:
    """Take identities out of the Globus group that were added beyond the experiment's members."""
    return api.deleteGlobusGroupMembers(experiment, users, station)
