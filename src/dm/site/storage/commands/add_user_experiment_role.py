"""``dm-add-user-experiment-role``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import UserDsApi, UserRole
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-add-user-experiment-role", api="dm.site.storage.api:UserDsApi")
@experiment_option
@option("--username", required=True, help="User name.")
@option("--role", default="User", show_default=True, help="User or PI.")
@station_option
def main(api: UserDsApi, experiment: str, username: str, role: str, station: str | None) -> UserRole:
    """Make a user member of an experiment."""
    return api.addUserExperimentRole(username, role, experiment, station)
