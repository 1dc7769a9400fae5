"""Which Globus identity a user has."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from dm.common.errors import InvalidArgument
from dm.site.storage.gridmap import subjects_of
from dm.site.storage.outside_settings import GlobusSettings

_NAME = re.compile(r"[^\s,@]+@[A-Za-z0-9.-]+")


class Identities:
    """Names of identities, lower case, by the site's template and its list of exceptions.

    :raises ConfigurationError: the list cannot be read.
    """

    def __init__(self, settings: GlobusSettings) -> None:
        self._template = settings.identity
        self._fields = [name for _, name, _, _ in string.Formatter().parse(settings.identity) if name]
        given = subjects_of(settings.identity_file) if settings.identity_file else {}
        self._given = {user: self.checked(names[-1]) for user, names in given.items()}

    def of(self, user: Mapping[str, Any]) -> str | None:
        """Return a user's identity, or ``None`` when there is none to be made of what is known of them."""
        if user["username"] in self._given:
            return self._given[user["username"]]
        values = {name: user.get(name) for name in self._fields}
        if any(value in (None, "") for value in values.values()):
            return None
        name = self._template.format_map(values)
        return name.lower() if _NAME.fullmatch(name) else None

    @staticmethod
    def checked(name: str) -> str:
        """Return the name in lower case. :raises InvalidArgument: it cannot be one."""
        if len(name) > 300 or not _NAME.fullmatch(name):
            raise InvalidArgument(f"{name[:160]!a} is no name of a Globus identity, like name@example.org.")
        return name.lower()
