"""What DM asks of Globus for its groups: identities, groups and their members, access rules of a guest collection."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache

from dm.common.errors import TransferError
from dm.common.globus import HTTP_SECONDS, GlobusCalls, UnknownToGlobus, retries, secret
from dm.site.storage.outside_settings import GlobusSettings

if TYPE_CHECKING:
    from globus_sdk import AuthClient, GroupsClient, TransferClient
    from globus_sdk.authorizers import ClientCredentialsAuthorizer
    from globus_sdk.scopes import Scope

_BATCH = 50
_NAMES = 100
_KNOWN_SECONDS = 3600.0
_HERE = ("active", "invited", "pending")


@dataclass
class Change:
    """What was done to a group, or would be.

    :param refused: identity -> why Globus refused it.
    """

    add: dict[str, str] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.add or self.remove or self.roles)


class GlobusClient(GlobusCalls):
    """Thread-safe; credentials are read when they are first needed, and again after Globus refused them."""

    def __init__(self, settings: GlobusSettings) -> None:
        super().__init__(settings.client_id)
        self.settings = settings
        self._authorizers: dict[str, ClientCredentialsAuthorizer] = {}
        self._lock = threading.Lock()
        self._known: TTLCache[str, str] = TTLCache(100_000, _KNOWN_SECONDS, timer=time.monotonic)

    def forget(self) -> None:
        """Read the credentials anew for the next call."""
        self._authorizers = {}

    # --- people -----------------------------------------------------------------------------------------------------

    def identities(self, names: Iterable[str]) -> dict[str, str]:
        """Return identity name -> id of those Globus knows; names are compared in lower case."""
        wanted = {name.lower() for name in names}
        with self._lock:
            found = {name: self._known[name] for name in wanted if name in self._known}
        missing = sorted(wanted - set(found))
        for start in range(0, len(missing), _NAMES):
            some = missing[start : start + _NAMES]
            with self._auth() as client:
                reply = self.call(client.get_identities, usernames=some, provision=self.settings.provision_identities)
            for identity in _list(reply, "identities"):
                found[str(identity["username"]).lower()] = str(identity["id"])
        found = {name: number for name, number in found.items() if name in wanted}
        with self._lock:
            self._known.update(found)
        return found

    # --- groups -----------------------------------------------------------------------------------------------------

    def find_group(self, mark: str) -> str | None:
        """Return the id of our own group whose description holds a mark.

        Anybody can write such a description, and put us into a group or invite us: ours are those we administrate, and
        in which no group above them has a say.
        """
        with self._groups() as client:
            groups = self.call(client.get_my_groups)
        for group in groups:
            if mark in str(group.get("description") or "") and self._is_ours(group):
                return str(group["id"])
        return None

    def _is_ours(self, group: Mapping[str, Any]) -> bool:
        return group.get("parent_id") is None and any(
            (str(mine.get("identity_id")), mine.get("role"), mine.get("status"))
            == (str(self.settings.client_id), "admin", "active")
            for mine in _list(group, "my_memberships")
        )

    def create_group(self, name: str, description: str) -> str:
        """Create a group that only its members see; return its id."""
        document = {"name": name, "description": description, "group_visibility": "private"}
        with self._groups() as client:
            return str(self.call(client.create_group, document)["id"])

    def delete_group(self, group_id: str) -> None:
        """Delete a group; one that is gone is just as good."""
        with self._groups() as client:
            try:
                self.call(client.delete_group, group_id)
            except UnknownToGlobus:
                return

    def members(self, group_id: str) -> dict[str, str]:
        """Return identity id -> role of the members, invited ones too, without DM itself.

        :raises UnknownToGlobus: there is no such group.
        """
        with self._groups() as client:
            group = self.call(client.get_group, group_id, include="memberships")
        return {
            str(member["identity_id"]): str(member["role"])
            for member in _list(group, "memberships")
            if member.get("status") in _HERE and str(member["identity_id"]) != str(self.settings.client_id)
        }

    def apply(self, group_id: str, change: Change) -> None:
        """Add, remove and change members; fills in :attr:`Change.refused`.

        Who has told Globus not to be added by others is invited.
        """
        with self._groups() as client:
            for word, pairs in (("add", change.add), ("change_role", change.roles)):
                for some in _parts(list(pairs.items())):
                    items = [{"identity_id": identity, "role": role} for identity, role in some]
                    refused = self._act(client, group_id, word, items)
                    if word == "add" and refused:
                        again = [item for item in items if item["identity_id"] in refused]
                        refused = self._act(client, group_id, "invite", again)
                    change.refused |= refused
            for gone in _parts(change.remove):
                change.refused |= self._act(client, group_id, "remove", [{"identity_id": one} for one in gone])

    def _act(self, client: GroupsClient, group_id: str, word: str, items: list[dict[str, str]]) -> dict[str, str]:
        """Return identity -> why not, of those refused."""
        reply = self.call(client.batch_membership_action, group_id, {word: items})
        errors = _mapping(reply).get("errors") or {}
        return {
            str(one.get("identity_id")): str(one.get("detail") or one.get("code") or "refused")
            for one in errors.get(word, [])
        }

    # --- access rules -----------------------------------------------------------------------------------------------

    def find_rule(self, collection: str, group_id: str, path: str) -> str | None:
        """Return the id of the rule that lets a group read a path."""
        with self._transfer() as client:
            rules = list(self.call(client.endpoint_acl_list, collection))
        for rule in rules:
            if (rule.get("principal"), rule.get("path")) == (group_id, path):
                return str(rule["id"])
        return None

    def add_rule(self, collection: str, group_id: str, path: str) -> str:
        """Let a group read a path of the collection; return the rule's id, also of one there is already."""
        rule = {
            "DATA_TYPE": "access",
            "principal_type": "group",
            "principal": group_id,
            "path": path,
            "permissions": "r",
        }
        with self._transfer() as client:
            try:
                return str(self.call(client.add_endpoint_acl_rule, collection, rule)["access_id"])
            except TransferError:
                found = self.find_rule(collection, group_id, path)
                if found is None:
                    raise
                return found

    def remove_rule(self, collection: str, rule_id: str) -> None:
        """Take a rule away; one that is gone is just as good."""
        with self._transfer() as client:
            try:
                self.call(client.delete_endpoint_acl_rule, collection, rule_id)
            except UnknownToGlobus:
                return

    # --- clients ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _groups(self) -> Iterator[GroupsClient]:
        from globus_sdk import GroupsClient
        from globus_sdk.scopes import GroupsScopes

        with self._made(GroupsClient, GroupsScopes.all) as client:
            yield client

    @contextmanager
    def _transfer(self) -> Iterator[TransferClient]:
        from globus_sdk import TransferClient
        from globus_sdk.scopes import TransferScopes

        with self._made(TransferClient, TransferScopes.all) as client:
            yield client

    @contextmanager
    def _auth(self) -> Iterator[AuthClient]:
        from globus_sdk import AuthClient
        from globus_sdk.scopes import AuthScopes

        with self._made(AuthClient, AuthScopes.view_identities) as client:
            yield client

    @contextmanager
    def _made(self, kind: Any, scope: Scope) -> Iterator[Any]:
        from globus_sdk.transport import RequestsTransport

        transport = RequestsTransport(http_timeout=HTTP_SECONDS)
        try:
            yield kind(authorizer=self._authorizer(scope), transport=transport, retry_config=retries(), app_name="DM")
        finally:
            transport.close()

    def _authorizer(self, scope: Scope) -> ClientCredentialsAuthorizer:
        import globus_sdk

        name = str(scope)
        with self._lock:
            found = self._authorizers.get(name)
            if found is None:
                word = secret(self.settings.client_secret_file)
                login = globus_sdk.ConfidentialAppAuthClient(str(self.settings.client_id), word, retry_config=retries())
                found = self.call(globus_sdk.ClientCredentialsAuthorizer, login, scope)
                self._authorizers[name] = found
            return found


def _mapping(reply: Any) -> Mapping[str, Any]:
    data = getattr(reply, "data", reply)
    return data if isinstance(data, Mapping) else {}


def _list(reply: Any, key: str) -> list[Mapping[str, Any]]:
    return list(_mapping(reply).get(key) or [])


def _parts(items: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), _BATCH):
        yield list(items[start : start + _BATCH])
