"""Free metadata in and out of the database, unchanged.

JSON allows keys that a MongoDB document cannot hold safely (dots, a leading ``$``, the empty text) and texts that BSON
cannot hold at all (file names that are not UTF-8 arrive as lone surrogates). Inside the database such keys are
written with ``%`` escapes and such texts as a one-key document; everything else is stored as it is, so that the usual
metadata stays readable and searchable with any MongoDB tool.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import bson

from dm.common.errors import InvalidArgument, ServiceLimit

MAX_DEPTH = 100
MAX_BYTES = 15 << 20
"""Largest stored document; MongoDB's own limit is 16 MiB, the rest is left for later updates."""

_INT64 = 1 << 63
_UNSAFE = re.compile(r"[%.\x00\ud800-\udfff]|^\$|^$")
_ESCAPE = re.compile(r"%(u[0-9A-F]{4}|[0-9A-F]{2}|$)")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_TEXT = "%text"  # cannot be an escaped key: no escape begins with %t


def escape_key(key: str) -> str:
    """Return a key as it is stored.

    :raises InvalidArgument: the key holds a NUL character.
    """
    if not _UNSAFE.search(key):
        return key
    if "\0" in key:
        raise InvalidArgument(f"Metadata key {_short(key)} contains a NUL character; remove it.")
    if not key:
        return "%"
    escaped = key.replace("%", "%25").replace(".", "%2E")
    if escaped.startswith("$"):
        escaped = "%24" + escaped[1:]
    return _SURROGATE.sub(lambda match: f"%u{ord(match[0]):04X}", escaped)


def unescape_key(key: str) -> str:
    """Return the key :func:`escape_key` was given."""
    if "%" not in key:
        return key
    return _ESCAPE.sub(lambda match: chr(int(match[1].lstrip("u"), 16)) if match[1] else "", key)


def escape(value: Any) -> Any:
    """Return a JSON value as it is stored.

    :param value: text, numbers, booleans, ``None``, lists and dictionaries with text keys.
    :raises InvalidArgument: NUL characters, numbers MongoDB cannot hold, or something that is not JSON.
    :raises ServiceLimit: nested deeper than :data:`MAX_DEPTH`.
    """
    return _escape(value, MAX_DEPTH)


def _escape(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _escape_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise InvalidArgument(f"Metadata value {_short(value)} does not fit into 64 bits; give it as text.")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidArgument(f"Metadata value {value!r} is not a finite number; give it as text.")
        return value
    if not isinstance(value, Mapping | list | tuple):
        raise InvalidArgument(f"Metadata value {_short(value)} of type {type(value).__name__} is not JSON.")
    if depth == 0:
        raise ServiceLimit(f"Metadata is nested deeper than {MAX_DEPTH} levels; flatten it.")
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidArgument(f"Metadata key {_short(key)} is not a text.")
            result[escape_key(key)] = _escape(item, depth - 1)
        return result
    return [_escape(item, depth - 1) for item in value]


def _escape_text(text: str) -> Any:
    if "\0" in text:
        raise InvalidArgument(f"Metadata value {_short(text)} contains a NUL character; remove it.")
    if _SURROGATE.search(text):
        return {_TEXT: text.encode("utf-8", "surrogatepass").hex()}
    return text


def unescape(value: Any) -> Any:
    """Return the value :func:`escape` was given."""
    if isinstance(value, dict):
        if len(value) == 1 and _TEXT in value:
            return bytes.fromhex(value[_TEXT]).decode("utf-8", "surrogatepass")
        return {unescape_key(key): unescape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unescape(item) for item in value]
    return value


def measured(document: Mapping[str, Any], what: str, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the document with its size in bytes noted under ``bytes``, so that readers know what they ask for.

    :param what: said in the error, e.g. ``File 'a.h5'``.
    :raises ServiceLimit: larger than ``limit``.
    """
    size = len(bson.encode(document))
    if size > limit:
        raise ServiceLimit(f"{what} takes {size} bytes in the catalog, more than the {limit} allowed; shorten it.")
    return {**document, "bytes": size}


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
