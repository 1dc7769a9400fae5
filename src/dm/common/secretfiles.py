"""Files of secrets that the settings name: which they are, and whether others can read them."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

NAMES = ("key", "password_file", "login_file", "secret_file", "token_file")
_log = logging.getLogger("dm.settings")


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
