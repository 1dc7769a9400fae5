"""``dm-add-user-system-role``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import UserDsApi, UserRole


@command("dm-add-user-system-role", api="dm.site.storage.api:UserDsApi")
@option("--username", required=True, help="User name.")
@option("--role", default="administrator", show_default=True, help="administrator.")
def main(api: UserDsApi, username: str, role: str) -> UserRole:
    """Make a user an administrator (administrators)."""
    return api.addUserSystemRole(username, role)
