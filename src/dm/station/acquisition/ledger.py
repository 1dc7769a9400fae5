"""The ledger of one DAQ or upload: what is known of each of its files.

In the database each file is one row, written when the file is ready and when its outcome is final. In memory there are
two 64-bit numbers per file - a hash of its path, and a hash of its size and modification time with the state in the low
three bits - so that a scan of a large tree can be compared without a query per file.
"""

from __future__ import annotations

import enum
import hashlib
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import xxhash

from dm.common.paths import display
from dm.station.acquisition.completion import Rule
from dm.station.acquisition.store import Document, Store
from dm.station.acquisition.transports.base import FileStamp

_PACK = struct.Struct("<qq")
_PAIR = struct.Struct("<QQ")
_STATE_BITS = 7
_BLOCK = 50_000


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
_BY_NAME = {state.name.lower(): state for state in State}


def row_id(task: str, path: bytes) -> str:
    """Return the ``_id`` of a file's row."""
    return f"{task}:{hashlib.sha256(path).hexdigest()}"


def path_key(path: bytes) -> int:
    """Return the number a path is known by in memory."""
    return xxhash.xxh3_64_intdigest(path)


def stamp_key(size: int, mtime_ns: int) -> int:
    """Return the number a size and modification time are known by in memory; the low three bits are free."""
    return xxhash.xxh3_64_intdigest(_PACK.pack(size, mtime_ns)) & ~_STATE_BITS


@dataclass(slots=True)
class Item:
    """One ready file on its way.

    :param due: monotonic seconds before which it is not taken. :param since: when it became ready.
    :param alone: it travels in a batch of its own, as one like it upset storage.
    """

    path: bytes
    size: int
    mtime_ns: int
    rule: str
    attempts: int = 0
    due: float = 0.0
    since: float = field(default_factory=time.monotonic)
    first_failure: float = 0.0
    alone: bool = False


