"""Which completion rule a DAQ or upload has: ``closed``, ``marker+hdf5`` (both), ``closed,message`` (either)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dm.common import plugins
from dm.common.errors import ConfigurationError, InvalidArgument
from dm.station.acquisition.rules.base import CompletionRule, RuleContext
from dm.station.acquisition.rules.combined import AllOf, AnyOf

GROUP = "dm.completion"
DEFAULT = "closed"
_MOST = 8

Tables = Mapping[str, Mapping[str, Any]]


def known(tables: Tables) -> list[str]:
    """Return the names of the rules there are."""
    return sorted({*plugins.names(GROUP), *tables})


def build(text: str, arguments: Mapping[str, Any], tables: Tables, context: RuleContext) -> CompletionRule:
    """Make the rule that a text names.

    :param text: names joined by ``+`` (all of them) and ``,`` (any of them; ``+`` binds closer).
    :param arguments: settings of the rules by their camelCase names; ``rule.name`` where only one of several is meant.
    :param tables: rule name -> the station's settings of it, with ``class`` for one that is no entry point.
    :raises InvalidArgument: no such rule, or an argument none of them has.
    """
    groups = [[name.strip() for name in group.split("+")] for group in text.split(",")]
    names = [name for group in groups for name in group]
    if len(names) > _MOST:
        raise InvalidArgument(f"completionRule = {text[:80]!r} names more than {_MOST} rules.")
    classes = {name: _class(name, tables) for name in names}
    values = _shared_out(arguments, classes)
    made = [[_make(name, classes[name], values[name], tables, context) for name in group] for group in groups]
    alternatives = [rules[0] if len(rules) == 1 else AllOf(rules, context) for rules in made]
    return alternatives[0] if len(alternatives) == 1 else AnyOf(alternatives, context)


def _class(name: str, tables: Tables) -> type[CompletionRule]:
    if name not in known(tables):
        listed = ", ".join(known(tables))
        raise InvalidArgument(f"completionRule names {name!r}, which is no completion rule here (known: {listed}).")
    found = plugins.load(GROUP, str(tables.get(name, {}).get("class", name)))
    if not (isinstance(found, type) and issubclass(found, CompletionRule)):
        raise ConfigurationError(f"{name!r} of group {GROUP} is not a CompletionRule class.")
    return found


def _keys(rule: type[CompletionRule]) -> set[str]:
    return {field.alias or name for name, field in rule.settings_model.model_fields.items()}


def _shared_out(arguments: Mapping[str, Any], classes: dict[str, type[CompletionRule]]) -> dict[str, dict[str, Any]]:
    """Give each argument to the rules it is for."""
    values: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for key, value in arguments.items():
        rule, dot, plain = key.rpartition(".")
        takers = [name for name, cls in classes.items() if plain in _keys(cls) and (not dot or rule == name)]
        if not takers:
            has = "; ".join(f"{name}: {', '.join(sorted(_keys(cls))) or 'none'}" for name, cls in classes.items())
            raise InvalidArgument(f"completionArgs has {key!r}, which no rule chosen knows (known: {has}).")
        for name in takers:
            values[name][plain] = value
    return values


def _make(
    name: str, rule: type[CompletionRule], values: dict[str, Any], tables: Tables, context: RuleContext
) -> CompletionRule:
    if rule.local_only and context.root is None:
        raise InvalidArgument(
            f"completionRule {name!r} needs files that this machine can open, and the data directory is on another "
            "host; choose closed, stable, marker or message."
        )
    model = rule.settings_model
    aliases = {field: info.alias or field for field, info in model.model_fields.items()}
    station = {aliases.get(key, key): value for key, value in tables.get(name, {}).items() if key != "class"}
    try:
        return rule(model.model_validate({**station, **values}), context)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        what = f"{key} = {first['input']!r}: " if key else ""
        raise InvalidArgument(f"Completion rule {name!r} cannot be used so: {what}{reason}.") from None


def check(text: str, tables: Tables, file: str | os.PathLike[str]) -> None:
    """Check the rule that the settings name.

    :param file: said in errors. :raises ConfigurationError: it cannot be had.
    """
    try:
        build(text, {}, tables, RuleContext(b"/")).close()
        for name in tables:
            if name not in plugins.names(GROUP) and "class" not in tables[name]:
                raise InvalidArgument(f"Completion rule {name!r} is not installed; name its module:Class as class.")
    except InvalidArgument as error:
        raise ConfigurationError(f"Settings file {os.fspath(file)}: [acquisition]: {error.message}") from None
