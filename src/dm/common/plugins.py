"""Plugins: entry points of a group, or ``module:Class`` named in the settings.

Groups: ``dm.acquisition.plugins``, ``dm.transports``, ``dm.facility``, ``dm.executors``. Site code registers its class
under such a group in its own distribution, or is named in the settings; DM needs no fork.
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dm.common.errors import ConfigurationError


def names(group: str) -> list[str]:
    """Return the names registered under a group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, name: str) -> Any:
    """Return the class (or other object) of a plugin.

    :param group: entry point group.
    :param name: a registered name, or ``module:Class``.
    :raises ConfigurationError: no such name (the known ones are listed), registered twice with different classes, or
        it cannot be imported.
    """
    if ":" in name:
        return resolve(name, f"plugin of group {group}")
    found: dict[str, EntryPoint] = {point.value: point for point in entry_points(group=group) if point.name == name}
    if not found:
        known = names(group)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(
            f"Plugin {name!r} of group {group} is not installed; known: {', '.join(known) or 'none'}.{hint}"
        )
    if len(found) > 1:
        raise ConfigurationError(
            f"Plugin {name!r} of group {group} is registered as {' and as '.join(sorted(found))}; "
            "name the one you mean as module:Class."
        )
    return resolve(next(iter(found)), f"plugin {name!r} of group {group}")


def resolve(reference: str, what: str = "object") -> Any:
    """Import what ``module:attribute`` names.

    :param what: said in the error text.
    :raises ConfigurationError: it cannot be imported.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"The {what}, {reference!r}, cannot be imported: {error}.") from error
    return target
