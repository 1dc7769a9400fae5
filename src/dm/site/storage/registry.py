"""Stations, storages and experiment types: short lists that an administrator keeps."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from dm.common.errors import InvalidArgument, InvalidObjectState, ObjectAlreadyExists
from dm.site import rules
from dm.site.database import registry_store
from dm.site.database.store import Store
from dm.site.identity import audit
from dm.site.storage import layout, storages

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,255}")


def record(row: RowMapping) -> dict[str, Any]:
    """Return the published record: id, name, description.

    A storage also has storageHost, storageDirectory and, when it takes no new experiments, ``retired``; a station
    pathTemplate and defaultStorageId where they are set.
    """
    result = {"id": row["id"], "name": row["name"], "description": row["description"]}
    if "root_directory" in row:
        result |= {"storageHost": row["host"], "storageDirectory": row["root_directory"]}
    if row.get("retired"):
        result["retired"] = True
    for key, column in (("pathTemplate", "path_template"), ("defaultStorageId", "default_storage_id")):
        if row.get(column):
            result[key] = row[column]
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
        _checked_host(host)
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

    def update_station(
        self,
        name: str,
        description: str | None = None,
        path_template: str | None = None,
        storage: str | None = None,
    ) -> dict[str, Any]:
        """Change a station; ``None`` leaves a value.

        :param path_template: see :mod:`dm.site.storage.layout`; for experiments added from now on. Empty: none.
        :param storage: of experiments added from now on. Empty: none in particular.
        :raises ObjectNotFound: no such station or storage. :raises InvalidArgument: no such template can be.
        """
        values: dict[str, Any] = {}
        if path_template is not None:
            values["path_template"] = layout.checked(path_template) if path_template else None
        with self._store.transaction() as connection:
            if storage is not None:
                chosen = registry_store.required(connection, "storage", storage) if storage else None
                if chosen is not None:
                    storages.refuse_retired(chosen)
                values["default_storage_id"] = chosen["id"] if chosen is not None else None
            return self._change(connection, "station", name, values, description)

    def update_storage(
        self, name: str, description: str | None = None, host: str | None = None, retired: bool | None = None
    ) -> dict[str, Any]:
        """Change a storage; ``None`` leaves a value.

        :param retired: take no new experiments (those that are there stay), or take them again.
        """
        values: dict[str, Any] = {}
        if host is not None:
            values["host"] = _checked_host(host)
        if retired is not None:
            values["retired"] = retired
        with self._store.transaction() as connection:
            return self._change(connection, "storage", name, values, description)

    def update_experiment_type(
        self, name: str, new_name: str | None = None, description: str | None = None
    ) -> dict[str, Any]:
        """Change an experiment type; ``None`` leaves a value. :raises ObjectAlreadyExists: the new name is taken."""
        values = {"name": rules.object_name(new_name, "Experiment type")} if new_name else {}
        try:
            with self._store.transaction() as connection:
                return self._change(connection, "experiment type", name, values, description)
        except IntegrityError:
            raise ObjectAlreadyExists(f"Experiment type {new_name!a} already exists.") from None

    @staticmethod
    def _change(
        connection: Connection, kind: str, name: str, values: dict[str, Any], description: str | None
    ) -> dict[str, Any]:
        row = registry_store.required(connection, kind, name)
        if description is not None:
            values["description"] = rules.plain_text(description, "Description")
        if values:
            row = registry_store.change(connection, kind, row["id"], values)
            audit.record(connection, f"{kind.replace(' ', '_')}.updated", name, changed=values)
        return record(row)

    def delete(self, kind: str, name: str) -> dict[str, Any]:
        """Delete a station (with the roles at it), storage or experiment type that no experiment ever used.

        :returns: its record. :raises InvalidObjectState: it is used. :raises ObjectNotFound: there is none.
        """
        try:
            with self._store.transaction() as connection:
                row = registry_store.required(connection, kind, name)
                if count := registry_store.experiments_of(connection, kind, row["id"]):
                    raise InvalidObjectState(
                        f"{kind.capitalize()} {name!a} is used by {count} experiments, also deleted ones; it stays."
                    )
                registry_store.remove(connection, kind, row["id"])
                audit.record(connection, f"{kind.replace(' ', '_')}.deleted", name)
                return record(row)
        except IntegrityError:
            raise InvalidObjectState(f"{kind.capitalize()} {name!a} is still in use; it stays.") from None


def _checked_host(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise InvalidArgument(f"Host {host[:80]!a} is no host name or address.")
    return host
