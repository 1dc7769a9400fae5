"""How commands get a new password: from a file, or typed twice on a terminal; never from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

import click

from dm.common.command import option

F = TypeVar("F", bound=Callable[..., Any])

password_file_option: Callable[[F], F] = option(
    "--password-file", type=click.File(), metavar="FILE", help="File whose first line is the password; - reads it."
)


def new_password(file: TextIO | None, username: str) -> str:
    """Return the password for a user.

    :param file: its first line is the password. :raises click.UsageError: no file and no terminal either.
    """
    if file is not None:
        return file.readline().rstrip("\r\n")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"No password for {username}; give --password-file, or run the command on a terminal.")
    return str(click.prompt(f"New password of {username}", hide_input=True, confirmation_prompt=True, err=True))
