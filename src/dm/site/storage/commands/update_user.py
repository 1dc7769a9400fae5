"""``dm-update-user``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.storage.api import User, UserDsApi
from dm.site.storage.commands.user_options import name_options


@command("dm-update-user", api="dm.site.storage.api:UserDsApi")
@option("--username", required=True, help="User name.")
@option("--active", type=bool, metavar="yes|no", help="Whether the user can log in and has any rights.")
@name_options
def main(  # noqa: PLR0917
    api: UserDsApi,
    username: str,
    active: bool | None,
    first_name: str | None,
    last_name: str | None,
    middle_name: str | None,
    email: str | None,
) -> User:
    """Change a user's names, or deactivate a user (administrators)."""
    changes = {"firstName": first_name, "lastName": last_name, "middleName": middle_name, "email": email}
    if active is None and all(value is None for value in changes.values()):
        raise click.UsageError("Nothing to change is given; see --help.")
    return api.updateUser(username, active=active, **changes)
