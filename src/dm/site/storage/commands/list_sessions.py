"""``dm-list-sessions``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import Session, TokenDsApi


@command("dm-list-sessions", api="dm.site.storage.api:TokenDsApi")
def main(api: TokenDsApi) -> list[Session]:
    """List one's own sessions at the site, last used first."""
    return api.getSessions()
