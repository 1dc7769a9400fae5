"""The station's documents in a backup: BSON by collection, read over the wire protocol.

Where the server can (a replica set), everything is read as of one moment. The embedded server is read from a copy of
its files made by SQLite's own backup, one moment for each database. On a single MongoDB collections are read one after
the other; every document then is one that was there, and what refers to what is put right by the services when they
start, as after a crash.
"""

from __future__ import annotations

import contextlib
import gzip
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from dm.common.embedded import EmbeddedMongo
from dm.common.errors import ProcessingError, ServiceUnavailable

DEFAULT = "dm"
_BATCH_BYTES = 8 << 20
_BATCH = 500
_SNAPSHOT_WIRE_VERSION = 13  # MongoDB 5.0
_TRIFLES = ("seals",)


@contextlib.contextmanager
def opened(url: str) -> Iterator[Any]:
    """Connect and yield the database that the URL names. :raises ServiceUnavailable: it does not answer."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    client: MongoClient[dict[str, Any]] = MongoClient(url, serverSelectionTimeoutMS=10_000)
    try:
        client.admin.command("ping")
        yield client.get_default_database(DEFAULT)
    except PyMongoError as error:
        raise ServiceUnavailable(f"The station's database does not answer: {type(error).__name__}: {error}.") from None
    finally:
        client.close()


@contextlib.contextmanager
def copied(server: EmbeddedMongo, directory: Path) -> Iterator[EmbeddedMongo]:
    """Run a second embedded server on a consistent copy of another one's files, which goes on meanwhile."""
    copy = EmbeddedMongo(directory)
    copy.data.mkdir(parents=True, mode=0o700)
    for file in sorted(server.data.glob("*.db")):
        source = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)
        target = sqlite3.connect(copy.data / file.name)
        try:
            source.backup(target)
        except sqlite3.Error as error:
            raise ProcessingError(f"Database file {file} cannot be copied: {error}.") from None
        finally:
            target.close()
            source.close()
    copy.start()
    try:
        yield copy
    finally:
        copy.stop()


def dump(url: str, directory: Path, prefix: str) -> list[tuple[str, dict[str, Any]]]:
    """Write one file per collection, ``<prefix>-<number>.bson.gz``.

    :returns: file name and ``collection``, ``count``, ``indexes`` of each.
    """
    from bson.codec_options import CodecOptions
    from bson.raw_bson import RawBSONDocument

    found = []
    with opened(url) as database, _moment(database.client) as session:
        names = sorted(name for name in database.list_collection_names() if not name.startswith("system."))
        for number, name in enumerate(names):
            file = f"{prefix}-{number:03d}.bson.gz"
            collection = database.get_collection(name, codec_options=CodecOptions(RawBSONDocument))
            count = 0
            with gzip.open(directory / file, "wb", compresslevel=3) as output:
                options = {"session": session} if session is not None else {}
                for document in collection.find({}, **options):
                    output.write(document.raw)
                    count += 1
            indexes = [
                {"name": key, "keys": [list(pair) for pair in value["key"]], "unique": bool(value.get("unique"))}
                for key, value in database[name].index_information().items()
                if key != "_id_"
            ]
            found.append((file, {"collection": name, "count": count, "indexes": indexes}))
    return found


@contextlib.contextmanager
def _moment(client: Any) -> Iterator[Any]:
    """Yield a session that sees one moment, where the server can give one, else ``None``."""
    hello = client.admin.command("hello")
    if "setName" not in hello or hello.get("maxWireVersion", 0) < _SNAPSHOT_WIRE_VERSION:
        yield None
        return
    with client.start_session(snapshot=True) as session:
        yield session


def documents(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the raw documents of a collection's file. :raises ProcessingError: it is damaged."""
    try:
        with gzip.open(stream, "rb") as unzipped:
            while head := unzipped.read(4):
                length = int.from_bytes(head, "little", signed=True)
                rest = unzipped.read(length - 4) if 5 <= length <= (48 << 20) else b""
                if len(rest) != length - 4:
                    raise ProcessingError("A collection in the backup breaks off.")
                yield head + rest
    except (OSError, EOFError) as error:
        raise ProcessingError(f"A collection in the backup cannot be read: {error}.") from None


def checked(stream: IO[bytes], about: dict[str, Any]) -> None:
    """Read a collection's file through. :raises ProcessingError: damaged, or not as many documents as were written."""
    from bson import decode
    from bson.errors import BSONError

    count = 0
    for raw in documents(stream):
        try:
            decode(raw)
        except BSONError as error:
            raise ProcessingError(f"Collection {about['collection']} has a document that is none: {error}.") from None
        count += 1
    if count != about["count"]:
        raise ProcessingError(f"Collection {about['collection']} has {count} documents instead of {about['count']}.")


def is_new(url: str) -> bool:
    """Whether a database has no documents worth keeping."""
    with opened(url) as database:
        names = [name for name in database.list_collection_names() if not name.startswith("system.")]
        return all(database[name].find_one({}) is None for name in names if name not in _TRIFLES)


def restore(url: str, collections: Iterable[tuple[Path, dict[str, Any]]]) -> int:
    """Replace all collections of a database; return how many documents there are then.

    :raises ProcessingError: not all could be written.
    """
    from bson.raw_bson import RawBSONDocument
    from pymongo import WriteConcern

    total = 0
    with opened(url) as database:
        for name in database.list_collection_names():
            if not name.startswith("system."):
                database.drop_collection(name)
        for file, about in collections:
            collection = database.get_collection(about["collection"], write_concern=WriteConcern(1))
            with file.open("rb") as stream:
                for batch in _batches(documents(stream)):
                    collection.insert_many([RawBSONDocument(raw) for raw in batch], ordered=False)
            for index in about["indexes"]:
                keys = [(str(key), direction) for key, direction in index["keys"]]
                collection.create_index(keys, name=index["name"], unique=index["unique"])
            count = sum(1 for _ in collection.find({}, {"_id": 1}))
            if count != about["count"]:
                raise ProcessingError(f"Collection {about['collection']} has {count} of {about['count']} documents.")
            total += count
    return total


def _batches(raws: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for raw in raws:
        batch.append(raw)
        size += len(raw)
        if len(batch) >= _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
