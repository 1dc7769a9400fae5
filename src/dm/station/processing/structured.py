"""Structured output: the JSON object that a stage may write to the file named in ``$DM_OUTPUT_FILE``.

Its members become variables of later stages and keys of the job, as the groups of output regexes do. What a stage
writes is foreign data: it is bounded in size, depth and number, and nothing in it can be more than a value.
"""

from __future__ import annotations

import json
import math
from typing import Any

from dm.common.errors import ProcessingError
from dm.station.processing.regexes import RESERVED_GROUPS

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_MEMBERS = 1_000
MAX_NAME = 255
_INT64 = 1 << 63

Value = str | int | float | bool


def values(data: bytes) -> dict[str, Value]:
    """Return the members of a stage's structured output.

    :param data: the file's content; empty (also only blanks) is no output.
    :returns: member -> value; texts, numbers and truth values as they are, whole numbers beyond 64 bits as text, lists
        and objects as JSON text. A member that is ``null`` is left out: its name stays unset.
    :raises ProcessingError: one sentence; not a JSON object of at most 1 MiB, 1,000 members and 50 levels, or a member
        whose name or value cannot be a variable's.
    """
    if len(data) > MAX_BYTES:
        raise ProcessingError(f"The structured output is larger than {MAX_BYTES} bytes; write less, or a file beside.")
    if not data.strip():
        return {}
    found = _read(data)
    if not isinstance(found, dict):
        raise ProcessingError(f"The structured output is a JSON {_kind(found)}, not an object; write {{...}}.")
    if len(found) > MAX_MEMBERS:
        raise ProcessingError(f"The structured output has {len(found)} members, more than {MAX_MEMBERS}.")
    if _depth(found) > MAX_DEPTH:
        raise ProcessingError(f"The structured output nests deeper than {MAX_DEPTH} levels.")
    return {_name(name): _value(name, value) for name, value in found.items() if value is not None}


def _read(data: bytes) -> Any:
    try:
        return json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except UnicodeDecodeError:
        raise ProcessingError("The structured output is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        raise ProcessingError(f"The structured output is not JSON: line {error.lineno}: {error.msg}.") from None
    except (ValueError, RecursionError):
        raise ProcessingError("The structured output nests too deeply or holds a huge number.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ProcessingError(f"The structured output has the member {twice[:80]!r} twice.")
    return result


def _no_constant(name: str) -> Any:
    raise ProcessingError(f"The structured output holds {name}, which is not JSON; write a text or null.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ProcessingError(f"The structured output holds the number {text[:40]}, which is too large.")
    return number


def _depth(value: Any) -> int:
    level, here = 0, [value]
    while here:
        level += 1
        here = [
            inner
            for item in here
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return level


def _name(name: str) -> str:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ProcessingError(f"The structured output's member {name[:80]!r} is empty, too long or not printable.")
    if name in RESERVED_GROUPS:
        raise ProcessingError(f"The structured output's member {name!r} is reserved; choose another name.")
    return name


def _value(name: str, value: Any) -> Value:
    if isinstance(value, int) and not isinstance(value, bool) and not -_INT64 <= value < _INT64:
        return str(value)
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    if "\0" in text:
        raise ProcessingError(f"The structured output's member {name[:80]!r} holds a NUL character.")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ProcessingError(f"The structured output's member {name[:80]!r} is not valid text.") from None
    return text


def _kind(value: Any) -> str:
    names = {list: "list", str: "text", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")
