"""The experiments' groups in the directory: read, compared, and only the differences written.

A group is ours when its ``description`` is ``<mark>:experiment:<id>``; whatever else stands beneath the group base is
never touched, not even when it is in the way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dm.site.identity.ldap import connection as ldap
from dm.site.identity.ldap.ldap_store import Group
from dm.site.identity.ldap.settings import LdapSettings

LOG = logging.getLogger(__name__)

_ATTRIBUTES = ("cn", "gidNumber", "description", "memberUid")
_AT_ONCE = 40


@dataclass(frozen=True)
class Found:
    """A group as the directory has it. :param experiment_id: ``None`` for one that is not ours."""

    dn: str
    names: tuple[str, ...]
    gid: int | None
    experiment_id: int | None
    members: frozenset[str]


@dataclass
class Differences:
    """What of the directory's groups is not as it should be; what is written is the same list.

    :param in_the_way: names of our groups that somebody else's entries have.
    :param refused: what the server did not take, and why.
    """

    missing_groups: list[str] = field(default_factory=list)
    extra_groups: list[str] = field(default_factory=list)
    wrong_gid: list[dict[str, Any]] = field(default_factory=list)
    wrong_name: list[dict[str, Any]] = field(default_factory=list)
    missing_members: list[dict[str, Any]] = field(default_factory=list)
    extra_members: list[dict[str, Any]] = field(default_factory=list)
    in_the_way: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """In how many ways groups differ."""
        return sum(len(value) for value in vars(self).values())

    def add(self, other: Differences) -> None:
        """Take over the differences of others."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)


