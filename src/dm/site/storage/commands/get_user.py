"""``dm-get-user``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import User, UserDsApi


@command("dm-get-user", api="dm.site.storage.api:UserDsApi")
@option("--username", help="User name; default: your own.")
def main(api: UserDsApi, username: str | None) -> User:
    """Show a user, with -a also the roles."""
    return api.getUserByUsername(username or api.username)
