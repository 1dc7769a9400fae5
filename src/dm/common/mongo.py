"""Durable bulk writes that cost one flush to disk, on MongoDB and on the small embedded server alike.

MongoDB flushes its journal once for a bulk write that asks for it. The embedded server takes every document of a bulk
as a transaction of its own and flushes each: 2 ms and more per document. There - and on any server that is not a
replica set - the documents are written without asking for a flush, and one small write that does ask follows: both
kinds of server keep a single sequential log, so what is before it in the log is on disk when it is.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError, WriteConcernError
from pymongo.write_concern import WriteConcern

DURABLE = WriteConcern("majority", j=True)
_QUICK = WriteConcern(1)

Document = dict[str, Any]


def _unwritten(collection: Collection[Document], operations: Sequence[Any], first: int) -> tuple[list[Document], bool]:
    """Write, and return what could not be written, and whether all else changed something."""
    if not operations:
        return [], True
    try:
        done = collection.bulk_write(operations, ordered=False)
    except BulkWriteError as error:
        details = error.details or {}
        if concerns := details.get("writeConcernErrors"):
            code = concerns[0].get("code")
            raise WriteConcernError(str(concerns[0].get("errmsg")), code, concerns[0]) from error
        return [{**one, "index": one["index"] + first} for one in details.get("writeErrors", ())], False
    return [], done.inserted_count + done.modified_count + done.upserted_count >= len(operations)


class BulkWrites:
    """Bulk writes into one database.

    Write through :meth:`of` and call :meth:`seal` before anybody is told that the documents are stored::

        bulk.of(collection).bulk_write(operations, ordered=False)
        bulk.seal()

    :param database: its client decides; the server is asked at the first write.
    :param collection: holds the one small document that :meth:`seal` writes.
    """

    def __init__(self, database: Database[Document], collection: str = "seals") -> None:
        self._database = database
        self._seals = database.get_collection(collection, write_concern=DURABLE)
        self._lock = threading.Lock()
        self._replicated: bool | None = None

    def _is_replicated(self) -> bool:
        with self._lock:
            if self._replicated is None:
                # A member of a replica set may lose what only it has seen: there, each bulk waits for the majority.
                hello = self._database.client.admin.command("hello")
                self._replicated = bool(hello.get("setName") or hello.get("msg") == "isdbgrid")
            return self._replicated

    def of(self, collection: Collection[Document]) -> Collection[Document]:
        """Return the collection to write the documents into."""
        return collection.with_options(write_concern=DURABLE if self._is_replicated() else _QUICK)

    def write(self, collection: Collection[Document], operations: Sequence[Any]) -> list[Document]:
        """Write documents in any order; they are on disk when this returns, no :meth:`seal` is needed.

        :returns: what could not be written, as the server says (``index``, ``code``, ``errmsg``).
        :raises WriteConcernError: nobody knows what is on disk.
        """
        if self._is_replicated():
            return _unwritten(collection.with_options(write_concern=DURABLE), operations, 0)[0]
        # The last one is the seal of those before it, if it changes anything.
        failed, _ = _unwritten(collection.with_options(write_concern=_QUICK), operations[:-1], 0)
        last, changed = _unwritten(collection.with_options(write_concern=DURABLE), operations[-1:], len(operations) - 1)
        if not changed:
            self.seal()
        return failed + last

    def seal(self) -> None:
        """Return when all that was written through :meth:`of` is on disk."""
        if not self._is_replicated():
            self._seals.update_one({"_id": "seal"}, {"$inc": {"count": 1}}, upsert=True)
