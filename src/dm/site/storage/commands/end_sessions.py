"""``dm-end-sessions``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import TokenDsApi


@command("dm-end-sessions", api="dm.site.storage.api:TokenDsApi")
def main(api: TokenDsApi) -> str:
    """End all of one's own sessions at the site but the one that is used for it."""
    return f"{api.endOtherSessions()} sessions ended."
