"""How the ledger writes many files down in few documents.

An *intake* is a group of files found whole together: paths, sizes, times and the rule that fired, as JSON text. A
*journal entry* is what became of files, without their names: for each the 64-bit numbers the ledger knows path and
contents by, and the size in bytes. Both kinds are numbered from one sequence per task, so that what was written later
has the higher number. A journal of a million files is 24 MB in a few hundred documents and is read in a second; their
rows, which are for people, would take minutes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator

from dm.common.paths import decode, encode

_RECORD = struct.Struct("<QQq")
BLOCK = 50_000
"""Most records in one journal document (1.2 MB; the database's limit is 16 MB)."""

Entry = tuple[bytes, int, int, str, float]
"""Path, size in bytes, modification time in ns since the epoch, rule, epoch seconds when it was found whole."""
Record = tuple[int, int, int]
"""Path number, contents number with the state in its low bits, size in bytes."""


def pack_entries(entries: Iterable[Entry]) -> str:
    """Return the text of an intake."""
    return json.dumps(
        [[decode(path), size, mtime_ns, rule, time] for path, size, mtime_ns, rule, time in entries],
        separators=(",", ":"),
    )


def unpack_entries(text: str) -> Iterator[Entry]:
    """Yield what :func:`pack_entries` was given."""
    for path, size, mtime_ns, rule, time in json.loads(text):
        yield encode(path), size, mtime_ns, rule, time


def pack_records(records: Iterable[Record]) -> bytes:
    """Return the bytes of a journal entry."""
    return b"".join(_RECORD.pack(*record) for record in records)


def unpack_records(data: bytes) -> Iterator[Record]:
    """Yield what :func:`pack_records` was given."""
    return _RECORD.iter_unpack(data)


def merge(documents: Iterable[bytes]) -> list[bytes]:
    """Return journal entries, oldest first, as few large ones: of each file only its last record."""
    last: dict[int, Record] = {}
    for data in documents:
        for record in unpack_records(data):
            last.pop(record[0], None)
            last[record[0]] = record
    records = list(last.values())
    return [pack_records(records[start : start + BLOCK]) for start in range(0, len(records), BLOCK)]
