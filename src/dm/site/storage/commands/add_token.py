"""``dm-add-token``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.common.environment import write_login_file
from dm.common.errors import DmException
from dm.site.storage.api import Token, TokenDsApi
from dm.site.storage.commands.options import Names


@command("dm-add-token", api="dm.site.storage.api:TokenDsApi")
@option("--name", required=True, help="What it is for.")
@option(
    "--scopes",
    required=True,
    type=Names(),
    help="What it opens, a comma list of read, storage, facility, catalog, acquisition, processing, all.",
)
@option("--station", metavar="NAME", help="Only for this station; default: for all that its owner may.")
@option("--days", type=int, help="How long it lives; default: 90.")
@option("--username", metavar="ACCOUNT", help="Of this account of the station (managers); default: oneself.")
@option(
    "--login-file",
    type=click.Path(dir_okay=False),
    help="Write it there, as a login file that only you can read, instead of showing it.",
)
def main(  # noqa: PLR0917
    api: TokenDsApi,
    name: str,
    scopes: list[str],
    station: str | None,
    days: int | None,
    username: str | None,
    login_file: str | None,
) -> Token:
    """Make an API token for unattended use, and show it for the only time."""
    token = api.addToken(name, scopes, station, days, username)
    if login_file is not None:
        try:
            write_login_file(login_file, str(token["username"]), str(token.data.pop("token")))
        except (OSError, DmException):
            api.revokeToken(str(token["id"]))  # nobody has it
            raise
    return token
