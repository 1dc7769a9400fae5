"""Everything the Data Acquisition Service keeps in MongoDB; the only module here that knows pymongo.

Collections (all points are reached by ``_id`` or by one single-field index, see design decision 2):

``acquisitionTasks``
    one document per DAQ or upload; ``order`` = ``<kind>:<20-digit start time in ns>`` for listing.
``acquisitionActive``
    one document per running DAQ or upload, ``_id`` made of what may run only once at a time.
``acquisitionFiles``
    the ledger's rows: ``_id`` = ``<task id>:<sha256 of the source path bytes>``; ``task``; ``slot`` =
    ``<task id>:<state>``. A file gets its row with the first thing there is to tell: a failure, or its outcome.
``acquisitionIntake``
    files found whole and not told of in a row yet, many in one document; ``_id`` = ``<task id>:<number>``; ``task``.
``acquisitionJournal``
    what became of files, as numbers, many in one document; ``_id`` = ``<task id>:<number>``; ``task``.
``acquisitionBatches``
    batches on their way; ``task``.
``acquisitionBaselines``
    what lay in the data directory before a DAQ that takes only new files; ``task``.
``acquisitionService``
    the lease: which process may work with this database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, TypeVar

from bson.binary import Binary
from pymongo import MongoClient, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from dm.common.errors import ServiceUnavailable
from dm.common.mongo import DURABLE, BulkWrites

Document = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])
_DUPLICATE = 11000
_REASON = 200


def _guarded(function: F) -> F:
    """Turn database trouble into :class:`ServiceUnavailable`, which callers repeat."""

    operation = function.__name__

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*args, **kwargs)
        except BulkWriteError as error:
            problems = error.details.get("writeErrors") or error.details.get("writeConcernErrors") or [{}]
            reason = str(problems[0].get("errmsg", "no reason given"))[:_REASON]
            raise ServiceUnavailable(f"The acquisition database refused a write: {reason}.") from error
        except PyMongoError as error:
            reason = str(error).split(", Timeout:")[0].split(" (configured timeouts")[0][:_REASON]
            raise ServiceUnavailable(f"The acquisition database does not answer: {reason}.") from error
        finally:
            args[0].observe(operation, time.monotonic() - began)

    return call  # type: ignore[return-value]


def _unobserved(_operation: str, _seconds: float) -> None:
    """Nobody measures."""


def _guarded_rows(function: F) -> F:
    """The same for functions that yield documents."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            yield from function(*args, **kwargs)
        except PyMongoError as error:
            reason = str(error).split(", Timeout:")[0][:_REASON]
            raise ServiceUnavailable(f"The acquisition database does not answer: {reason}.") from error

    return call  # type: ignore[return-value]


