"""``dm-list-users``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import User, UserDsApi


@command("dm-list-users", api="dm.site.storage.api:UserDsApi")
def main(api: UserDsApi) -> list[User]:
    """List all users, newest last."""
    return api.getUsers()
