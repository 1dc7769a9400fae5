"""``dm-add-user``"""

from __future__ import annotations

from typing import TextIO

import click

from dm.common.command import command, option
from dm.site.storage.api import User, UserDsApi
from dm.site.storage.commands.passwords import new_password, password_file_option
from dm.site.storage.commands.user_options import name_options


@command("dm-add-user", api="dm.site.storage.api:UserDsApi")
@option("--username", required=True, help="User name; d and the badge number for people.")
@name_options
@password_file_option
@option("--no-password", is_flag=True, help="The user cannot log in until a password is set.")
def main(  # noqa: PLR0917
    api: UserDsApi,
    username: str,
    first_name: str | None,
    last_name: str | None,
    middle_name: str | None,
    email: str | None,
    password_file: TextIO | None,
    no_password: bool,
) -> User:
    """Add a user (administrators); the password is asked for, or read from a file."""
    if no_password and password_file:
        raise click.UsageError("Give --password-file or --no-password, not both.")
    password = None if no_password else new_password(password_file, username)
    return api.addUser(username, password, first_name, last_name, middle_name, email)
