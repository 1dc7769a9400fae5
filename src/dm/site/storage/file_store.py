"""SQL about published files: what is in the experiments, verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, delete, func, select, text, update

from dm.site.database.tables import published_files

_CHUNK = 5000


_UPSERT = text(
    "INSERT INTO published_files"
    " (experiment_id, root, path_key, path, size, mtime_ns, digest, md5, version, source, batch_id, published)"
    " SELECT :experiment, :root, t.key, t.path, t.size, t.mtime, t.digest, t.md5, t.version, :source,"
    "  CAST(:batch AS uuid), clock_timestamp()"
    " FROM unnest(CAST(:keys AS bytea[]), CAST(:paths AS bytea[]), CAST(:sizes AS bigint[]),"
    "  CAST(:mtimes AS bigint[]), CAST(:digests AS bytea[]), CAST(:md5s AS bytea[]), CAST(:versions AS int[]))"
    "  AS t(key, path, size, mtime, digest, md5, version)"
    " ON CONFLICT (experiment_id, root, path_key) DO UPDATE SET size = excluded.size,"
    "  mtime_ns = excluded.mtime_ns, digest = excluded.digest, md5 = excluded.md5, version = excluded.version,"
    "  source = excluded.source, batch_id = excluded.batch_id, published = excluded.published, damaged = NULL"
    # What is known of compressed contents is not known of others.
    ", compression = CASE WHEN published_files.digest = excluded.digest THEN published_files.compression END"
    ", content_size = CASE WHEN published_files.digest = excluded.digest THEN published_files.content_size END"
    ", content_digest = CASE WHEN published_files.digest = excluded.digest THEN published_files.content_digest END"
)
_BY_PATHS = select(published_files).where(
    published_files.c.experiment_id == bindparam("experiment"),
    published_files.c.root == bindparam("below"),
    published_files.c.path_key == func.any(text("CAST(:keys AS bytea[])")),
)


@dataclass(frozen=True)
class Published:
    """One file as published.

    :param digest: xxh3_128, 16 bytes. :param md5: 16 bytes or ``None``.
    """

    path: bytes
    size: int
    mtime_ns: int
    digest: bytes
    md5: bytes | None
    version: int


def path_key(path: bytes) -> bytes:
    """Return the key under which a path is found."""
    return hashlib.sha256(path).digest()


def by_paths(connection: Connection, experiment_id: int, root: str, wanted: Sequence[bytes]) -> dict[bytes, RowMapping]:
    """Return the rows of those paths that are published, by path."""
    found: dict[bytes, RowMapping] = {}
    for start in range(0, len(wanted), _CHUNK):
        keys = [path_key(path) for path in wanted[start : start + _CHUNK]]
        for row in connection.execute(_BY_PATHS, {"experiment": experiment_id, "below": root, "keys": keys}).mappings():
            found[bytes(row["path"])] = row
    return found


def upsert(
    connection: Connection, experiment_id: int, root: str, files: Sequence[Published], *, source: str, batch_id: str
) -> None:
    """Record files as published by a batch. A file keeps its number, so lists paged by number stay in order."""
    for start in range(0, len(files), _CHUNK):
        part = files[start : start + _CHUNK]
        connection.execute(
            _UPSERT,
            {
                "experiment": experiment_id,
                "root": root,
                "source": source,
                "batch": batch_id,
                "keys": [path_key(file.path) for file in part],
                "paths": [file.path for file in part],
                "sizes": [file.size for file in part],
                "mtimes": [file.mtime_ns for file in part],
                "digests": [file.digest for file in part],
                "md5s": [file.md5 for file in part],
                "versions": [file.version for file in part],
            },
        )


def one(connection: Connection, experiment_id: int, root: str, path: bytes) -> RowMapping | None:
    """Return the row of one path."""
    statement = select(published_files).where(
        published_files.c.experiment_id == experiment_id,
        published_files.c.root == root,
        published_files.c.path_key == path_key(path),
    )
    return connection.execute(statement).mappings().one_or_none()


def note_md5(connection: Connection, row: RowMapping, md5: bytes) -> None:
    """Keep an md5 computed later, unless the file was replaced meanwhile."""
    connection.execute(
        update(published_files)
        .where(published_files.c.id == row["id"], published_files.c.version == row["version"])
        .values(md5=md5)
    )


def page(connection: Connection, experiment_id: int, root: str | None, after: int, limit: int) -> Sequence[RowMapping]:
    """Return published files with a number greater than ``after``, oldest first."""
    statement = (
        select(published_files)
        .where(published_files.c.experiment_id == experiment_id, published_files.c.id > after)
        .order_by(published_files.c.id)
        .limit(limit)
    )
    if root is not None:
        statement = statement.where(published_files.c.root == root)
    return connection.execute(statement).mappings().all()


def totals(connection: Connection, experiment_id: int) -> tuple[int, int]:
    """Return count and bytes of an experiment's published files."""
    row = connection.execute(
        select(func.count(), func.coalesce(func.sum(published_files.c.size), 0)).where(
            published_files.c.experiment_id == experiment_id
        )
    ).one()
    return int(row[0]), int(row[1])


def fingerprint(connection: Connection, experiment_id: int, root: str | None) -> tuple[int, Any, int, int]:
    """Return count, time of the last publication, sum of versions, sum of sizes: changes with every publication."""
    columns = published_files.c
    statement = select(
        func.count(),
        func.max(columns.published),
        func.coalesce(func.sum(columns.version), 0),
        func.coalesce(func.sum(columns.size), 0),
    ).where(columns.experiment_id == experiment_id)
    if root is not None:
        statement = statement.where(columns.root == root)
    row = connection.execute(statement).one()
    return int(row[0]), row[1], int(row[2]), int(row[3])


def in_path_order(connection: Connection, experiment_id: int, root: str | None) -> Iterator[Any]:
    """Yield root, path, size, mtime_ns, digest, version of all published files, ordered by root and path bytes."""
    columns = published_files.c
    statement = (
        select(columns.root, columns.path, columns.size, columns.mtime_ns, columns.digest, columns.version)
        .where(columns.experiment_id == experiment_id)
        .order_by(columns.root, columns.path)
    )
    if root is not None:
        statement = statement.where(columns.root == root)
    yield from connection.execution_options(yield_per=5000).execute(statement)


def forget(connection: Connection, experiment_id: int) -> int:
    """Remove all rows of an experiment and return how many."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))  # millions take longer than a request may
    return connection.execute(delete(published_files).where(published_files.c.experiment_id == experiment_id)).rowcount
