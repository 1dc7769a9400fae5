"""The catalog's database: the only module that talks to MongoDB.

Documents of one kind (files, datasets, runs) live in one collection, a :class:`Shelf`. ``_id`` is for point access
only and begins with the numeric experiment id. Lists page by ``listKey``, ``<experiment id>:<sequence>``, in windows of
a bounded number of sequence numbers: a query over a whole large experiment would keep a small server from answering
anybody else. Only commands of MongoDB's Stable API, single-field indexes, majority and journaled writes.

A document carries ``rev``; every update names the revision it was computed from, so that of two concurrent writers one
finds out and computes again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pymongo
from pymongo import InsertOne, MongoClient, ReturnDocument, UpdateOne, errors
from pymongo.cursor import Cursor
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DocumentTooLarge, DuplicateKeyError, InvalidURI, PyMongoError

from dm.common.errors import ConfigurationError, ServiceLimit, ServiceUnavailable
from dm.common.mongo import DURABLE, BulkWrites

Document = dict[str, Any]

DEFAULT_DATABASE = "dmCatalog"
WINDOW = 2000
"""Sequence numbers covered by one query of a list."""

BATCH = 250
"""Documents per read or write command."""

_SEQUENCE_DIGITS = 16
_DUPLICATE_KEY = 11000
_DATABASE_SECONDS = 10
_PING_SECONDS = 8


@dataclass(frozen=True)
class ExperimentRef:
    """What the catalog needs to know of an experiment.

    :param id: the site's numeric id; names change and are reused, the id is neither.
    :param name: its name now.
    """

    id: int
    name: str


@dataclass(frozen=True)
class Update:
    """A change of one document.

    :param id: its ``_id``.
    :param revision: the ``rev`` the change was computed from.
    :param fields: top-level fields to set.
    """

    id: str
    revision: int
    fields: Mapping[str, Any]


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what the driver raises into our family."""
    try:
        yield
    except DocumentTooLarge as error:
        raise ServiceLimit(f"The record is too large for the catalog's database: {error}.") from error
    except PyMongoError as error:
        reason = str(error).split(",", 1)[0].split("\n", 1)[0][:200]
        raise ServiceUnavailable(f"The catalog's database does not answer ({reason}); try again later.") from error


def list_key(experiment_id: int, sequence: int) -> str:
    """Return the key by which lists are ordered."""
    return f"{experiment_id}:{sequence:0{_SEQUENCE_DIGITS}d}"


def sequence_of(document: Mapping[str, Any]) -> int:
    """Return the sequence number of a stored document."""
    return int(document["listKey"].rpartition(":")[2])


class Store:
    """A connection to the catalog's database.

    :param url: ``mongodb://`` URL; its path names the database (default ``dmCatalog``).
    :raises ConfigurationError: not such a URL.
    """

    def __init__(self, url: str) -> None:
        try:
            self._client: MongoClient[Document] = MongoClient(
                url,
                appname="dm-catalog",
                connect=False,
                serverSelectionTimeoutMS=_DATABASE_SECONDS * 1000,
                connectTimeoutMS=_DATABASE_SECONDS * 1000,
                socketTimeoutMS=6 * _DATABASE_SECONDS * 1000,
            )
            self._database: Database[Document] = self._client.get_default_database(
                DEFAULT_DATABASE, write_concern=DURABLE
            )
        except (InvalidURI, errors.ConfigurationError, ValueError) as error:
            raise ConfigurationError(f"The catalog's database URL is not usable: {error}.") from None
        bulk = BulkWrites(self._database)
        self.files = Shelf(self._database, "files", bulk, chunk=200)
        self.datasets = Shelf(self._database, "datasets", bulk, chunk=10)
        self.runs = Shelf(self._database, "runs", bulk, chunk=10)
        self.operations = self._database["operations"]
        self.operation_parts = self._database["operationParts"]

    def prepare(self) -> None:
        """Make the indexes (harmless when they exist)."""
        with database_errors():
            for shelf in (self.files, self.datasets, self.runs):
                shelf.collection.create_index([("listKey", pymongo.ASCENDING)])
            self.datasets.collection.create_index([("callerId", pymongo.ASCENDING)])
            self.operations.create_index([("status", pymongo.ASCENDING)])

    def ping(self) -> None:
        """Ask the database whether it is there.

        :raises ServiceUnavailable: it is not.
        """
        with database_errors(), pymongo.timeout(_PING_SECONDS):
            self._client.admin.command("ping")

    def approximate_counts(self) -> dict[str, int]:
        """Return kind -> number of documents, from the database's own statistics."""
        with database_errors(), pymongo.timeout(_PING_SECONDS):
            return {
                shelf.kind: shelf.collection.estimated_document_count()
                for shelf in (self.files, self.datasets, self.runs)
            }

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


