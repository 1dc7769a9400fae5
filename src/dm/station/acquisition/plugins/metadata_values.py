"""What may come out of a file: plain, short, finite values that every JSON parser and database takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

MAX_TEXT = 400
MAX_ITEMS = 100
MAX_DEPTH = 4
_LARGEST_INTEGER = 2**63 - 1  # what BSON can hold


def text(value: Any) -> str | None:
    """Return a value as one short line of text, or ``None`` for nothing worth keeping.

    Fill-in forms some writers leave behind (``{Name of instrument}``) count as nothing.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    line = " ".join(str(value).replace("\0", " ").encode("utf-8", "replace").decode().split())
    if not line or (line.startswith("{") and line.rstrip("?").endswith("}") and ":" not in line):
        return None
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 3] + "..."


def number(value: Any) -> int | float | None:
    """Return a finite number, or ``None``; whole numbers beyond 64 bits become floating point."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST_INTEGER else float(value) if abs(value) < 1 << 1000 else None
    try:
        as_float = float(value)
    except (TypeError, ValueError):
        return None
    return as_float if math.isfinite(as_float) else None


def key(name: Any) -> str:
    """Return a name usable as a database key: no dots, no leading dollar, not empty."""
    line = (text(name) or "unnamed").replace(".", "_")
    return f"_{line[1:]}" if line.startswith("$") else line


def clean(value: Any, depth: int = 0) -> Any:
    """Return any value cut down to what may be stored: short text, finite numbers, short lists and dicts, ``None``."""
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        pairs = ((key(name), clean(inner, depth + 1)) for name, inner in list(value.items())[:MAX_ITEMS])
        return {name: inner for name, inner in pairs if inner is not None}
    if isinstance(value, list | tuple | set) and depth < MAX_DEPTH:
        return [clean(inner, depth + 1) for inner in list(value)[:MAX_ITEMS]]
    if value is None or isinstance(value, bool):
        return value
    return number(value) if isinstance(value, int | float) else text(value)


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as text, runs shortened: ``1-5,8,10-12``; cut at :data:`MAX_TEXT`."""
    parts: list[list[int]] = []
    for value in sorted(set(numbers)):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return text(",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)) or ""
