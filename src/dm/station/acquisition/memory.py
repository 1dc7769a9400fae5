"""What a ledger knows of its files without asking the database.

There are two 64-bit numbers per file - a hash of its path, and a hash of its size and modification time with the state
in the low three bits - so that a scan of a large tree can be compared, and a restart be done, without a query per file.
"""

from __future__ import annotations

import threading

from dm.station.acquisition.rows import STATE_BITS, WAITING, State, path_key, stamp_key
from dm.station.acquisition.transports.base import FileStamp

SHOWN_ERRORS = 1000
"""Of so many failed files the errors are kept."""


class Memory:
    """See the module."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._counts = [0] * len(State)
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}  # of files that wait or failed
        self.bytes_done = 0  # of every version of a file that was brought
        self.bytes_waiting = 0
        self.bytes_failed = 0
        self.errors: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def bytes_total(self) -> int:
        """Bytes of all that was taken: brought, waiting, and failed."""
        return self.bytes_done + self.bytes_waiting + self.bytes_failed

    def state(self, path: bytes) -> State | None:
        """Return what is known of a path."""
        value = self._known.get(path_key(path))
        return None if value is None else State(value & STATE_BITS)

    def knows(self, path: bytes, stamp: FileStamp) -> State | None:
        """Return the state of a path if it was in the same shape when last taken; a vanished one counts as unknown."""
        value = self._known.get(path_key(path))
        if value is None or value & ~STATE_BITS != stamp_key(stamp.size, stamp.mtime_ns):
            return None
        if value & STATE_BITS == State.VANISHED:
            return None
        return State(value & STATE_BITS)

    def _mark(self, key: int, value: int, size: int, error: str = "") -> None:
        """Remember a state (under the lock)."""
        old, state = self._known.get(key), value & STATE_BITS
        if old is not None:
            self._counts[old & STATE_BITS] -= 1
        self._known[key] = value
        self._counts[state] += 1
        self.errors.pop(key, None)
        if error and state == State.FAILED and len(self.errors) < SHOWN_ERRORS:
            self.errors[key] = error
        before = None if old is None else old & STATE_BITS
        held = self._sizes.pop(key, 0)
        if before in WAITING:
            self.bytes_waiting -= held
        elif before == State.FAILED:
            self.bytes_failed -= held
        elif before == State.DONE != state and not ((old or 0) ^ value) & ~STATE_BITS:
            self.bytes_done -= size  # it is processed again
        if state in WAITING:
            self.bytes_waiting += size
            self._sizes[key] = size
        elif state == State.FAILED:
            self.bytes_failed += size
            self._sizes[key] = size
        elif state == State.DONE and (before != State.DONE or ((old or 0) ^ value) & ~STATE_BITS):
            self.bytes_done += size

    def forget(self, path: bytes) -> None:
        """Let the next look at a path count as new, whatever its stamp. Its row stays as it is."""
        key = path_key(path)
        with self._lock:
            value = self._known.get(key)
            if value is not None:
                self._known[key] = value & STATE_BITS

    def count(self, *states: State) -> int:
        """Return how many files are in these states."""
        return sum(self._counts[state] for state in states)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for memory in (self._known, self._sizes, self.errors):
                memory.clear()
            self._counts = [0] * len(State)
            self.bytes_done = self.bytes_waiting = self.bytes_failed = 0
