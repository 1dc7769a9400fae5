"""``dm-list-tokens``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import Token, TokenDsApi


@command("dm-list-tokens", api="dm.site.storage.api:TokenDsApi")
@option("--username", metavar="ACCOUNT", help="Only of this account.")
@option("--ended", is_flag=True, help="Also those that are revoked or expired.")
def main(api: TokenDsApi, username: str | None, ended: bool) -> list[Token]:
    """List one's own API tokens and those for stations one manages; administrators see all."""
    return api.getTokens(username, ended)