class Groups:
    """The groups beneath the group base."""

    def __init__(self, settings: LdapSettings) -> None:
        self._settings = settings
        self._mark = f"{settings.mark}:experiment:"
        self._extra = frozenset(settings.extra_members)

    def wanted(self, group: Group) -> frozenset[str]:
        """Return who should be in a group."""
        return group.members | self._extra

    def ours(self, connection: Any) -> Iterator[Found]:
        """Yield all entries that bear our mark."""
        text = f"(&(objectClass=posixGroup)(description={self._mark}*))"
        for entry in ldap.search(connection, self._settings.group_base, text, _ATTRIBUTES):
            found = self._found(entry)
            if found.experiment_id is not None:
                yield found

    def of(self, connection: Any, groups: Sequence[Group], ids: Iterable[int] = ()) -> list[Found]:
        """Return the entries that are, or are in the way of, these groups, and those of further experiments."""
        terms = [f"(cn={ldap.escaped_filter(group.name)})(gidNumber={group.gid})" for group in groups]
        terms += [f"(description={self._mark}{number})" for number in {*ids, *(g.experiment_id for g in groups)}]
        text = f"(&(objectClass=posixGroup)(|{''.join(terms)}))"
        return [self._found(entry) for entry in ldap.search(connection, self._settings.group_base, text, _ATTRIBUTES)]

    def compared(self, group: Group, entries: Sequence[Found]) -> Differences:
        """Return how one group differs from what the directory has for it."""
        found = Differences()
        mine = [entry for entry in entries if entry.experiment_id == group.experiment_id]
        if not mine:
            found.missing_groups.append(group.name)
            self._obstacles(group, entries, found)
            return found
        found.doubled += [entry.dn for entry in mine[1:]]
        entry = mine[0]
        if entry.gid != group.gid:
            found.wrong_gid.append({"group": group.name, "gid": entry.gid, "rightGid": group.gid})
        if entry.names != (group.name,):
            found.wrong_name.append({"group": group.name, "dn": entry.dn})
            self._obstacles(group, entries, found)
        if missing := sorted(self.wanted(group) - entry.members):
            found.missing_members.append({"group": group.name, "users": missing})
        if extra := sorted(entry.members - self.wanted(group)):
            found.extra_members.append({"group": group.name, "users": extra})
        return found

    def _obstacles(self, group: Group, entries: Sequence[Found], found: Differences) -> None:
        mine = group.experiment_id
        if any(e.experiment_id != mine and (group.name in e.names or e.gid == group.gid) for e in entries):
            found.in_the_way.append(group.name)

    def push(self, connection: Any, groups: Sequence[Group], ids: Iterable[int]) -> Differences:
        """Make the directory agree about some experiments and return what was different.

        :param groups: what there should be. :param ids: all experiments meant; those without a group have none.
        :raises ServiceUnavailable: part of it may be done; again is fine.
        """
        everything = Differences()
        by_id = {group.experiment_id: group for group in groups}
        numbers = sorted(set(ids) | set(by_id))
        for start in range(0, len(numbers), _AT_ONCE):
            chunk = numbers[start : start + _AT_ONCE]
            here = [by_id[number] for number in chunk if number in by_id]
            entries = self.of(connection, here, chunk)
            for number in chunk:
                if number in by_id:
                    everything.add(self._written(connection, by_id[number], entries))
                else:
                    for entry in (e for e in entries if e.experiment_id == number):
                        self.remove(connection, entry)
                        everything.extra_groups.append(entry.names[0] if entry.names else entry.dn)
        return everything

    def _written(self, connection: Any, group: Group, entries: Sequence[Found]) -> Differences:
        try:
            return self._write(connection, group, entries)
        except ldap.EntryRefused as error:
            # The next comparison of everything tries again; the other groups need not wait for that.
            LOG.warning("group %s: %s", group.name, error)
            return Differences(refused=[{"group": group.name, "reason": str(error)}])

    def _write(self, connection: Any, group: Group, entries: Sequence[Found]) -> Differences:
        found = self.compared(group, entries)
        for dn in found.doubled:
            connection.delete(dn)
            ldap.done(connection, ldap.NO_SUCH_OBJECT)
        if found.in_the_way:
            LOG.warning("group %s cannot be written: another entry has its name or number", group.name)
            return found
        if found.missing_groups:
            self._add(connection, group)
        elif found.count:
            entry = next(entry for entry in entries if entry.experiment_id == group.experiment_id)
            self._change(connection, group, entry, renamed=bool(found.wrong_name))
        return found

    def _add(self, connection: Any, group: Group) -> None:
        values: dict[str, Any] = {
            "cn": group.name,
            "gidNumber": str(group.gid),
            "description": f"{self._mark}{group.experiment_id}",
        }
        if members := sorted(self.wanted(group)):
            values["memberUid"] = members
        connection.add(self._dn(group.name), ["top", "posixGroup"], values)
        ldap.done(connection)

    def _change(self, connection: Any, group: Group, entry: Found, renamed: bool) -> None:
        dn = entry.dn
        if renamed:
            connection.modify_dn(dn, f"cn={ldap.escaped_dn(group.name)}")
            ldap.done(connection)
            dn = self._dn(group.name)
            if len(entry.names) > 1:
                connection.modify(dn, {"cn": [(ldap.REPLACE, [group.name])]})
                ldap.done(connection)
        wanted = self.wanted(group)
        changes: dict[str, list[tuple[str, list[str]]]] = {}
        if entry.gid != group.gid:
            changes["gidNumber"] = [(ldap.REPLACE, [str(group.gid)])]
        if missing := sorted(wanted - entry.members):
            changes.setdefault("memberUid", []).append((ldap.ADD, missing))
        if extra := sorted(entry.members - wanted):
            changes.setdefault("memberUid", []).append((ldap.DELETE, extra))
        if not changes:
            return
        connection.modify(dn, changes)
        if ldap.done(connection, ldap.VALUE_EXISTS, ldap.NO_SUCH_ATTRIBUTE) != ldap.SUCCESS:
            # Somebody changed it since it was read: write the whole list.
            changes["memberUid"] = [(ldap.REPLACE, sorted(wanted))]
            connection.modify(dn, changes)
            ldap.done(connection)

    @staticmethod
    def remove(connection: Any, entry: Found) -> None:
        """Remove one of our groups; one that is gone already is fine."""
        connection.delete(entry.dn)
        ldap.done(connection, ldap.NO_SUCH_OBJECT)

    def _dn(self, name: str) -> str:
        return f"cn={ldap.escaped_dn(name)},{self._settings.group_base}"

    def _found(self, entry: dict[str, Any]) -> Found:
        gid = entry["gidNumber"][0] if entry["gidNumber"] else ""
        return Found(
            entry["dn"],
            tuple(entry["cn"]),
            int(gid) if gid.isascii() and gid.isdigit() else None,
            marked(entry["description"], self._mark),
            frozenset(entry["memberUid"]),
        )


def marked(descriptions: Iterable[str], mark: str) -> int | None:
    """Return the number in the description that begins with ``mark``, or ``None``."""
    for text in descriptions:
        number = text.removeprefix(mark)
        if number != text and number.isascii() and number.isdigit() and len(number) < 11:
            return int(number)
    return None
