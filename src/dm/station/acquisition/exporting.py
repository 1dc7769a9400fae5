"""The files of a DAQ or upload as a table for other programs: CSV or JSON lines, any number of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from dm.common import timestamps
from dm.common.errors import InvalidArgument

FORMATS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
COLUMNS = (
    "path", "state", "size", "modificationTime", "rule", "attempts", "lastError", "md5Sum", "digest", "version",
    "storageStatus", "pendingPlugins", "skippedBy", "readyTimestamp", "movedTimestamp", "storedTimestamp",
    "doneTimestamp", "notes",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_CHUNK = 200


def exported(records: Iterable[dict[str, Any]], form: str) -> Iterator[bytes]:
    """Yield the records as text in UTF-8.

    In CSV a text that a spreadsheet would take for a formula begins with an apostrophe, and bytes of a path that are
    not UTF-8 are shown as ``\\xNN``; JSON lines keep every name byte for byte (as escapes, pure ASCII).

    :param form: one of :data:`FORMATS`.
    """
    if form not in FORMATS:
        raise InvalidArgument(f"Format {form!r} is unknown; choose {', '.join(FORMATS)}.")
    return _csv(records) if form == "csv" else _lines(records)


def _lines(records: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    lines: list[str] = []
    for record in records:
        lines.append(json.dumps({key: value for key, value in record.items() if key != "position"}))
        if len(lines) >= _CHUNK:
            yield ("\n".join(lines) + "\n").encode()
            lines = []
    if lines:
        yield ("\n".join(lines) + "\n").encode()


def _csv(records: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    page = io.StringIO(newline="")
    writer = csv.writer(page)
    writer.writerow(COLUMNS)
    for number, record in enumerate(records, 1):
        writer.writerow([neutral(value) for value in _cells(record)])
        if number % _CHUNK == 0:
            yield page.getvalue().encode()
            page.seek(0)
            page.truncate()
    yield page.getvalue().encode()


def _cells(record: dict[str, Any]) -> Iterator[Any]:
    times = record.get("times") or {}
    for column in COLUMNS:
        if column == "path":
            yield record.get("displayPath") or record["path"]
        elif column == "digest":
            yield " ".join(f"{name}:{value}" for name, value in sorted((record.get("digests") or {}).items()))
        elif column == "modificationTime":
            yield f"{record['mtimeNs'] / 1e9:.6f}" if record.get("mtimeNs") is not None else ""
        elif column.endswith("Timestamp"):
            moment = times.get(column.removesuffix("Timestamp"))
            yield timestamps.text(float(moment)) if moment else ""
        else:
            value = record.get(column)
            yield "; ".join(map(str, value)) if isinstance(value, list) else value


def neutral(value: Any) -> Any:
    """Return a cell that no spreadsheet evaluates."""
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value
