"""``dm-list-user-station-roles``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import UserDsApi, UserRole
from dm.site.storage.commands.options import station_option


@command("dm-list-user-station-roles", api="dm.site.storage.api:UserDsApi")
@station_option
def main(api: UserDsApi, station: str | None) -> list[UserRole]:
    """List who has a role at a station."""
    return api.getUserStationRoles(station)
