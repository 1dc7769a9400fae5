"""Which storage a new experiment goes to."""

from __future__ import annotations

import shutil

from sqlalchemy import Connection, RowMapping

from dm.common.errors import InvalidArgument, InvalidObjectState
from dm.site.database import registry_store


def choose(connection: Connection, station: RowMapping, name: str | None) -> RowMapping:
    """Return the storage named, else the station's own, else, of those in use, the one with the most free space.

    :raises ObjectNotFound: none of that name. :raises InvalidObjectState: it takes no new experiments.
    :raises InvalidArgument: there is none to choose from.
    """
    rows = registry_store.rows(connection, "storage")
    chosen = registry_store.required(connection, "storage", name) if name else None
    if chosen is None and station["default_storage_id"] is not None:
        chosen = next(row for row in rows if row["id"] == station["default_storage_id"])
    if chosen is not None:
        refuse_retired(chosen)
        return chosen
    open_ones = [row for row in rows if not row["retired"]]
    if not open_ones:
        raise InvalidArgument("No storage takes new experiments; add one with dm-add-storage.")
    return max(open_ones, key=lambda row: (free_bytes(row["root_directory"]), -row["id"]))


def refuse_retired(storage: RowMapping) -> None:
    """Return if a storage takes new experiments. :raises InvalidObjectState: it is retired."""
    if storage["retired"]:
        raise InvalidObjectState(f"Storage {storage['name']!a} is retired and takes no new experiments; name another.")


def free_bytes(directory: str) -> int:
    """Return how much may be written below a directory; 0 if that cannot be told."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
