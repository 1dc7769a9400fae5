"""The adapters that the settings name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from dm.common import plugins, settings
from dm.common.errors import ConfigurationError
from dm.site.facility.adapters.base import GROUP, FacilityAdapter


class HasAdapters(Protocol):
    """Settings with a table of adapters (section ``[facility]``)."""

    @property
    def adapters(self) -> Mapping[str, Mapping[str, Any]]:
        """Adapter name -> its settings; ``adapter`` among them names the plugin."""
        ...


def load(facility: HasAdapters, file: str | os.PathLike[str] = "settings") -> dict[str, FacilityAdapter]:
    """Make the adapters of ``[facility.adapters.<name>]``, in the order of the settings.

    :param file: the settings file: said in errors, and relative paths are relative to its directory.
    :raises ConfigurationError: unknown adapter, or settings that do not fit.
    """
    made: dict[str, FacilityAdapter] = {}
    for name, table in facility.adapters.items():
        section = f"facility.adapters.{name}"
        values = dict(table)
        kind = values.pop("adapter", None)
        if not isinstance(kind, str) or not kind:
            raise ConfigurationError(f"{section}.adapter is missing; name one of {', '.join(plugins.names(GROUP))}.")
        found = plugins.load(GROUP, kind)
        if not (isinstance(found, type) and issubclass(found, FacilityAdapter)):
            raise ConfigurationError(f"{kind!r} of group {GROUP} is not a FacilityAdapter class.")
        made[name] = found(name, settings.build(found.settings_model, values, section, file))
    return made
