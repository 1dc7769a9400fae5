"""Writes TOML: the standard library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def dumps(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return sections (text, numbers, booleans, paths, lists, nested tables) as TOML text; ``None`` is left out."""
    return "\n".join(_table(name, values) for name, values in sections.items())


def _table(name: str, values: Mapping[str, Any]) -> str:
    plain = [(key, value) for key, value in values.items() if value is not None and not isinstance(value, Mapping)]
    lines = [f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in plain), ""]
    inner = [_table(f"{name}.{_key(key)}", value) for key, value in values.items() if isinstance(value, Mapping)]
    return "\n".join(["\n".join(lines), *inner])


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        # A JSON string is a TOML basic string, but for DEL.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no TOML form")
