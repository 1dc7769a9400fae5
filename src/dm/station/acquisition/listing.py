"""The ledger as users see it: rows of the database, joined with what is on its way at this moment."""

from __future__ import annotations

import collections
import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument
from dm.common.paths import decode, display, encode
from dm.station.acquisition.completion import Waiting
from dm.station.acquisition.ledger import Ledger, tally
from dm.station.acquisition.rows import State, path_key, shown
from dm.station.acquisition.task import Task

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office

STATES = ("seen", "settling", "ready", "moving", "stored", "done", "failed", "skipped", "vanished")
_UNTOLD = ("seen", "settling")  # states of files that are in no ledger yet
_CHUNK = 2000

Record = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """Which files of a DAQ or upload are meant.

    :param state: one of :data:`STATES`, or empty for all the ledger has. :param pattern: shell wildcard of the path
        relative to the data directory (``*`` also matches ``/``); one without ``/`` matches the file name alone, too.
    :param since: epoch seconds; only files that were found whole or finished at or after it.
    :raises InvalidArgument: no such state, or a pattern with a NUL byte.
    """

    state: str = ""
    pattern: str = ""
    since: float | None = None

    def __post_init__(self) -> None:
        if self.state and self.state not in STATES:
            raise InvalidArgument(f"State {self.state!r} is unknown; choose {', '.join(STATES)}.")
        if "\0" in self.pattern:
            raise InvalidArgument("The file pattern contains a NUL byte.")

    @property
    def plain(self) -> bool:
        """Whether only the state counts, which the database can find by itself."""
        return not self.pattern and self.since is None

    def fits(self, record: Record) -> bool:
        """Whether a record is meant, as far as path and time go."""
        if self.since is not None:
            times = record.get("times") or {}
            if max(float(times.get("done") or 0), float(times.get("ready") or 0)) < self.since:
                return False
        return not self.pattern or self.names(str(record["path"]))

    def names(self, path: str) -> bool:
        """Whether the pattern matches a path."""
        expression = re.compile(fnmatch.translate(self.pattern), re.DOTALL)  # the module keeps what it compiled
        if expression.match(path):
            return True
        return "/" not in self.pattern and bool(expression.match(path.rpartition("/")[2]))


def listed_files(  # noqa: PLR0917 - the published order of a page's arguments
    office: Office,
    task_id: str,
    state: str | None,
    skip: int,
    limit: int,
    query: Query | None = None,
    after: int | None = None,
) -> list[Record]:
    """Return ledger records of a DAQ or upload, in the order they came into the ledger.

    :param state: only files in this state. :param skip: leave out so many of those that fit. :param limit: page.
    :param query: further conditions; its state counts when ``state`` is empty.
    :param after: go on after the record whose ``position`` this is, which costs the same wherever it is.
    :raises InvalidArgument: no such state.
    """
    wanted = query or Query(state or "")
    if state and wanted.state != state:
        wanted = Query(state, wanted.pattern, wanted.since)
    first = 0 if after is None else after + 1
    if wanted.plain:
        return _page(office, task_id, wanted.state, first + skip, limit)
    found: list[Record] = []
    for record in records(office, task_id, wanted, first):
        if skip > 0:
            skip -= 1
            continue
        found.append(record)
        if len(found) >= limit:
            break
    return found


def records(office: Office, task_id: str, query: Query, first: int = 0) -> Iterator[Record]:
    """Yield the records that fit, from a position on; a running task may change meanwhile, so a file may come twice."""
    if query.state not in ("ready", "moving", *_UNTOLD):
        live = office.live.get(task_id)
        moving = on_their_way(office, live) if live is not None else {}
        for row in office.store.scan(task_id, query.state, first):
            record = joined(shown(row), moving)
            record["position"] = first
            first += 1
            if query.fits(record):
                yield record
        if live is None or query.state:
            return
    while True:
        page = _page(office, task_id, query.state, first, _CHUNK)
        yield from (record for record in page if query.fits(record))
        if len(page) < _CHUNK:
            return
        first = int(page[-1]["position"]) + 1


