"""The plugins and transports that the settings name."""

from __future__ import annotations

import os
from typing import Any

from dm.common import plugins, settings
from dm.common.errors import ConfigurationError
from dm.station.acquisition.plugins.base import Plugin, PluginContext, PluginOptions
from dm.station.acquisition.transports.base import Transport

PLUGINS = "dm.acquisition.plugins"
TRANSPORTS = "dm.transports"


def _class(group: str, name: str, table: dict[str, Any], base: type) -> tuple[type[Any], dict[str, Any]]:
    values = dict(table)
    found = plugins.load(group, str(values.pop("class", name)))
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigurationError(f"{name!r} of group {group} is not a {base.__name__} class.")
    return found, values


def make_plugins(
    tables: dict[str, dict[str, Any]], context: PluginContext, file: str | os.PathLike[str] = "settings"
) -> list[Plugin]:
    """Make the plugins, in their order.

    :param tables: plugin name -> its settings; the keys of :class:`PluginOptions` are for every plugin.
    :param file: said in errors.
    :raises ConfigurationError: unknown plugin, settings that do not fit, or plugins that wait for each other.
    """
    made: list[Plugin] = []
    for name, table in tables.items():
        found, values = _class(PLUGINS, name, table, Plugin)
        section = f"acquisition.plugins.{name}"
        common = {key: values.pop(key) for key in PluginOptions.model_fields if key in values}
        options = settings.build(PluginOptions, common, section, file)
        plugin: Plugin = found(settings.build(found.settings_model, values, section, file), context)
        plugin.name, plugin.placing = name, options
        if options.required is not None:
            plugin.required = options.required
        made.append(plugin)
    return _in_order(made)


def _in_order(plugins: list[Plugin]) -> list[Plugin]:
    """Sort plugins by rank, each behind those it waits for. :raises ConfigurationError: that cannot be."""
    known = {plugin.name for plugin in plugins}
    for plugin in plugins:
        for name in sorted(plugin.placing.after - known):
            raise ConfigurationError(
                f"[acquisition.plugins.{plugin.name}] after names {name!r}, which is no plugin of these settings."
            )
    waiting = sorted(plugins, key=lambda plugin: plugin.rank)
    ordered: list[Plugin] = []
    while waiting:
        free = next((one for one in waiting if not any(one.waits_for(other) for other in waiting)), None)
        if free is None:
            names = ", ".join(plugin.name for plugin in waiting)
            raise ConfigurationError(f"Plugins {names} wait for each other; correct their order and after.")
        ordered.append(free)
        waiting.remove(free)
    return ordered


def make_transports(tables: dict[str, dict[str, Any]], file: str | os.PathLike[str] = "settings") -> list[Transport]:
    """Make the transports, in the order of the settings.

    :raises ConfigurationError: unknown transport, or settings that do not fit.
    """
    made: list[Transport] = []
    for name, table in tables.items():
        found, values = _class(TRANSPORTS, name, table, Transport)
        made.append(found(settings.build(found.settings_model, values, f"acquisition.transports.{name}", file)))
    return made
