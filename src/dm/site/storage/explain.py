"""Why somebody may read something of an experiment, or not: over HTTPS, and on the file system of the storage.

HTTPS follows from what DM has recorded. The file system asks neither DM nor LDAP but what the storage host believes at
this moment (NSS), so both are told, and how they differ.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Connection, RowMapping

from dm.common import paths
from dm.common.errors import AuthorizationError, DmException, ObjectNotFound, ServiceUnavailable
from dm.common.web.routes import Principal
from dm.site.database.store import Store
from dm.site.identity import user_store
from dm.site.storage import acl, experiment_store
from dm.site.storage.directories import Owners, account_name, group_name
from dm.site.storage.experiments import Reference, find_visible

_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Identity:
    """Who a process is to the file system."""

    uid: int
    gids: frozenset[int]


@dataclass(frozen=True)
class Component:
    """One directory on the way, or what it leads to.

    :param wanted: permissions needed, as of :mod:`dm.site.storage.acl`.
    """

    path: str
    uid: int
    gid: int
    mode: int
    access: acl.List | None
    wanted: int

    def decide(self, who: Identity) -> tuple[bool, str]:
        """Return whether it may be passed or read, and why, as the system decides it."""
        if who.uid == 0:
            return True, "root may do everything"
        if who.uid == self.uid:
            return self._told(self.mode >> 6 & 7, f"its owner {account_name(self.uid)}")
        # Linux looks at the list only if its mask, which the mode shows as the group's bits, leaves anything.
        entries = self.access if self.access and self.mode & 0o070 else acl.of_mode(self.mode)
        mask = next((entry.permissions for entry in entries if entry.tag == acl.MASK), 7)
        for entry in entries:
            if entry.tag == acl.USER and entry.id == who.uid:
                return self._told(entry.permissions & mask, f"an entry of its access list for {account_name(who.uid)}")
        groups = [
            (entry.permissions & mask, self.gid if entry.tag == acl.GROUP_OBJ else entry.id)
            for entry in entries
            if (entry.tag == acl.GROUP_OBJ and self.gid in who.gids)
            or (entry.tag == acl.GROUP and entry.id in who.gids)
        ]
        if groups:  # any one that gives everything needed will do
            permissions, gid = max(groups, key=lambda one: (one[0] & self.wanted == self.wanted, one[0] & self.wanted))
            return self._told(permissions, f"group {group_name(gid)}")
        other = next(entry.permissions for entry in entries if entry.tag == acl.OTHER)
        return self._told(other, f"others: neither owner {account_name(self.uid)} nor in group {group_name(self.gid)}")

    def _told(self, permissions: int, who: str) -> tuple[bool, str]:
        return permissions & self.wanted == self.wanted, f"{acl.letters(permissions)} for {who}"

    def record(self, who: Identity | None) -> dict[str, Any]:
        """Return it as the answer holds it."""
        told: dict[str, Any] = {
            "path": self.path,
            "owner": account_name(self.uid),
            "group": group_name(self.gid),
            "mode": stat.filemode(self.mode),
            "accessList": acl.text(self.access) if self.access else "",
            "needs": acl.letters(self.wanted).replace("-", ""),
        }
        if who is not None:
            told["allowed"], told["rule"] = self.decide(who)
        return told


class Explanations:
    """The use case."""

    def __init__(self, store: Store, owners: Owners) -> None:
        self._store = store
        self._owners = owners

    def explain(self, principal: Principal, username: str, reference: Reference, path: str = "") -> dict[str, Any]:
        """Say whether a user may read a path of an experiment, and by which rule.

        :param path: below the experiment's directory; empty: ``data``.
        :returns: username, experimentName, stationName, path, httpsAllowed, httpsRule, diskAllowed, diskRule,
            components (each directory on the way), groupName, groupId, inGroupRecorded (by DM), inGroupOnHost (as the
            storage host says now; ``None``: it does not know the user), differences and limits (sentences).
        :raises ObjectNotFound: no such experiment, or path, for the caller.
        :raises AuthorizationError: the caller asks about somebody else and does not manage the experiment's station.
        """
        below = paths.relative(path) if path.strip("/.") else b"data"
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
            if username != principal.username and not principal.manages(experiment["station_name"]):
                raise AuthorizationError(
                    f"User {principal.username!a} may not ask about others; it takes a manager of the station."
                )
            allowed, rule, recorded = _recorded(connection, username, experiment)
        components = list(_components(experiment["storage_directory"], below))
        system = _system_identity(username)
        gid = self._owners.of_experiment(experiment).gid
        group = gid if gid != -1 else components[-1].gid
        on_host = None if system is None else group in system.gids
        disk, disk_rule = _on_disk(username, system, components)
        return {
            "username": username,
            "experimentName": experiment["name"],
            "stationName": experiment["station_name"],
            "path": paths.decode(below),
            "httpsAllowed": allowed,
            "httpsRule": rule,
            "diskAllowed": disk,
            "diskRule": disk_rule,
            "components": [component.record(system) for component in components],
            "groupName": group_name(group),
            "groupId": group,
            "inGroupRecorded": recorded,
            "inGroupOnHost": on_host,
            "differences": _differences(username, group, recorded=recorded, on_host=on_host, https=allowed, disk=disk),
            "limits": self._owners.limits(experiment),
        }


def _recorded(connection: Connection, username: str, experiment: RowMapping) -> tuple[bool, str, bool]:
    """Return whether DM lets the user read the experiment, the rule, and whether they belong into its group."""
    name, station = experiment["name"], experiment["station_name"]
    user = None if "\0" in username else user_store.user_by_name(connection, username)
    if user is None:
        return False, f"no user {username[:80]!a} is known", False
    if not user["active"]:
        return False, f"user {username} is not active", False
    members = experiment_store.members(connection, experiment["id"])
    roles = [row["role"] for row in members if row["username"] == username]
    someone = user_store.principal(connection, user["id"])
    at_station = sorted(someone.station_roles.get(station, ()))
    if roles:
        return True, f"{username} has role {' and '.join(roles)} in experiment {name}", True
    if at_station:
        return True, f"{username} is {' and '.join(at_station)} of station {station}", True
    if someone.is_admin:
        return True, f"{username} is an administrator", False
    return False, f"{username} has no role in experiment {name} or at station {station}", False


def _system_identity(username: str) -> Identity | None:
    """Return who the user is on this host at this moment, or ``None``."""
    try:
        entry = pwd.getpwnam(username)
        return Identity(entry.pw_uid, frozenset(os.getgrouplist(username, entry.pw_gid)))
    except (KeyError, ValueError, OSError):
        return None


def _components(directory: str, below: bytes) -> Iterator[Component]:
    """Yield every directory from the root of the file system to the path, and what the path is.

    :raises ObjectNotFound: it does not exist. :raises ServiceUnavailable: it cannot be looked at.
    """
    top = PurePosixPath(directory)
    for parent in [*reversed(top.parents), top]:
        descriptor = _opened(os.open, str(parent), os.O_PATH | os.O_CLOEXEC)
        try:
            yield _component(descriptor, str(parent), last=False)
        finally:
            os.close(descriptor)
    parts = below.split(b"/")
    try:
        with paths.opened_parent(directory, parts[0]) as (descriptor, _):
            current = os.dup(descriptor)
    except DmException:
        raise ServiceUnavailable(f"Directory {directory!a} cannot be looked at.") from None
    try:
        for number, part in enumerate(parts, 1):
            shown = f"{directory}/{paths.display(b'/'.join(parts[:number]))}"
            following = _opened(os.open, part, _PATH_ONLY, dir_fd=current, shown=shown)
            os.close(current)
            current = following
            yield _component(current, shown, last=number == len(parts))
    finally:
        os.close(current)


def _opened(call: Any, name: str | bytes, flags: int, dir_fd: int | None = None, shown: str | None = None) -> int:
    told = shown or os.fsdecode(name)
    try:
        return int(call(name, flags, dir_fd=dir_fd))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise ObjectNotFound(f"Path {told[:300]!a} does not exist.") from None
        raise ServiceUnavailable(f"Path {told[:300]!a} cannot be looked at: {error.strerror}.") from None


def _component(descriptor: int, path: str, last: bool) -> Component:
    status = os.fstat(descriptor)
    directory = stat.S_ISDIR(status.st_mode)
    wanted = acl.EXECUTE if directory and not last else acl.READ | (acl.EXECUTE if directory else 0)
    access = None
    if not stat.S_ISLNK(status.st_mode):
        try:
            access = acl.get(f"/proc/self/fd/{descriptor}", acl.ACCESS)
        except OSError:
            access = None  # the mode still tells most
    return Component(path, status.st_uid, status.st_gid, status.st_mode, access, wanted)


def _on_disk(username: str, system: Identity | None, components: list[Component]) -> tuple[bool, str]:
    if system is None:
        return False, f"the storage host knows no account {username[:80]!a}"
    for component in components:
        if stat.S_ISLNK(component.mode):
            return False, f"{component.path} is a link; ask about what it points to"
        allowed, rule = component.decide(system)
        if not allowed:
            return False, f"{component.path}: {rule}"
    return True, f"{components[-1].path}: {components[-1].decide(system)[1]}"


def _differences(
    username: str, group: int, *, recorded: bool, on_host: bool | None, https: bool, disk: bool
) -> list[str]:
    name = group_name(group)
    found = []
    if recorded and on_host is None:
        found.append(f"DM counts {username} among group {name}; the storage host knows no such account.")
    elif recorded and not on_host:
        found.append(f"DM counts {username} among group {name}; the storage host does not, or not yet.")
    elif on_host and not recorded:
        found.append(f"The storage host counts {username} among group {name}; DM does not, or no longer.")
    if https != disk:
        found.append(f"HTTPS says {'yes' if https else 'no'}, the file system says {'yes' if disk else 'no'}.")
    return found