def _page(office: Office, task_id: str, state: str, skip: int, limit: int) -> list[Record]:
    found = _rows(office, task_id, state, skip, limit)
    for number, record in enumerate(found, skip):
        record["position"] = number
    return found


def _rows(office: Office, task_id: str, state: str, skip: int, limit: int) -> list[Record]:
    live = office.live.get(task_id)
    if state in _UNTOLD:
        found = waiting(live) if live is not None else []
        return [record for record in found if record["state"] == state][skip : skip + limit]
    if live is None:
        return [] if state == "moving" else Ledger(office.store, task_id).listing(state, skip, limit)
    moving = on_their_way(office, live)
    if state == "moving":
        rows = [live.ledger.find(path) for path in list(moving)[skip : skip + limit]]
        return [joined(row, moving) for row in rows if row is not None]
    if state == "ready":
        # Those on their way count as moving; as many more are read as there can be of them.
        ready = live.ledger.listing(state, skip, limit + len(moving))
        return [row for row in ready if encode(row["path"]) not in moving][:limit]
    return [joined(row, moving) for row in live.ledger.listing(state, skip, limit)]


def one_file(office: Office, task_id: str, path: bytes) -> Record | None:
    """Return one file of a DAQ or upload, or ``None`` when it is not known there."""
    live = office.live.get(task_id)
    if live is None:
        return Ledger(office.store, task_id).find(path)
    found = live.ledger.find(path)
    if found is not None:
        return joined(found, on_their_way(office, live))
    entry = live.waiting_for(path)
    return waiting_record(entry) if entry is not None else None


def once_each(office: Office, task_id: str, query: Query) -> Iterator[Record]:
    """Yield the records that fit, each file once even while a task runs."""
    given: set[int] = set()
    for record in records(office, task_id, query):
        key = path_key(encode(record["path"]))
        if key not in given:
            given.add(key)
            yield record


def on_their_way(office: Office, task: Task) -> dict[bytes, str]:
    """Return the files of a task that are in a batch: path -> the batch's phase."""
    with office.pipeline.condition:
        return {load.item.path: batch.phase for batch in task.batches.values() for load in batch.loads}


def joined(row: Record, moving: dict[bytes, str]) -> Record:
    """Return a row with the state of this moment."""
    if row["state"] == "ready" and encode(row["path"]) in moving:
        row["state"] = "moving"
    return row


def waiting(task: Task) -> list[Record]:
    """Return the files that a task's watching thread knows of and that are not whole yet."""
    return [waiting_record(entry) for entry in task.waiting()]


def waiting_record(entry: Waiting) -> Record:
    """Return the record of a file that is in no ledger yet."""
    return {
        "path": decode(entry.path),
        "displayPath": display(entry.path),
        "state": entry.state,
        "size": entry.size,
        "rule": entry.rule,
        "attempts": 0,
        "lastError": "",
        "notes": [entry.why],
        "times": {"seen": entry.since},
    }


def counts(office: Office, task_id: str) -> dict[str, int]:
    """Return exact counts: ``countFiles`` is the sum of ``ready``, ``moving``, ``stored``, ``done``, ``failed``,
    ``skipped`` and ``vanished``; files in state ``seen`` or ``settling`` are not yet among them."""
    live = office.live.get(task_id)
    count: Callable[[State], int] = live.ledger.count if live is not None else tally(office.store, task_id)
    watched = collections.Counter(record["state"] for record in waiting(live)) if live is not None else {}
    moving = sum(1 for path in on_their_way(office, live) if live.ledger.state(path) is State.READY) if live else 0
    found = {state.name.lower(): count(state) for state in State if state > State.PRIOR}
    total = sum(found.values())
    found["ready"] -= min(moving, found["ready"])
    found["moving"] = total - sum(found.values())
    untold = {state: watched.get(state, 0) for state in _UNTOLD}
    return {"countFiles": total, **untold, **{state: found[state] for state in STATES if state in found}}
