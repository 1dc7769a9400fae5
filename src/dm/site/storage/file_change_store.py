"""SQL about published files that are replaced by another form of themselves, or deleted."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, update

from dm.common import digests
from dm.site.database.tables import published_files
from dm.site.storage.file_store import path_key


def replace(connection: Connection, row: RowMapping, path: bytes, line: dict[str, Any]) -> None:
    """Record a file under its new path, as its manifest line says; it keeps its number."""
    content = line.get("content")
    connection.execute(
        update(published_files)
        .where(
            published_files.c.experiment_id == row["experiment_id"],
            published_files.c.root == row["root"],
            published_files.c.path_key == row["path_key"],
        )
        .values(
            path=path,
            path_key=path_key(path),
            size=line["size"],
            digest=bytes.fromhex(line["digests"][digests.VERIFICATION]),
            md5=None,
            version=line["version"],
            batch_id=line["batch"],
            published=func.clock_timestamp(),
            compression=line.get("compression"),
            content_size=content["size"] if content else None,
            content_digest=bytes.fromhex(content["digests"][digests.VERIFICATION]) if content else None,
        )
    )


def forget(connection: Connection, experiment_id: int, root: str, paths: list[bytes]) -> None:
    """Remove the records of these files."""
    connection.execute(
        delete(published_files).where(
            published_files.c.experiment_id == experiment_id,
            published_files.c.root == root,
            published_files.c.path_key.in_([path_key(path) for path in paths]),
        )
    )
