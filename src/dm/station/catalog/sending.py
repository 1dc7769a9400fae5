"""What clients make of records before they send them: plain JSON values, grouped, in parts that fit into a request."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dm.common.errors import InvalidArgument

BULK_FILES = 1000
BULK_BYTES = 24 << 20
_INT64 = 1 << 63


def plain(value: Any) -> Any:
    """Return a value as JSON has it: what comes from numpy, tuples, sets, dates, paths and bytes is converted.

    Numbers the catalog cannot hold become texts: ``NaN``, ``Infinity``, ``-Infinity``, whole numbers beyond 64 bits.

    :raises InvalidArgument: an object of another kind.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if -_INT64 <= value < _INT64 else str(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else json.dumps(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return _plain_other(value)


def _plain_other(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | os.PathLike):
        return os.fsdecode(value)
    for convert in ("tolist", "_asdict", "model_dump"):  # numpy arrays and scalars, named tuples, pydantic models
        if callable(method := getattr(value, convert, None)):
            return plain(method())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    raise InvalidArgument(f"Metadata of type {type(value).__name__} cannot be written as JSON: {value!r:.60}.")


def experiment_of(record: Mapping[str, Any], what: str) -> str:
    """Return the experiment a record belongs to. :raises InvalidArgument: it names none."""
    name = record.get("experimentName")
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{what} has no experimentName; say which experiment it belongs to.")
    return name


def mapping(value: Any, what: str) -> dict[str, Any]:
    """Return what a caller gave as a plain dictionary. :raises InvalidArgument: it is none."""
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{what} is a {type(value).__name__}, not a dictionary.")
    found: dict[str, Any] = plain(value)
    return found


def by_experiment(records: Any, name: str | None) -> dict[str, list[dict[str, Any]]]:
    """Group records by the experiment they name, or else by ``name``."""
    if isinstance(records, str) and name is not None and not isinstance(name, str):
        records, name = name, records
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found = mapping(record, "A file record")
        own = found.get("experimentName") or name
        groups.setdefault(experiment_of({"experimentName": own}, "File record"), []).append(found)
    return groups


def parts(records: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield the records in parts that fit into one request."""
    part: list[dict[str, Any]] = []
    size = 0
    for record in records:
        weight = len(json.dumps(record))
        if part and (len(part) >= BULK_FILES or size + weight > BULK_BYTES):
            yield part
            part, size = [], 0
        part.append(record)
        size += weight
    if part:
        yield part


def add_up(total: dict[str, Any], outcome: Mapping[str, Any], name: str | None) -> None:
    """Add a part's outcome; its errors say the experiment, as their index is only that within a part."""
    for key, value in outcome.items():
        if key == "errors":
            offset = total.get("countFiles", 0) - outcome["countFiles"]
            named = {} if name is None else {"experimentName": name}
            errors = [{**error, **named, "index": error["index"] + offset} for error in value]
            total["errors"] = total.get("errors", []) + errors
        else:
            total[key] = total.get(key, 0) + value
