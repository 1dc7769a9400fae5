"""Durable bulk writes that cost one flush to disk, on MongoDB and on the small embedded server alike.

MongoDB flushes its journal once for a bulk write that asks for it. The embedded server takes every document of a bulk
as a transaction of its own and flushes each: 2 ms and more per document. There - and on any server that is not a
replica set - the documents are written without asking for a flush, and one small write that does ask follows: both
kinds of server keep a single sequential log, so what is before it in the log is on disk when it is.
"""

from __future__ import annotations

import threading
from typing import Any

from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.write_concern import WriteConcern

DURABLE = WriteConcern("majority", j=True)
_QUICK = WriteConcern(1)

Document = dict[str, Any]


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

    def seal(self) -> None:
        """Return when all that was written through :meth:`of` is on disk."""
        if not self._is_replicated():
            self._seals.update_one({"_id": "seal"}, {"$inc": {"count": 1}}, upsert=True)
