"""Globus groups of experiments: their members are the experiment's, and they may read it on a guest collection.

DM's database is the truth. What is changed at Globus by others is put right at the next comparison and told as drift.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping

from dm.common import timestamps
from dm.common.errors import InvalidArgument, InvalidObjectState, ObjectAlreadyExists, ObjectNotFound
from dm.common.globus import on_collection
from dm.common.texts import storable
from dm.common.web.routes import Principal
from dm.site.database.store import GLOBUS_LOCK, Store, lock, try_lock
from dm.site.identity import audit
from dm.site.storage import globus_store
from dm.site.storage.experiments import Reference, find, find_visible
from dm.site.storage.globus_client import Change, GlobusClient
from dm.site.storage.globus_identities import Identities
from dm.site.storage.outside_settings import GlobusSettings

LOG = logging.getLogger(__name__)

_UNKNOWN_SECONDS = 3600.0
_RANK = {"member": 0, "manager": 1, "admin": 2}


@dataclass(frozen=True)
class Wanted:
    """What Globus should have.

    :param roles: identity name -> role. :param users: identity name -> user, where it is one's.
    :param nameless: users without an identity name. :param path: on the collection, for the access rule; or ``None``.
    """

    roles: dict[str, str]
    users: dict[str, str]
    nameless: list[str]
    path: str | None

    @property
    def hash(self) -> str:
        """Return a text that changes with it."""
        text = json.dumps([sorted(self.roles.items()), sorted(self.nameless), self.path])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class GlobusGroups:
    """The use cases; without settings they all say that there is no Globus here."""

    def __init__(self, store: Store, settings: GlobusSettings | None) -> None:
        self._store = store
        self._settings = settings
        self._client = GlobusClient(settings) if settings else None
        self._identities = Identities(settings) if settings else None

    @property
    def configured(self) -> bool:
        """Whether the site has Globus groups."""
        return self._settings is not None

    @property
    def sync_seconds(self) -> float:
        """How often changed memberships are to be looked for."""
        return self._parts()[0].sync_seconds

    def _parts(self) -> tuple[GlobusSettings, GlobusClient, Identities]:
        if self._settings is None or self._client is None or self._identities is None:
            raise InvalidObjectState("This site has no Globus groups; set [storage.globus] to have them.")
        return self._settings, self._client, self._identities

    # --- use cases --------------------------------------------------------------------------------------------------

    def create(self, reference: Reference) -> dict[str, Any]:
        """Create the group of an experiment with its members, and let them read it on the collection.

        A group that an earlier, broken attempt left at Globus is taken over.

        :returns: see :meth:`record`. :raises ObjectAlreadyExists: it has one, or was given one by hand.
        """
        settings, client, _ = self._parts()
        with self._store.transaction() as connection:
            experiment = find(connection, reference)
            lock(connection, GLOBUS_LOCK, experiment["id"])
            if globus_store.one(connection, experiment["id"]) is not None or experiment["globus_group_id"]:
                given = experiment["globus_group_id"]
                raise ObjectAlreadyExists(f"Experiment {experiment['name']!a} has a Globus group already: {given}.")
            values = {"station": experiment["station_name"], "experiment": experiment["name"], "id": experiment["id"]}
            name = settings.group_name.format_map(values)[:256]
            mark = f"[dm experiment {experiment['id']}]"
            group_id = client.find_group(mark) or client.create_group(
                name, f"Members of experiment {experiment['name']} at {experiment['station_name']}. {mark}"
            )
            globus_store.add(connection, experiment["id"], group_id, name)
            subject = f"{experiment['name']}/{experiment['station_name']}"
            audit.record(connection, "group.added", subject, globus=group_id)
        self.synchronise(experiment["id"], whole=True)
        return self.get_by_id(experiment["id"])

    def get(self, principal: Principal, reference: Reference) -> dict[str, Any]:
        """Return the record of an experiment's group. :raises ObjectNotFound: it has none."""
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
            row = globus_store.one(connection, experiment["id"])
            if row is None:
                if not experiment["globus_group_id"]:
                    raise ObjectNotFound(f"Experiment {experiment['name']!a} has no Globus group.")
                return {
                    "id": experiment["globus_group_id"],
                    "experimentName": experiment["name"],
                    "stationName": experiment["station_name"],
                    "managed": False,
                }
        record = self.record(row)
        if not principal.manages(experiment["station_name"]):
            for key in ("extras", "unknownUsers", "lastError"):
                record.pop(key)
        return record

    def get_by_id(self, experiment_id: int) -> dict[str, Any]:
        """Return the record of the group of an experiment that has one."""
        with self._store.transaction() as connection:
            return self.record(self._required(connection, experiment_id))

    def all(self, principal: Principal) -> list[dict[str, Any]]:
        """Return the records of the groups of the caller's stations."""
        with self._store.transaction() as connection:
            rows = globus_store.every(connection)
        return [self.record(row) for row in rows if principal.manages(row["station_name"])]

    def add_members(
        self, reference: Reference, usernames: Sequence[str], managers: Sequence[str], admins: Sequence[str]
    ) -> dict[str, Any]:
        """Add identities beyond the experiment's members, and compare the group with Globus.

        :param usernames: :param managers: :param admins: users of DM or names of Globus identities, by role.
        """
        _, _, identities = self._parts()
        with self._store.transaction() as connection:
            row = self._locked(connection, reference)
            extras = dict(row["extras"])
            for role, names in (("member", usernames), ("manager", managers), ("admin", admins)):
                for name in names:
                    extras[self._identity(connection, identities, name)] = role
            globus_store.change(connection, row["experiment_id"], extras=extras, not_before=None)
            audit.record(connection, "group.changed", self._subject(row), extras=extras)
        self.synchronise(row["experiment_id"], whole=True)
        return self.get_by_id(row["experiment_id"])

    def delete_members(self, reference: Reference, usernames: Sequence[str]) -> dict[str, Any]:
        """Take identities added beyond the experiment's members out again. :raises ObjectNotFound: not among them."""
        _, _, identities = self._parts()
        with self._store.transaction() as connection:
            row = self._locked(connection, reference)
            extras = dict(row["extras"])
            for name in usernames:
                if extras.pop(self._identity(connection, identities, name), None) is None:
                    raise ObjectNotFound(f"{name[:160]!a} was not added to the Globus group beyond its experiment.")
            globus_store.change(connection, row["experiment_id"], extras=extras, not_before=None)
            audit.record(connection, "group.changed", self._subject(row), extras=extras)
        self.synchronise(row["experiment_id"], whole=True)
        return self.get_by_id(row["experiment_id"])

    def sync(self, reference: Reference, dry_run: bool) -> dict[str, Any]:
        """Compare an experiment's group with Globus and put right what differs.

        :returns: ``added``, ``removed``, ``changed`` (identity ids), ``refused``, ``unknownUsers``, ``accessRule``
            (what became of it, if anything) and the record's keys.
        """
        self._parts()
        with self._store.transaction() as connection:
            experiment_id = self._locked(connection, reference)["experiment_id"]
        found = self.synchronise(experiment_id, whole=True, dry_run=dry_run)
        return self.get_by_id(experiment_id) | found | {"dryRun": dry_run}

    def delete(self, reference: Reference) -> dict[str, Any]:
        """Delete an experiment's group and its access rule."""
        self._parts()
        with self._store.transaction() as connection:
            row = self._locked(connection, reference)
            self._remove(connection, row)
            return self.record(row)

    # --- keeping them equal -----------------------------------------------------------------------------------------

    def round(self, stop: threading.Event | None = None) -> int:
        """Look at every group once: those whose members changed, and those not compared for long.

        :param stop: ends it between two groups.
        :returns: how many were changed. A group whose comparison failed rests for a while and is told by health.
        """
        if self._settings is None:
            return 0
        with self._store.transaction() as connection:
            rows, people = globus_store.every(connection, due=True), globus_store.people(connection)
        changed = 0
        for row in rows:
            if stop is not None and stop.is_set():
                break
            try:
                if row["living"] and not self._due(row, self._wanted(row, people)):
                    continue
                changed += bool(self.synchronise(row["experiment_id"], wait=False))
            except ObjectNotFound:
                continue  # deleted meanwhile
            except Exception as error:
                LOG.warning("Globus group of experiment %a: %s", row["name"], error)
        return changed

    def troubles(self) -> tuple[int, int, int]:
        """Return how many groups there are, how many Globus refuses, and how many members it does not know."""
        with self._store.transaction() as connection:
            rows = globus_store.every(connection)
        return len(rows), sum(bool(row["failures"]) for row in rows), sum(len(row["unknown"]) for row in rows)

    def synchronise(
        self, experiment_id: int, *, whole: bool = False, dry_run: bool = False, wait: bool = True
    ) -> dict[str, Any]:
        """Make one group at Globus what it should be.

        :param whole: ask Globus even if nothing changed here. :param wait: until another process has done so.
        :returns: what was done; empty if nothing was looked at. :raises DmException: Globus refuses, or is away.
        """
        self._parts()
        with self._store.transaction() as connection:
            if wait:
                lock(connection, GLOBUS_LOCK, experiment_id)
            elif not try_lock(connection, GLOBUS_LOCK, experiment_id):
                return {}
            row = self._required(connection, experiment_id)
            try:
                return self._compared(connection, row, whole, dry_run)
            except Exception as error:
                if not dry_run:
                    with self._store.transaction() as other:
                        globus_store.failed(other, experiment_id, storable(str(error)), row["failures"])
                raise

    def _compared(self, connection: Connection, row: RowMapping, whole: bool, dry_run: bool) -> dict[str, Any]:
        _, client, _ = self._parts()
        if not row["living"]:
            if not dry_run:
                self._remove(connection, row)
            return {"deleted": True}
        wanted = self._wanted(row, globus_store.people(connection, row["experiment_id"]))
        if not whole and not self._due(row, wanted):
            return {}
        same = wanted.hash == row["members_hash"] and not row["failures"]
        known = client.identities(wanted.roles)
        roles = {known[name.lower()]: role for name, role in wanted.roles.items() if name.lower() in known}
        unknown = wanted.nameless + [user for name, user in sorted(wanted.users.items()) if name.lower() not in known]
        change = _difference(client.members(row["group_id"]), roles)
        drift = same and bool(change)
        if wanted.path is None:
            rule = self._rule(client, row, None, dry_run)
        if change and not dry_run:
            client.apply(row["group_id"], change)
        if wanted.path is not None:  # nobody reads before it is right who is in the group
            rule = self._rule(client, row, wanted.path, dry_run)
        done = {
            "added": sorted(set(change.add) - set(change.refused)),
            "removed": sorted(set(change.remove) - set(change.refused)),
            "changed": sorted(set(change.roles) - set(change.refused)),
            "refused": change.refused,
            "unknownUsers": unknown,
        } | ({"accessRule": rule[0]} if rule[0] else {})
        if not dry_run:
            values: dict[str, Any] = {"rule_id": rule[1], "rule_path": wanted.path if rule[1] else None}
            globus_store.succeeded(
                connection,
                row["experiment_id"],
                members_hash="" if change.refused else wanted.hash,
                members_count=len(roles),
                unknown=unknown,
                **values,
            )
            if change or rule[0]:
                event = "group.drift" if drift else "group.changed"
                audit.record(connection, event, self._subject(row), globus=row["group_id"], **done)
        return done

    def _rule(self, client: GlobusClient, row: RowMapping, path: str | None, dry_run: bool) -> tuple[str, str | None]:
        """See to the access rule; return what became of it, if anything, and its id."""
        collection = str(self._parts()[0].collection or "")
        if not collection:
            return "", row["rule_id"]
        rule_id = client.find_rule(collection, row["group_id"], path) if path else None
        if path and rule_id is None:
            if not dry_run:
                rule_id = client.add_rule(collection, row["group_id"], path)
            said = "added"
        else:
            said = ""
        if row["rule_id"] and row["rule_id"] != rule_id and row["rule_path"] != path:
            if not dry_run:
                client.remove_rule(collection, row["rule_id"])
            said = "moved" if said else "removed"
        return said, rule_id

    def _due(self, row: RowMapping, wanted: Wanted) -> bool:
        """Whether a group is to be compared with Globus now."""
        soon = self._parts()[0].compare_hours * 3600
        if row["unknown"]:  # they may log in to Globus any time
            soon = min(soon, _UNKNOWN_SECONDS)
        same = wanted.hash == row["members_hash"] and not row["failures"]
        return not same or row["age"] is None or row["age"] > soon

    def _wanted(self, row: RowMapping, people: globus_store.People) -> Wanted:
        settings, _, identities = self._parts()
        roles: dict[str, str] = {}
        users: dict[str, str] = {}
        nameless: list[str] = []

        def want(name: str, role: str) -> None:
            if _RANK[role] >= _RANK[roles.get(name, "member")]:
                roles[name] = role

        for user in people.members.get(row["experiment_id"], ()):
            name = identities.of(dict(user))
            if name is None:
                nameless.append(user["username"])
            else:
                want(name, "member")
                users[name] = user["username"]
        for user in people.managers.get(row["station_id"], ()) if settings.station_managers else ():
            if (name := identities.of(dict(user))) is not None:
                want(name, "manager")
        for role, names in (("manager", settings.managers), ("admin", settings.admins)):
            for name in names:
                want(name.lower(), role)
        for name, role in row["extras"].items():
            want(name, role)
        return Wanted(roles, users, nameless, self._path(row))

    def _path(self, row: RowMapping) -> str | None:
        """Return where the collection shows an experiment, while its members may read it there."""
        settings = self._parts()[0]
        if settings.collection is None:
            return None
        keep = settings.days_after_end
        if keep is not None and time.time() > row["end_date"].timestamp() + keep * 86_400:
            return None
        try:
            path = on_collection(os.fsencode(row["storage_directory"]) + b"/", settings.collection_paths)
        except ValueError as error:
            raise InvalidObjectState(
                f"Globus cannot name the directory of experiment {row['name']!a}: {error}."
            ) from None
        if path is None:
            raise InvalidObjectState(
                f"The directory {row['storage_directory']} of experiment {row['name']!a} is not shown by the "
                "collection; name it in storage.globus.collection_paths."
            )
        return path

    def _remove(self, connection: Connection, row: RowMapping) -> None:
        settings, client, _ = self._parts()
        if row["rule_id"] and settings.collection is not None:
            client.remove_rule(str(settings.collection), row["rule_id"])
        client.delete_group(row["group_id"])
        globus_store.remove(connection, row["experiment_id"])
        audit.record(connection, "group.deleted", self._subject(row), globus=row["group_id"])

    # --- rows and records -------------------------------------------------------------------------------------------

    def _locked(self, connection: Connection, reference: Reference) -> RowMapping:
        experiment = find(connection, reference)
        lock(connection, GLOBUS_LOCK, experiment["id"])
        return self._required(connection, experiment["id"])

    @staticmethod
    def _required(connection: Connection, experiment_id: int) -> RowMapping:
        row = globus_store.one(connection, experiment_id)
        if row is None:
            raise ObjectNotFound("The experiment has no Globus group of DM's; create one with dm-create-globus-group.")
        return row

    @staticmethod
    def _identity(connection: Connection, identities: Identities, name: str) -> str:
        """Return the identity name of a user of DM, or a name that is one. :raises InvalidArgument: neither."""
        if "@" in name:
            return identities.checked(name)
        user = globus_store.by_username(connection, name) if "\0" not in name else None
        found = identities.of(dict(user)) if user is not None else None
        if found is None:
            raise InvalidArgument(f"{name[:160]!a} is no user with a Globus identity, nor one like name@example.org.")
        return found

    @staticmethod
    def _subject(row: RowMapping) -> str:
        return f"{row['name']}/{row['station_name']}"

    def record(self, row: RowMapping) -> dict[str, Any]:
        """Return what is shown of a group."""
        collection = self._settings.collection if self._settings else None
        return {
            "id": row["group_id"],
            "name": row["group_name"],
            "experimentId": row["experiment_id"],
            "experimentName": row["name"],
            "stationName": row["station_name"],
            "managed": True,
            "countMembers": row["members_count"],
            "unknownUsers": list(row["unknown"]),
            "extras": dict(row["extras"]),
            "collectionId": str(collection) if collection and row["rule_id"] else None,
            "collectionPath": row["rule_path"],
            "created": timestamps.iso(row["created"]),
            "compared": timestamps.iso(row["compared"]) if row["compared"] else None,
            "lastError": row["last_error"],
        }


def _difference(found: dict[str, str], wanted: dict[str, str]) -> Change:
    """Return what makes the members found the wanted ones."""
    return Change(
        add={one: role for one, role in wanted.items() if one not in found},
        remove=[one for one in found if one not in wanted],
        roles={one: role for one, role in wanted.items() if one in found and found[one] != role},
    )