class Store:
    """The acquisition database.

    :param url: ``mongodb://`` URL; its path names the database, ``dm`` when it has none.
    :param timeout: seconds after which an unreachable or silent server counts as down.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        self.client: MongoClient[Document] = MongoClient(
            url,
            serverSelectionTimeoutMS=int(min(timeout, 5.0) * 1000),
            connectTimeoutMS=int(min(timeout, 5.0) * 1000),
            socketTimeoutMS=int(timeout * 1000),
            retryWrites=False,  # every write here is keyed and repeated by its caller
        )
        database = self.client.get_default_database("dm").with_options(write_concern=DURABLE)
        self.tasks = database["acquisitionTasks"]
        self.active = database["acquisitionActive"]
        self.files = database["acquisitionFiles"]
        self.intake = database["acquisitionIntake"]
        self.journal = database["acquisitionJournal"]
        self.batches = database["acquisitionBatches"]
        self.baselines = database["acquisitionBaselines"]
        self.service = database["acquisitionService"]
        self.observe: Callable[[str, float], None] = _unobserved  # told of every operation and its seconds
        self._bulk = BulkWrites(database, "acquisitionSeals")

    @_guarded
    def prepare(self) -> None:
        """Create the indexes."""
        self.tasks.create_index("order")
        self.tasks.create_index("place")
        self.tasks.create_index("open")
        for collection in self._by_task():
            collection.create_index("task")
        self.files.create_index("slot")

    def close(self) -> None:
        """Close all connections."""
        self.client.close()

    @_guarded
    def ping(self) -> None:
        """Raise :class:`ServiceUnavailable` unless the server answers."""
        self.client.admin.command("ping")

    # --- lease -------------------------------------------------------------------------------------------------------
    @_guarded
    def lease(self) -> Document | None:
        """Return the lease document, or ``None`` when nobody ever held it."""
        return self.service.find_one({"_id": "lease"})

    @_guarded
    def take_lease(self, seen: Document | None, mine: Document) -> bool:
        """Write ``mine`` as the lease if it is still as ``seen``; return whether that worked."""
        if seen is None:
            try:
                self.service.insert_one({"_id": "lease", **mine})
            except DuplicateKeyError:
                return False
            return True
        guard = {"_id": "lease", "owner": seen.get("owner"), "beat": seen.get("beat")}
        return self.service.update_one(guard, {"$set": mine}).matched_count == 1

    @_guarded
    def renew_lease(self, owner: str, beat: int) -> bool:
        """Renew; return ``False`` when somebody else has it now."""
        return self.service.update_one({"_id": "lease", "owner": owner}, {"$set": {"beat": beat}}).matched_count == 1

    @_guarded
    def release_lease(self, owner: str) -> None:
        """Give the lease back, so that the next process need not wait."""
        self.service.update_one({"_id": "lease", "owner": owner}, {"$set": {"owner": None}})

    # --- tasks -------------------------------------------------------------------------------------------------------
    @_guarded
    def add_task(self, document: Document) -> None:
        """Store a new task; storing the same one again changes nothing."""
        try:
            self.tasks.insert_one(document)
        except DuplicateKeyError:
            return

    @_guarded
    def claim(self, key: str, task: str) -> str:
        """Claim what may run once only.

        :returns: the id of the task that has the claim, ours or another.
        """
        try:
            self.active.insert_one({"_id": key, "task": task})
        except DuplicateKeyError:
            found = self.active.find_one({"_id": key})
            return str(found["task"]) if found else self.claim(key, task)
        return task

    @_guarded
    def release(self, key: str, task: str) -> None:
        """Give a claim back."""
        self.active.delete_one({"_id": key, "task": task})

    @_guarded
    def claims(self) -> list[Document]:
        """Return all claims."""
        return list(self.active.find({}))

    @_guarded
    def task(self, task: str) -> Document | None:
        """Return one task document."""
        return self.tasks.find_one({"_id": task})

    @_guarded
    def set_task(self, task: str, fields: Document) -> None:
        """Change fields of a task."""
        self.tasks.update_one({"_id": task}, {"$set": fields})

    @_guarded
    def forget_task(self, task: str) -> None:
        """Delete a task that never started, with all that belongs to it."""
        for collection in self._by_task():
            collection.delete_many({"task": task})
        self.tasks.delete_one({"_id": task})

    @_guarded
    def ended_before(self, moment: float) -> list[str]:
        """Return the ids of the tasks that ended before a time (epoch seconds)."""
        found: list[str] = []
        for kind in ("daq", "upload"):
            began = {"order": {"$gte": f"{kind}:", "$lt": f"{kind}:{max(0, int(moment * 1e9)):020d}"}}
            for document in self.tasks.find(began, ["open", "endTime", "pruned"]).batch_size(500):
                ended = document.get("endTime")
                if document.get("pruned") or (not document.get("open") and ended and float(ended) < moment):
                    found.append(str(document["_id"]))
        return found

    @_guarded
    def forget_some(self, task: str, limit: int) -> bool:
        """Delete some of what belongs to a task; return whether there may be more. Not flushed: it can be repeated."""
        for collection in self._by_task():
            ids = [document["_id"] for document in collection.find({"task": task}, ["_id"]).limit(limit)]
            if ids:
                self._bulk.of(collection).delete_many({"_id": {"$in": ids}})
                return True
        return False

    @_guarded
    def open_tasks(self) -> list[Document]:
        """Return the tasks that are not finished, oldest first."""
        return sorted(self.tasks.find({"open": True}), key=lambda document: str(document["order"]))

    @_guarded_rows
    def list_tasks(self, kind: str) -> Iterator[Document]:
        """Iterate over the tasks of a kind, newest first."""
        yield from self.tasks.find({"order": {"$gte": f"{kind}:", "$lt": f"{kind};"}}).sort("order", -1).batch_size(500)

    @_guarded
    def tasks_at(self, place: str) -> list[Document]:
        """Return the tasks, finished or not, that moved the same directory to the same place."""
        return list(self.tasks.find({"place": place}))

    # --- ledger ------------------------------------------------------------------------------------------------------
    def _by_task(self) -> tuple[Collection[Document], ...]:
        return self.files, self.intake, self.journal, self.batches, self.baselines

    @_guarded
    def take_in(self, task: str, number: int, entries: str) -> None:
        """Write down a group of files found whole (:mod:`dm.station.acquisition.journal`); durable on return."""
        self._bulk.of(self.intake).insert_one({"_id": _numbered(task, number), "task": task, "entries": entries})
        self._bulk.seal()

    @_guarded_rows
    def intakes(self, task: str) -> Iterator[tuple[int, str]]:
        """Iterate over the intakes of a task, oldest first: number and entries. One is in memory at a time."""
        for number in sorted(_number(document) for document in self.intake.find({"task": task}, ["_id"])):
            yield number, self.intake_of(task, number)

    @_guarded
    def intake_of(self, task: str, number: int) -> str:
        """Return the entries of one intake; an empty list's text when it is gone."""
        found = self.intake.find_one({"_id": _numbered(task, number)})
        return str(found["entries"]) if found else "[]"

    @_guarded
    def drop_intakes(self, task: str, numbers: Iterable[int]) -> None:
        """Delete intakes all of whose files have a row. Not flushed: a lost deletion does no harm."""
        for number in numbers:
            self._bulk.of(self.intake).delete_one({"_id": _numbered(task, number)})

    @_guarded
    def forget_intakes(self, task: str) -> None:
        """Delete what is left of intakes at the end of a task, when every file has a row."""
        self.intake.delete_many({"task": task})

    @_guarded
    def write_outcomes(
        self, task: str, new: list[Document], changes: list[tuple[str, Document]], journal: tuple[int, bytes]
    ) -> None:
        """Write rows, then the journal entry that says they are there; durable on return.

        :param new: rows of files that have none yet (one that exists is changed). :param changes: ``_id`` and fields to
            set; a missing row is made. :param journal: number and records.
        """
        files = self._bulk.of(self.files)
        if new:
            try:
                files.insert_many(new, ordered=False)
            except BulkWriteError as error:
                if any(problem.get("code") != _DUPLICATE for problem in error.details.get("writeErrors", [])):
                    raise
                changes = [*changes, *((row["_id"], _without_id(row)) for row in new)]
        if changes:
            files.bulk_write([UpdateOne({"_id": row}, {"$set": fields}, upsert=True) for row, fields in changes], False)
        number, data = journal
        self._bulk.of(self.journal).insert_one({"_id": _numbered(task, number), "task": task, "data": Binary(data)})
        self._bulk.seal()

    @_guarded
    def journal_of(self, task: str) -> list[tuple[int, bytes]]:
        """Return the journal of a task, oldest first: number and records."""
        return sorted((_number(document), bytes(document["data"])) for document in self.journal.find({"task": task}))

    @_guarded
    def merge_journal(self, task: str, merged: list[tuple[int, bytes]], old: Iterable[int]) -> None:
        """Put few large journal entries in the place of many small ones; a crash in between does no harm."""
        kept = {number for number, _data in merged}
        for number, data in merged:
            self._bulk.of(self.journal).update_one(
                {"_id": _numbered(task, number)}, {"$set": {"task": task, "data": Binary(data)}}, upsert=True
            )
        self._bulk.seal()
        for number in old:
            if number not in kept:
                self._bulk.of(self.journal).delete_one({"_id": _numbered(task, number)})

    @_guarded_rows
    def scan(self, task: str, state: str, skip: int = 0) -> Iterator[Document]:
        """Iterate over the rows of a task, in the order of :meth:`page` or, with a state, of :meth:`rows_in`."""
        wanted = {"slot": f"{task}:{state}"} if state else {"task": task}
        yield from self.files.find(wanted).skip(skip).batch_size(1000)

    @_guarded
    def rows_in(self, task: str, state: str, skip: int = 0, limit: int = 0) -> list[Document]:
        """Return rows of a task in one state."""
        return list(self.files.find({"slot": f"{task}:{state}"}).skip(skip).limit(limit))

    @_guarded
    def page(self, task: str, skip: int, limit: int) -> list[Document]:
        """Return rows of a task in any state."""
        return list(self.files.find({"task": task}).skip(skip).limit(limit))

    @_guarded
    def row(self, row: str) -> Document | None:
        """Return one row."""
        return self.files.find_one({"_id": row})

    # --- batches and baselines ---------------------------------------------------------------------------------------
    @_guarded
    def add_batch(self, document: Document) -> None:
        """Store a batch, replacing an earlier copy of itself.

        Not flushed: it outlives us, not a crash of the database, after which its files, not decided, travel once more.
        """
        self._bulk.of(self.batches).update_one({"_id": document["_id"]}, {"$set": _without_id(document)}, upsert=True)

    @_guarded
    def drop_batch(self, batch: str) -> None:
        """Delete a batch that is over. Not flushed: one that comes back after a crash finds its files decided."""
        self._bulk.of(self.batches).delete_one({"_id": batch})

    @_guarded
    def batches_of(self, task: str) -> list[Document]:
        """Return the batches of a task that are not over."""
        return list(self.batches.find({"task": task}))

    @_guarded
    def add_baseline(self, task: str, number: int, data: bytes) -> None:
        """Store one block of a baseline."""
        fields = {"task": task, "data": Binary(data)}
        self.baselines.update_one({"_id": f"{task}:{number}"}, {"$set": fields}, upsert=True)

    @_guarded
    def baseline(self, task: str) -> list[bytes]:
        """Return the blocks of a baseline."""
        return [bytes(document["data"]) for document in self.baselines.find({"task": task})]


def _numbered(task: str, number: int) -> str:
    return f"{task}:{number:012d}"


def _number(document: Document) -> int:
    return int(str(document["_id"]).rpartition(":")[2])


def _without_id(document: Document) -> Document:
    return {key: value for key, value in document.items() if key != "_id"}
