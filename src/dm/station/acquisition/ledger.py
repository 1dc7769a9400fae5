"""The ledger of one DAQ or upload: what is known of each of its files.

A file found whole is written down with its neighbours in one *intake* document. It gets a row of its own, for people,
with the first thing there is to tell: an error, or its outcome; rows are followed by a *journal* entry, so that what
the journal tells has its row. Intake and journal are numbered from one sequence: a file of an intake is decided when a
later journal entry names it. What it knows without asking the database is its :mod:`~dm.station.acquisition.memory`.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from dm.common.errors import ServiceUnavailable
from dm.common.paths import display
from dm.common.spent import part
from dm.station.acquisition import journal
from dm.station.acquisition.completion import Rule
from dm.station.acquisition.memory import SHOWN_ERRORS, Memory
from dm.station.acquisition.rows import (
    FINAL,
    STATE_BITS,
    WITHOUT_ROW,
    Item,
    State,
    item_of,
    item_of_entry,
    path_key,
    row_id,
    shown,
    shown_entry,
    stamp_key,
)
from dm.station.acquisition.store import Document, Store
from dm.station.acquisition.transports.base import FileStamp

_log = logging.getLogger(__name__)
_PAIR = struct.Struct("<QQ")
_BLOCK = 50_000
_MERGE_FROM = 500  # so many small journal entries become one
_RECORD_BYTES = len(journal.pack_records([(0, 0, 0)]))


class Ledger(Memory):
    """See the module. Methods that write may raise :class:`~dm.common.errors.ServiceUnavailable`; what they were
    to write is then unchanged in memory, too.

    :param store: the database. :param task: id of the DAQ or upload.
    """

    def __init__(self, store: Store, task: str) -> None:
        super().__init__()
        self.store = store
        self.task = task
        self._number = 0
        self._merging = threading.Lock()
        self._small: list[int] = []  # journal entries that are to be merged
        self._fresh: dict[int, int] = {}  # files without a row -> number of their intake
        self._left: dict[int, int] = {}  # intakes -> files in them that have no row
        self.changed = threading.Condition()  # told of every write
        self.writes = 0

    def clear(self) -> None:
        """Forget everything, to load it anew."""
        super().clear()
        with self._lock:
            for memory in (self._fresh, self._left, self._small):
                memory.clear()
            self._number = 0

    # --- after a restart ---------------------------------------------------------------------------------------------
    def load(self) -> list[Item]:
        """Read all there is after a restart.

        :returns: the files that are ready.
        """
        entries = self.store.journal_of(self.task)
        decided: dict[int, int] = {}
        last: dict[int, journal.Record] = {}
        for number, data in entries:
            self._number = max(self._number, number + 1)
            if len(data) < _BLOCK * _RECORD_BYTES:
                self._small.append(number)
            else:
                self._small.clear()  # merged, what is before it would come after it
            for record in journal.unpack_records(data):
                last[record[0]] = record
                decided[record[0]] = number
        with self._lock:
            for key, value, size in last.values():
                self._mark(key, value, size)
        items = {path_key(item.path): item for item in self._untold(decided)}
        for row in self.store.rows_in(self.task, "ready"):
            item = item_of(row)
            items[key := path_key(item.path)] = item
            with self._lock:
                if key not in self._fresh:  # a crash may have come before its journal entry
                    self._mark(key, stamp_key(item.size, item.mtime_ns) | State.READY, item.size)
        for row in self.store.rows_in(self.task, "failed", limit=SHOWN_ERRORS):
            self.errors[path_key(bytes(row["pathBytes"]))] = str(row.get("lastError") or "")
        self._merge()
        return list(items.values())

    def _untold(self, decided: dict[int, int]) -> list[Item]:
        """Return the files of the intakes that nothing was written about since."""
        found: dict[int, Item] = {}
        for number, text in self.store.intakes(self.task):
            self._number = max(self._number, number + 1)
            with self._lock:
                self._left[number] = 0
                for entry in journal.unpack_entries(text):
                    key = path_key(entry[0])
                    if decided.get(key, -1) > number:
                        continue
                    found[key] = item = item_of_entry(entry)
                    self._hold(key, number)
                    self._mark(key, stamp_key(item.size, item.mtime_ns) | State.READY, item.size)
        self._sweep()
        return list(found.values())

    def load_prior(self, task: str) -> None:
        """Remember the files an earlier task moved."""
        moved: dict[int, int] = {}
        for _number, data in self.store.journal_of(task):
            for key, value, _size in journal.unpack_records(data):
                if value & STATE_BITS in (State.DONE, State.STORED):
                    moved[key] = value & ~STATE_BITS | State.PRIOR
                else:
                    moved.pop(key, None)
        with self._lock:
            for key, value in moved.items():
                if key not in self._known or self._known[key] & STATE_BITS in (State.PRIOR, State.BASELINE):
                    self._mark(key, value, 0)

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
            key, value = path_key(path), stamp_key(stamp.size, stamp.mtime_ns)
            with self._lock:
                self._mark(key, value | State.BASELINE, 0)
            block += _PAIR.pack(key, value)
            if len(block) >= _BLOCK * _PAIR.size:
                self.store.add_baseline(self.task, number, bytes(block))
                number, block = number + 1, bytearray()
        if block:
            self.store.add_baseline(self.task, number, bytes(block))

    # --- writing -----------------------------------------------------------------------------------------------------
    def ready(self, found: list[tuple[bytes, FileStamp, Rule]]) -> list[Item]:
        """Write files down as ready.

        :returns: their items, in order.
        """
        items = [Item(path, stamp.size, stamp.mtime_ns, rule.value) for path, stamp, rule in found]
        told: list[Item] = []
        untold: list[Item] = []
        for item in items:
            state = self.state(item.path)
            fresh = state is None or state in WITHOUT_ROW or path_key(item.path) in self._fresh
            (untold if fresh else told).append(item)
        if told:
            self.finish([(item, State.READY, {"rule": item.rule, "attempts": 0, "lastError": ""}) for item in told])
        if untold:
            with part("ledger"):
                self._take_in(untold)
        return items

    def _take_in(self, items: list[Item]) -> None:
        number = self._next()
        entries = ((item.path, item.size, item.mtime_ns, item.rule, item.ready) for item in items)
        self.store.take_in(self.task, number, journal.pack_entries(entries))
        with self._lock:
            self._left[number] = 0
            for item in items:
                self._hold(path_key(item.path), number)
                self._mark(path_key(item.path), stamp_key(item.size, item.mtime_ns) | State.READY, item.size)
        self._tell()

    def wait(self, writes: int, seconds: float) -> None:
        """Wait until :attr:`writes` is another number than this, or so many seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self.writes != writes, seconds)

    def _tell(self) -> None:
        """Wake who waits for a file."""
        with self.changed:
            self.writes += 1
            self.changed.notify_all()

    def _next(self) -> int:
        with self._lock:
            number = self._number
            self._number += 1
        return number

    def _hold(self, key: int, intake: int) -> None:
        """Remember which intake tells of a file without a row (under the lock)."""
        if (earlier := self._fresh.get(key)) is not None:
            self._left[earlier] -= 1
        self._fresh[key] = intake
        self._left[intake] += 1

    def finish(self, outcomes: list[tuple[Item, State, Document]]) -> None:
        """Write outcomes, or that a file is ready once more.

        :param outcomes: item, new state, and further fields (``lastError``, ``digests``, ``md5Sum``, ``version``,
            ``attempts``, ``pendingPlugins``, ``notes``; ``times`` with ``moved`` and ``stored``).
        """
        if outcomes:
            with part("ledger"):
                self._finish(outcomes)

    def _finish(self, outcomes: list[tuple[Item, State, Document]]) -> None:
        now = time.time()
        new: list[Document] = []
        changes: list[tuple[str, Document]] = []
        records: list[journal.Record] = []
        for item, state, fields in outcomes:
            key = path_key(item.path)
            records.append((key, stamp_key(item.size, item.mtime_ns) | state, item.size))
            row, name = self._row(item, state, fields, now), row_id(self.task, item.path)
            if key in self._fresh:
                new.append({"_id": name, **row})
            else:
                changes.append((name, row))
        number = self._next()
        self.store.write_outcomes(self.task, new, changes, (number, journal.pack_records(records)))
        with self._lock:
            self._small.append(number)
            for (_item, _state, fields), (key, value, size) in zip(outcomes, records, strict=True):
                self._mark(key, value, size, str(fields.get("lastError") or ""))
                if (intake := self._fresh.pop(key, None)) is not None:
                    self._left[intake] -= 1
        self._tell()
        self._sweep()
        self._merge()

    def _row(self, item: Item, state: State, fields: Document, now: float) -> Document:
        row: Document = {
            "task": self.task,
            "pathBytes": item.path,
            "path": display(item.path),
            "size": item.size,
            "mtimeNs": item.mtime_ns,
            "slot": f"{self.task}:{state.name.lower()}",
            "attempts": item.attempts,
            **fields,
            "times": {"ready": item.ready, **fields.get("times", {})},
        }
        if item.rule:
            row["rule"] = item.rule
        if item.history:
            row["history"] = item.history
        if state in FINAL:
            row["times"]["done"] = now
            row["nextRetryTime"] = None
        return row

    def note_failures(self, items: list[tuple[Item, str, float]]) -> None:
        """Write that files will be tried again: (item, error, seconds until then)."""
        now = time.time()
        for item, error, _pause in items:
            item.happened("failed", error)
        self.finish(
            [(item, State.READY, {"lastError": error, "nextRetryTime": now + pause}) for item, error, pause in items]
        )

    def _sweep(self) -> None:
        """Delete the intakes that have nothing left to tell."""
        with self._lock:
            empty = [number for number, left in self._left.items() if left <= 0]
            for number in empty:
                del self._left[number]
        with contextlib.suppress(ServiceUnavailable):  # a deletion that is lost is made up for at the next load
            self.store.drop_intakes(self.task, empty)

    def _merge(self) -> None:
        """Make few journal entries of many small ones."""
        if len(self._small) < _MERGE_FROM or not self._merging.acquire(blocking=False):
            return
        try:
            small = set(self._small)
            found = [(number, data) for number, data in self.store.journal_of(self.task) if number in small]
            blocks = journal.merge(data for _number, data in found)
            # Under the last numbers of those they replace: after every intake they decide, and before what comes.
            numbers = [number for number, _data in found]
            self.store.merge_journal(self.task, list(zip(numbers[-len(blocks) :], blocks, strict=True)), numbers)
            with self._lock:
                self._small = [number for number in self._small if number not in small]
        except ServiceUnavailable as error:
            _log.warning("The journal of %s is merged later: %s", self.task, error)
        finally:
            self._merging.release()

    # --- reading -----------------------------------------------------------------------------------------------------
    def refill(self, limit: int) -> list[Item]:
        """Return ready files from the database, some of which may be on their way already."""
        found = [item_of(row) for row in self.store.rows_in(self.task, "ready", limit=limit)]
        for number, text in self.store.intakes(self.task):
            if len(found) >= limit:
                break
            found += (item_of_entry(entry) for entry in self._of_intake(number, text))
        return found[:limit]

    def _of_intake(self, number: int, text: str) -> list[journal.Entry]:
        """Return what of an intake has no row yet."""
        return [entry for entry in journal.unpack_entries(text) if self._fresh.get(path_key(entry[0])) == number]

    def listing(self, state: str | None, skip: int, limit: int) -> list[Document]:
        """Return files as users see them, those with a row first.

        :param state: only those in this state (``ready``, ``stored``, ``done``, ``failed``, ``skipped``,
            ``vanished``). :param skip: so many are left out. :param limit: most returned.
        """
        if state:
            rows = self.store.rows_in(self.task, state, skip, limit)
            before = 0 if rows or state != "ready" else len(self.store.rows_in(self.task, state))
        else:
            rows = self.store.page(self.task, skip, limit)
            before = len(self._known) - len(self._fresh) - self.count(*WITHOUT_ROW)
        found = [shown(row) for row in rows]
        if state in (None, "", "ready") and len(found) < limit and self._fresh:
            skip = max(0, skip - before)
            for number, text in self.store.intakes(self.task):
                entries = self._of_intake(number, text)
                found += (shown_entry(entry) for entry in entries[skip : skip + limit - len(found)])
                skip = max(0, skip - len(entries))
                if len(found) >= limit:
                    break
        return found

    def find(self, path: bytes) -> Document | None:
        """Return one file as users see it, or ``None``."""
        row = self.store.row(row_id(self.task, path))
        if row is not None:
            return shown(row)
        number = self._fresh.get(path_key(path))
        if number is not None:
            for entry in journal.unpack_entries(self.store.intake_of(self.task, number)):
                if entry[0] == path:
                    return shown_entry(entry)
        return None


def tally(store: Store, task: str) -> Callable[[State], int]:
    """Return a function that tells how many files of a task that does not run are in a state, from its journal."""
    last = {key: value for _, data in store.journal_of(task) for key, value, _size in journal.unpack_records(data)}
    counts = Counter(value & STATE_BITS for value in last.values())
    return lambda state: counts[int(state)]
