"""What the ``key:value`` words of catalog commands mean."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import click


def scalar(text: str) -> Any:
    """Return the number, truth value or null a text spells in JSON, or the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def as_query(words: Mapping[str, str], query: str | None = None) -> dict[str, Any]:
    """Return the query of ``key:value`` filters: a value matches as text and as what it spells (``scan:7``).

    :param query: further conditions, as JSON.
    :raises click.UsageError: not a JSON object.
    """
    conditions: dict[str, Any] = {}
    for key, text in words.items():
        value = scalar(text)
        conditions[key] = text if isinstance(value, str) else {"$in": [text, value]}
    if not query:
        return conditions
    more = as_object(query, "--query")
    return {"$and": [conditions, more]} if conditions else more


def as_object(text: str, what: str) -> dict[str, Any]:
    """Return a JSON object given on the command line. :raises click.UsageError: it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{what} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise click.UsageError(f"{what} is not a JSON object.")
    return value


def as_metadata(words: Mapping[str, str], as_json: bool) -> dict[str, Any]:
    """Return metadata given as words: texts, or with ``as_json`` JSON values where they are."""
    if not as_json:
        return dict(words)
    result: dict[str, Any] = {}
    for key, text in words.items():
        try:
            result[key] = json.loads(text)
        except (ValueError, RecursionError):
            result[key] = text
    return result
