"""``dm-unlock-user``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import User, UserDsApi


@command("dm-unlock-user", api="dm.site.storage.api:UserDsApi")
@option("--username", required=True, help="User name.")
def main(api: UserDsApi, username: str) -> User:
    """Let an account log in again that too many failed logins have locked (administrators)."""
    return api.unlockUser(username)
