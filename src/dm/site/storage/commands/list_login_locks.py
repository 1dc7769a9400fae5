"""``dm-list-login-locks``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import LoginLock, UserDsApi


@command("dm-list-login-locks", api="dm.site.storage.api:UserDsApi")
def main(api: UserDsApi) -> list[LoginLock]:
    """List accounts that are locked after too many failed logins (administrators)."""
    return api.getLoginLocks()
