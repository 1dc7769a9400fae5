"""What is known of one file: its state, the numbers it is known by in memory, and its row for people."""

from __future__ import annotations

import enum
import hashlib
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import xxhash

from dm.common.paths import decode, display
from dm.station.acquisition import journal
from dm.station.acquisition.store import Document

_PACK = struct.Struct("<qq")
STATE_BITS = 7
"""The bits of a contents number that hold the state."""
_EVENTS = 50  # so many are kept of what happened to a file


class State(enum.IntEnum):
    """What the memory knows of a file; ``BASELINE`` and ``PRIOR`` have no row."""

    BASELINE = 0  # lay there before a DAQ that takes only new files
    PRIOR = 1  # moved unchanged by an earlier DAQ or upload
    READY = 2
    STORED = 3
    DONE = 4
    FAILED = 5
    SKIPPED = 6
    VANISHED = 7


FINAL = frozenset({State.DONE, State.FAILED, State.SKIPPED, State.VANISHED})
WAITING = frozenset({State.READY, State.STORED})
WITHOUT_ROW = frozenset({State.BASELINE, State.PRIOR})


def row_id(task: str, path: bytes) -> str:
    """Return the ``_id`` of a file's row."""
    return f"{task}:{hashlib.sha256(path).hexdigest()}"


def path_key(path: bytes) -> int:
    """Return the number a path is known by in memory."""
    return xxhash.xxh3_64_intdigest(path)


def stamp_key(size: int, mtime_ns: int) -> int:
    """Return the number a size and modification time are known by in memory; the low three bits are free."""
    return xxhash.xxh3_64_intdigest(_PACK.pack(size, mtime_ns)) & ~STATE_BITS


@dataclass(slots=True)
class Item:
    """One ready file on its way.

    :param due: monotonic seconds before which it is not taken. :param since: when it became ready (monotonic).
    :param ready: the same in epoch seconds.
    :param alone: it travels in a batch of its own, as one like it upset storage.
    :param history: what happened to it so far: dictionaries with ``time`` (epoch seconds), ``event`` and ``text``.
    """

    path: bytes
    size: int
    mtime_ns: int
    rule: str
    attempts: int = 0
    due: float = 0.0
    since: float = field(default_factory=time.monotonic, compare=False)
    ready: float = field(default_factory=time.time, compare=False)
    first_failure: float = 0.0
    alone: bool = False
    history: list[Document] | None = None

    def happened(self, event: str, text: str) -> None:
        """Remember an event for the file's row; the same one again and again counts once."""
        before = self.history or []
        if not before or (before[-1]["event"], before[-1]["text"]) != (event, text):
            self.history = [*before, {"time": time.time(), "event": event, "text": text}][-_EVENTS:]


def item_of(row: Document) -> Item:
    """Return the item of a row."""
    return Item(
        bytes(row["pathBytes"]),
        int(row["size"]),
        int(row["mtimeNs"]),
        str(row.get("rule", "")),
        int(row.get("attempts") or 0),
        ready=float((row.get("times") or {}).get("ready") or time.time()),
        history=list(row.get("history") or []) or None,
    )


def item_of_entry(entry: journal.Entry) -> Item:
    """Return the item of a file in an intake."""
    path, size, mtime_ns, rule, ready = entry
    return Item(path, size, mtime_ns, rule, ready=ready)


def shown(row: Document) -> dict[str, Any]:
    """Return a row as users see it: camelCase keys, ``state``, and the exact path as text."""
    result = {key: value for key, value in row.items() if key not in ("_id", "task", "slot", "pathBytes")}
    result["state"] = str(row["slot"]).rpartition(":")[2]
    result["path"] = decode(bytes(row["pathBytes"]))
    result["displayPath"] = row.get("path", "")
    return result


def shown_entry(entry: journal.Entry) -> dict[str, Any]:
    """Return a file that has no row yet as users see it."""
    path, size, mtime_ns, rule, ready = entry
    return {
        "path": decode(path),
        "displayPath": display(path),
        "state": "ready",
        "size": size,
        "mtimeNs": mtime_ns,
        "rule": rule,
        "attempts": 0,
        "lastError": "",
        "times": {"ready": ready},
    }
