"""Files of secrets that the settings name: reading them, which they are, and whether others can read them."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from dm.common.errors import ConfigurationError

NAMES = ("key", "password_file", "login_file", "secret_file", "token_file")
_log = logging.getLogger("dm.settings")


def first_line(path: str | os.PathLike[str], what: str) -> tuple[str, int]:
    """Return the first line of a file, without its end, and the file's permission bits.

    :param what: the file is, at the beginning of an error's text.
    :raises ConfigurationError: unreadable, or the line is blank. The text never holds the secret.
    """
    try:
        with Path(path).open(encoding="utf-8") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            line = stream.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"{what} {os.fspath(path)} cannot be read: {reason}.") from None
    if not line.strip():
        raise ConfigurationError(f"{what} {os.fspath(path)} is empty; write the secret into its first line.")
    return line, mode


def named(settings: BaseModel, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every file of secrets that settings name, in sub-tables too.

    :param prefix: the section, to begin the names with.
    """
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path) and (name == "key" or name.endswith(NAMES[1:])):
            yield f"{prefix}.{name}", value
        elif isinstance(value, BaseModel):
            yield from named(value, f"{prefix}.{name}")
        elif isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(inner, BaseModel):
                    yield from named(inner, f"{prefix}.{name}.{key}")


def warn(settings: BaseModel, prefix: str) -> int:
    """Log a warning for each file of secrets that everybody can read or write, and return how many there are."""
    count = 0
    for name, path in named(settings, prefix):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue  # who needs it says so
        if mode & 0o007:
            count += 1
            _log.warning("%s: %s is open to everybody (mode %04o); run: chmod 600 %s", name, path, mode, path)
    return count