class Shelf:
    """The documents of one kind.

    :param kind: also the collection's name.
    :param bulk: makes bulk writes durable at one flush each.
    :param chunk: documents held in memory at a time while scanning.
    """

    def __init__(self, database: Database[Document], kind: str, bulk: BulkWrites, chunk: int) -> None:
        self.kind = kind
        self._bulk = bulk
        self.chunk = chunk
        self.collection = database[kind]
        self._counters = database["counters"]

    def get(self, ids: Sequence[str]) -> dict[str, Document]:
        """Return the documents with these ``_id``, by ``_id``; missing ones are left out."""
        found: dict[str, Document] = {}
        with database_errors():
            for start in range(0, len(ids), BATCH):
                part = list(ids[start : start + BATCH])
                condition: Any = part[0] if len(part) == 1 else {"$in": part}
                for document in self.collection.find({"_id": condition}):
                    found[document["_id"]] = document
        return found

    def find(self, field: str, value: str, limit: int = 100) -> list[Document]:
        """Return documents by an indexed field."""
        with database_errors():
            return list(self.collection.find({field: value}).limit(limit))

    def allocate(self, experiment: ExperimentRef, count: int) -> range:
        """Return ``count`` new sequence numbers of an experiment; numbers may stay unused."""
        with database_errors():
            counter = self._counters.find_one_and_update(
                {"_id": f"{self.kind}:{experiment.id}"},
                {
                    "$inc": {"last": count},
                    "$set": {"kind": self.kind, "experimentId": experiment.id, "experimentName": experiment.name},
                },
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        last = int((counter or {})["last"])
        return range(last - count + 1, last + 1)

    def insert(self, document: Document) -> bool:
        """Store a new document; ``False`` when its ``_id`` is taken."""
        with database_errors():
            try:
                self.collection.insert_one(document)
            except DuplicateKeyError:
                return False
        return True

    def write(self, inserts: Sequence[Document], updates: Sequence[Update]) -> bool:
        """Write many documents.

        :returns: ``False`` when some met a newer document: read again, compute again, write again.
        """
        operations: list[InsertOne[Document] | UpdateOne] = [InsertOne(document) for document in inserts]
        operations += [
            UpdateOne(
                {"_id": update.id, "rev": update.revision}, {"$set": {**update.fields, "rev": update.revision + 1}}
            )
            for update in updates
        ]
        landed = 0
        with database_errors():
            for start in range(0, len(operations), BATCH):
                try:
                    result = self._bulk.of(self.collection).bulk_write(operations[start : start + BATCH], ordered=False)
                    landed += result.inserted_count + result.matched_count
                except BulkWriteError as error:
                    if any(
                        failure.get("code") != _DUPLICATE_KEY
                        for failure in (error.details or {}).get("writeErrors", [{}])
                    ):
                        raise
            if operations:
                self._bulk.seal()
        return landed == len(operations)

    def delete(self, document_id: str) -> bool:
        """Delete one document; ``False`` when there was none."""
        with database_errors():
            return self.collection.delete_one({"_id": document_id}).deleted_count > 0

    def windows(self, experiment_id: int, after: int = 0) -> Iterator[dict[str, str]]:
        """Yield conditions on ``listKey`` that together cover the experiment's documents as of now."""
        counter = self.counter(experiment_id)
        first, last = max(after, int(counter.get("first", 0))), int(counter.get("last", 0))
        for start in range(first, last, WINDOW):
            end = min(start + WINDOW, last)
            yield {"$gt": list_key(experiment_id, start), "$lte": list_key(experiment_id, end)}

    def scan(
        self,
        experiment_id: int,
        after: int = 0,
        prefilter: Mapping[str, Any] | None = None,
        wanted: int = WINDOW,
    ) -> Iterator[tuple[int, list[Document]]]:
        """Yield the experiment's documents in list order, a few at a time.

        :param after: sequence number to start behind.
        :param prefilter: further conditions.
        :param wanted: how many documents the caller expects to take, so that a short list reads few.
        :yields: sequence number up to which everything has been seen, and the documents.
        """
        limit = max(1, min(wanted, WINDOW))
        for window in self.windows(experiment_id, after):
            start, end = window["$gt"], window["$lte"]
            while start < end:
                condition = {"listKey": {"$gt": start, "$lte": end}, **(prefilter or {})}
                count = 0
                with database_errors(), self._cursor(condition, limit) as cursor:
                    while documents := list(itertools.islice(cursor, self.chunk)):
                        count += len(documents)
                        start = documents[-1]["listKey"]
                        yield sequence_of(documents[-1]), documents
                if count < limit:
                    start = end
                limit = WINDOW
            yield int(end.rpartition(":")[2]), []

    def _cursor(self, condition: Mapping[str, Any], limit: int) -> Cursor[Document]:
        cursor = self.collection.find(condition).sort("listKey", pymongo.ASCENDING)
        return cursor.limit(limit).batch_size(self.chunk)

    def group(self, experiment_id: int, accumulators: Mapping[str, Any], after: int = 0) -> Iterator[Document]:
        """Yield the accumulators' values of each window that has documents.

        :param accumulators: MongoDB accumulator expressions by name.
        """
        for window in self.windows(experiment_id, after):
            pipeline = [{"$match": {"listKey": window}}, {"$group": {"_id": None, **accumulators}}]
            with database_errors():
                for values in self.collection.aggregate(pipeline):
                    yield {**values, "upTo": int(window["$lte"].rpartition(":")[2])}

    def any(self, experiment_id: int) -> Document | None:
        """Return the experiment's first document, if it has one."""
        return next((document for _, found in self.scan(experiment_id, wanted=1) for document in found), None)

    def delete_all(self, experiment_id: int) -> int:
        """Delete the experiment's documents as of now; return how many there were."""
        deleted = last = 0
        for window in self.windows(experiment_id):
            with database_errors():
                deleted += self.collection.delete_many({"listKey": window}).deleted_count
            last = int(window["$lte"].rpartition(":")[2])
        if last:
            self.set_counter(experiment_id, first=last)  # later lists need not walk through the empty windows
        return deleted

    def counter(self, experiment_id: int) -> Document:
        """Return the experiment's counter document; empty when nothing was ever stored."""
        with database_errors():
            return self._counters.find_one({"_id": f"{self.kind}:{experiment_id}"}) or {}

    def set_counter(self, experiment_id: int, **fields: Any) -> None:
        """Set fields of the counter document."""
        with database_errors():
            self._counters.update_one({"_id": f"{self.kind}:{experiment_id}"}, {"$set": fields}, upsert=True)

    def experiments(self) -> list[ExperimentRef]:
        """Return the experiments that ever had documents here, with the names they had then."""
        with database_errors():
            return [
                ExperimentRef(int(counter["experimentId"]), counter["experimentName"])
                for counter in self._counters.find({"kind": self.kind})
            ]
