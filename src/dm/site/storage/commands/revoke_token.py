"""``dm-revoke-token``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import Token, TokenDsApi


@command("dm-revoke-token", api="dm.site.storage.api:TokenDsApi")
@option("--id", "token_id", required=True, help="Its id; see dm-list-tokens.")
def main(api: TokenDsApi, token_id: str) -> Token:
    """Revoke an API token: it is of no use any more."""
    return api.revokeToken(token_id)
