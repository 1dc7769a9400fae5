"""``dm-update-user-password``"""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TextIO

import click

from dm.common import environment
from dm.common.command import command, option
from dm.site.storage.api import User, UserDsApi
from dm.site.storage.commands.passwords import new_password, password_file_option


@command("dm-update-user-password", api="dm.site.storage.api:UserDsApi")
@option("--username", help="Whose password to set (administrators); default: change your own.")
@password_file_option
def main(api: UserDsApi, username: str | None, password_file: TextIO | None) -> User:
    """Change a password; all sessions of the user end.

    The new password is asked for, or read from a file. Changing your own takes the current one from the login file,
    or asks for it.
    """
    if username and username != api.username:
        return api.updateUser(username, password=new_password(password_file, username))
    login_file = environment.login_file_path()
    current = environment.read_login_file(login_file)[1] if login_file else _current_password(api.username)
    password = new_password(password_file, api.username)
    with closing(UserDsApi(api.username, current, api.url)) as own:
        user = own.changePassword(current, password)
    if login_file:
        click.echo(f"Login file {login_file} holds the old password; put the new one in.", err=True)
    return user


def _current_password(username: str) -> str:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"The current password of {username} is not known; run the command on a terminal.")
    return str(click.prompt(f"Current password of {username}", hide_input=True, err=True))