class Ledger:
    """See the module. Methods that write may raise :class:`~dm.common.errors.ServiceUnavailable`; what they were
    to write is then unchanged in memory, too.

    :param store: the database. :param task: id of the DAQ or upload.
    """

    def __init__(self, store: Store, task: str) -> None:
        self.store = store
        self.task = task
        self._known: dict[int, int] = {}
        self._counts = [0] * len(State)
        self._lock = threading.Lock()
        self.bytes_done = 0
        self.bytes_total = 0
        self.errors: dict[int, str] = {}

    # --- memory ------------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._known)

    def state(self, path: bytes) -> State | None:
        """Return what is known of a path."""
        value = self._known.get(path_key(path))
        return None if value is None else State(value & _STATE_BITS)

    def knows(self, path: bytes, stamp: FileStamp) -> State | None:
        """Return the state of a path if it was in the same shape when last taken; a vanished one counts as unknown."""
        value = self._known.get(path_key(path))
        if value is None or value & ~_STATE_BITS != stamp_key(stamp.size, stamp.mtime_ns):
            return None
        if value & _STATE_BITS == State.VANISHED:
            return None
        return State(value & _STATE_BITS)

    def mark(self, path: bytes, size: int, mtime_ns: int, state: State, error: str = "") -> None:
        """Remember a state."""
        key = path_key(path)
        with self._lock:
            old = self._known.get(key)
            if old is not None:
                self._counts[old & _STATE_BITS] -= 1
            self._known[key] = stamp_key(size, mtime_ns) | state
            self._counts[state] += 1
            self.errors.pop(key, None)
            if error and len(self.errors) < 1000:
                self.errors[key] = error
            if state == State.READY:
                self.bytes_total += size
            elif state == State.DONE:
                self.bytes_done += size

    def forget(self, path: bytes) -> None:
        """Let the next look at a path count as new, whatever its stamp. Its row stays as it is."""
        key = path_key(path)
        with self._lock:
            value = self._known.get(key)
            if value is not None:
                self._known[key] = value & _STATE_BITS

    def count(self, *states: State) -> int:
        """Return how many files are in these states."""
        return sum(self._counts[state] for state in states)

    def clear(self) -> None:
        """Forget everything, to load it anew."""
        with self._lock:
            self._known.clear()
            self._counts = [0] * len(State)
            self.errors.clear()
            self.bytes_done = self.bytes_total = 0

    # --- database ----------------------------------------------------------------------------------------------------
    def load(self) -> list[Item]:
        """Read all rows after a restart.

        :returns: the files that are ready.
        """
        items: list[Item] = []
        for row in self.store.rows(self.task):
            state = _BY_NAME.get(str(row["slot"]).rpartition(":")[2], State.READY)
            path = bytes(row["pathBytes"])
            self.mark(path, int(row["size"]), int(row["mtimeNs"]), state, str(row.get("lastError") or ""))
            if state is State.READY:
                items.append(_item(row))
            elif state is State.DONE:
                self.bytes_total += int(row["size"])
        return items

    def load_prior(self, task: str) -> None:
        """Remember the files an earlier task moved."""
        for row in self.store.rows(task, ["slot", "pathBytes", "size", "mtimeNs"]):
            if str(row["slot"]).endswith((":done", ":stored")):
                path = bytes(row["pathBytes"])
                if self.state(path) in (None, State.PRIOR, State.BASELINE):
                    self.mark(path, int(row["size"]), int(row["mtimeNs"]), State.PRIOR)

    def load_baseline(self) -> None:
        """Remember what :meth:`save_baseline` saved, where nothing newer is known."""
        for block in self.store.baseline(self.task):
            for key, value in _PAIR.iter_unpack(block):
                if key not in self._known:
                    self._known[key] = value
                    self._counts[State.BASELINE] += 1

    def save_baseline(self, entries: Iterable[tuple[bytes, FileStamp]]) -> None:
        """Remember, also over a restart, files that are not to be taken as they are now."""
        number, block = 0, bytearray()
        for path, stamp in entries:
            self.mark(path, stamp.size, stamp.mtime_ns, State.BASELINE)
            block += _PAIR.pack(path_key(path), stamp_key(stamp.size, stamp.mtime_ns))
            if len(block) >= _BLOCK * _PAIR.size:
                self.store.add_baseline(self.task, number, bytes(block))
                number, block = number + 1, bytearray()
        if block:
            self.store.add_baseline(self.task, number, bytes(block))

    def ready(self, found: list[tuple[bytes, FileStamp, Rule]]) -> list[Item]:
        """Write files down as ready.

        :returns: their items, in order.
        """
        now = time.time()
        new: list[Document] = []
        changed: list[tuple[str, Document]] = []
        for path, stamp, rule in found:
            fields = {
                "slot": f"{self.task}:ready",
                "size": stamp.size,
                "mtimeNs": stamp.mtime_ns,
                "rule": rule.value,
                "attempts": 0,
                "lastError": "",
                "readyTime": now,
            }
            if self.state(path) in (None, State.BASELINE, State.PRIOR):
                new.append({**self._identity(path), **fields})
            else:
                changed.append((row_id(self.task, path), fields))
        self.store.insert_rows(new)
        self.store.update_rows(changed)
        items = []
        for path, stamp, rule in found:
            self.mark(path, stamp.size, stamp.mtime_ns, State.READY)
            items.append(Item(path, stamp.size, stamp.mtime_ns, rule.value))
        return items

    def finish(self, outcomes: list[tuple[Item, State, Document]]) -> None:
        """Write outcomes.

        :param outcomes: item, new state, and further fields (``lastError``, ``digests``, ``md5Sum``, ``version``,
            ``attempts``, ``pendingPlugins``, ``notes``).
        """
        now = time.time()
        self.store.update_rows(
            (
                row_id(self.task, item.path),
                {
                    "task": self.task,
                    "pathBytes": item.path,
                    "path": display(item.path),
                    "size": item.size,
                    "mtimeNs": item.mtime_ns,
                    "slot": f"{self.task}:{state.name.lower()}",
                    "finishTime": now,
                    **fields,
                },
            )
            for item, state, fields in outcomes
        )
        for item, state, fields in outcomes:
            self.mark(item.path, item.size, item.mtime_ns, state, str(fields.get("lastError") or ""))

    def note_failures(self, items: list[tuple[Item, str, float]]) -> None:
        """Write that files will be tried again: (item, error, seconds until then)."""
        now = time.time()
        self.store.update_rows(
            (
                row_id(self.task, item.path),
                {"attempts": item.attempts, "lastError": error, "nextRetryTime": now + pause},
            )
            for item, error, pause in items
        )

    def refill(self, limit: int) -> Iterator[Item]:
        """Return ready files from the database, some of which may be on their way already."""
        for row in self.store.rows_in(self.task, "ready", limit=limit):
            yield _item(row)

    def _identity(self, path: bytes) -> Document:
        return {"_id": row_id(self.task, path), "task": self.task, "pathBytes": path, "path": display(path)}


def _item(row: Document) -> Item:
    return Item(
        bytes(row["pathBytes"]),
        int(row["size"]),
        int(row["mtimeNs"]),
        str(row.get("rule", "")),
        int(row.get("attempts") or 0),
    )


def shown(row: Document) -> dict[str, Any]:
    """Return a row as users see it: camelCase keys, ``state``, and the exact path as text."""
    from dm.common.paths import decode

    result = {key: value for key, value in row.items() if key not in ("_id", "task", "slot", "pathBytes")}
    result["state"] = str(row["slot"]).rpartition(":")[2]
    result["path"] = decode(bytes(row["pathBytes"]))
    result["displayPath"] = row.get("path", "")
    return result
