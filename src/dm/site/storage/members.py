"""Members of experiments and the free metadata that scripts keep with an experiment."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping

from dm.common.errors import InvalidArgument, ObjectAlreadyExists, ObjectNotFound, ServiceLimit
from dm.site import rules
from dm.site.database.store import Store
from dm.site.database.tables import experiment_roles
from dm.site.identity import audit, user_store
from dm.site.identity.user_store import Role
from dm.site.identity.users import give_role, required_user
from dm.site.storage import experiment_records, experiment_store
from dm.site.storage.experiments import Reference, find


class Members:
    """The use cases."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_role(self, username: str, role: str, reference: Reference) -> dict[str, Any]:
        """Give a user the role ``User`` or ``PI``.

        :returns: username, roleName, experimentName, stationName.
        :raises ObjectAlreadyExists: has it already. :raises ObjectNotFound: no such user or experiment.
        """
        role = rules.role(role, rules.EXPERIMENT_ROLES)
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            if not give_role(connection, username, role, row["id"]):
                raise ObjectAlreadyExists(f"User {username!a} already has role {role!a} in experiment {row['name']!a}.")
            audit.record(connection, "role.given", username, role=role, experiment=_name(row), experimentId=row["id"])
        return _record(username, role, row["name"], row["station_name"])

    def delete_role(self, username: str, role: str, reference: Reference) -> dict[str, Any]:
        """Take a role. :raises ObjectNotFound: the user does not have it, or no such user or experiment."""
        role = rules.role(role, rules.EXPERIMENT_ROLES)
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            user = required_user(connection, username)
            if not user_store.remove_role(connection, Role(experiment_roles, user["id"], row["id"], role)):
                raise ObjectNotFound(
                    f"Role {role!a} of user {username!a} in experiment {row['name']!a} does not exist."
                )
            audit.record(connection, "role.taken", username, role=role, experiment=_name(row), experimentId=row["id"])
        return _record(username, role, row["name"], row["station_name"])

    def upsert_metadata(self, key: str, value: Any, reference: Reference) -> dict[str, Any]:
        """Set one key of the experiment's own metadata.

        :param key: 1 to 200 characters, none of the record's own keys.
        :param value: any JSON; the whole of an experiment's metadata stays below 1 MiB.
        :returns: the full record.
        """
        rules.plain_metadata_text(key, key)
        if not 1 <= len(key) <= 200:
            raise InvalidArgument(f"Metadata key {key[:80]!a} has {len(key)} characters; take 1 to 200.")
        if key in experiment_records.RESERVED:
            raise InvalidArgument(f"Metadata key {key!a} is one of the experiment's own; choose another.")
        rules.metadata_value(key, value)
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            metadata = row["metadata"] | {key: value}
            if (size := len(json.dumps(metadata))) > rules.MAX_METADATA_BYTES:
                raise ServiceLimit(
                    f"The metadata of experiment {row['name']!a} would have {size} bytes; "
                    f"{rules.MAX_METADATA_BYTES} is the limit."
                )
            experiment_store.change(connection, row["id"], {"metadata": metadata})
            row = find(connection, Reference(id=row["id"]))
            return experiment_records.full(row, experiment_store.members(connection, row["id"]))

    def delete_metadata(self, key: str, reference: Reference) -> dict[str, Any]:
        """Remove one key of the experiment's own metadata and return the full record.

        :raises ObjectNotFound: there is no such key.
        """
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            if key not in row["metadata"]:
                raise ObjectNotFound(f"Metadata key {key[:80]!a} does not exist in experiment {row['name']!a}.")
            metadata = {name: value for name, value in row["metadata"].items() if name != key}
            experiment_store.change(connection, row["id"], {"metadata": metadata})
            row = find(connection, Reference(id=row["id"]))
            return experiment_records.full(row, experiment_store.members(connection, row["id"]))

    def pin(self, username: str, days: float, reference: Reference) -> dict[str, Any]:
        """Keep an experiment from being deleted for so many days from now; 0 ends that. Return the full record."""
        if not 0 <= days <= 36_500:
            raise InvalidArgument(f"{days:g} days are not 0 to 36500.")
        now = datetime.now(UTC)
        values: dict[str, Any] = {"pinned": None, "pinned_until": None, "pinned_by": None}
        if days:
            values = {"pinned": now, "pinned_until": now + timedelta(days=days), "pinned_by": username}
        with self._store.transaction() as connection:
            row = find(connection, reference, lock=True)
            experiment_store.change(connection, row["id"], values)
            event = "experiment.pinned" if days else "experiment.unpinned"
            audit.record(connection, event, _name(row), experimentId=row["id"], days=days)
            row = find(connection, Reference(id=row["id"]))
            return experiment_records.full(row, experiment_store.members(connection, row["id"]))


def _name(row: RowMapping) -> str:
    return f"{row['name']}/{row['station_name']}"


def _record(username: str, role: str, experiment: str, station: str) -> dict[str, Any]:
    return {"username": username, "roleName": role, "experimentName": experiment, "stationName": station}
