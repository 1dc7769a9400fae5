"""The plugins and transports that the settings name."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel

from dm.common import plugins, settings
from dm.common.errors import ConfigurationError
from dm.station.acquisition.plugins.base import Plugin, PluginContext
from dm.station.acquisition.transports.base import Transport

PLUGINS = "dm.acquisition.plugins"
TRANSPORTS = "dm.transports"


def _class(group: str, name: str, table: dict[str, Any], base: type) -> tuple[type[Any], dict[str, Any]]:
    values = dict(table)
    found = plugins.load(group, str(values.pop("class", name)))
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigurationError(f"{name!r} of group {group} is not a {base.__name__} class.")
    return found, values


def _settings(model: type[BaseModel], values: dict[str, Any], section: str, file: str | os.PathLike[str]) -> BaseModel:
    if issubclass(model, settings.ServiceSettings):
        return settings.build(model, values, section, file)
    try:
        return model.model_validate(values)
    except ValueError as error:
        problem = " ".join(str(error).split())
        raise ConfigurationError(f"Settings file {os.fspath(file)}: [{section}] is not acceptable: {problem}") from None


def make_plugins(
    tables: dict[str, dict[str, Any]], context: PluginContext, file: str | os.PathLike[str] = "settings"
) -> list[Plugin]:
    """Make the plugins, in their order.

    :param tables: plugin name -> its settings. :param file: said in errors.
    :raises ConfigurationError: unknown plugin, or settings that do not fit.
    """
    made: list[Plugin] = []
    for name, table in tables.items():
        found, values = _class(PLUGINS, name, table, Plugin)
        made.append(found(_settings(found.settings_model, values, f"acquisition.plugins.{name}", file), context))
    return sorted(made, key=lambda plugin: plugin.order)


def make_transports(tables: dict[str, dict[str, Any]], file: str | os.PathLike[str] = "settings") -> list[Transport]:
    """Make the transports, in the order of the settings.

    :raises ConfigurationError: unknown transport, or settings that do not fit.
    """
    made: list[Transport] = []
    for name, table in tables.items():
        found, values = _class(TRANSPORTS, name, table, Transport)
        made.append(found(_settings(found.settings_model, values, f"acquisition.transports.{name}", file)))
    return made
