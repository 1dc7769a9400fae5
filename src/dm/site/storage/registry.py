"""Stations, storages and experiment types: short lists that an administrator keeps."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping
from sqlalchemy.exc import IntegrityError

from dm.common.errors import InvalidArgument, ObjectAlreadyExists
from dm.site import rules
from dm.site.database import registry_store
from dm.site.database.store import Store

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,255}")


def record(row: RowMapping) -> dict[str, Any]:
    """Return the published record: id, name, description (and host and storageDirectory of a storage)."""
    result = {"id": row["id"], "name": row["name"], "description": row["description"]}
    if "root_directory" in row:
        result |= {"storageHost": row["host"], "storageDirectory": row["root_directory"]}
    return result


class Registry:
    """The use cases."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of a kind: ``station``, ``storage`` or ``experiment type``; newest last."""
        with self._store.transaction() as connection:
            return [record(row) for row in registry_store.rows(connection, kind)]

    def add_station(self, name: str, description: str = "") -> dict[str, Any]:
        """Add a station. :raises ObjectAlreadyExists: there is one of that name."""
        return self._add("station", {"name": rules.object_name(name, "Station name")}, description)

    def add_experiment_type(self, name: str, description: str = "") -> dict[str, Any]:
        """Add an experiment type. :raises ObjectAlreadyExists: there is one of that name."""
        return self._add("experiment type", {"name": rules.object_name(name, "Experiment type")}, description)

    def add_storage(self, name: str, host: str, root_directory: str, description: str = "") -> dict[str, Any]:
        """Add a storage.

        :param name: also, in lower case, the scheme of storage URLs.
        :param root_directory: existing absolute directory that holds the stations' directories.
        :raises ObjectAlreadyExists: there is one of that name. :raises InvalidArgument: no such directory.
        """
        if not _SCHEME.fullmatch(name):
            raise InvalidArgument(f"Storage name {name[:80]!a} is no URL scheme; use letters, digits and + . - only.")
        if not _HOST.fullmatch(host):
            raise InvalidArgument(f"Host {host[:80]!a} is no host name or address.")
        path = Path(rules.plain_text(root_directory, "Storage directory"))
        if not path.is_absolute() or not path.is_dir():
            raise InvalidArgument(f"Storage directory {root_directory!a} is not an existing absolute directory.")
        # The one place where links are followed: from here on the real path is what everything is compared with.
        real = os.path.realpath(path)
        return self._add("storage", {"name": name, "host": host, "root_directory": real}, description)

    def _add(self, kind: str, values: dict[str, Any], description: str) -> dict[str, Any]:
        values["description"] = rules.plain_text(description, "Description")
        try:
            with self._store.transaction() as connection:
                return record(registry_store.add(connection, kind, values))
        except IntegrityError:
            raise ObjectAlreadyExists(f"{kind.capitalize()} {values['name']!a} already exists.") from None
