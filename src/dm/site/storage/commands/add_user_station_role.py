"""``dm-add-user-station-role``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import UserDsApi, UserRole
from dm.site.storage.commands.options import station_option


@command("dm-add-user-station-role", api="dm.site.storage.api:UserDsApi")
@option("--username", required=True, help="User name.")
@option("--role", required=True, help="manager, or service for the account of the station's services.")
@station_option
def main(api: UserDsApi, username: str, role: str, station: str | None) -> UserRole:
    """Give a user a role at a station (administrators)."""
    return api.addUserStationRole(username, role, station)
