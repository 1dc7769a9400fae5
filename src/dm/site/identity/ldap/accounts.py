"""People's entries in the directory, for sites where DM writes them (``manage_users``).

An entry is ours when its ``description`` is ``<mark>:user:<id>``. One that is there without our mark is the facility's:
it is reported and never touched. Password hashes go through here to the directory and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping

from dm.site.identity.ldap import connection as ldap
from dm.site.identity.ldap.groups import marked
from dm.site.identity.ldap.settings import LdapSettings

LOG = logging.getLogger(__name__)

_CLASSES = ("top", "person", "organizationalPerson", "inetOrgPerson", "posixAccount", "shadowAccount")
_COMPARED = (
    "cn", "sn", "givenName", "mail", "employeeNumber", "uidNumber", "gidNumber", "homeDirectory", "loginShell",
    "shadowExpire",
)  # fmt: skip
_CLOSED_SHELL = "/usr/sbin/nologin"
_LOCKED_FOR_GOOD = "000001010000Z"
_AT_ONCE = 50
_PASSWD = Path("/etc/passwd")
_LEAST_UID = 1000

Row = Mapping[str, Any] | RowMapping


@dataclass
class AccountReport:
    """What was done, or would be, to people's entries: user names.

    :param foreign: have an entry that is not ours. :param unnumbered: have no uid number, as there are none left.
    :param refused: what the server did not take, and why.
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    unnumbered: list[str] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many differences there were."""
        return sum(len(getattr(self, name)) for name in ("added", "changed", "closed", "removed"))

    def add(self, other: AccountReport) -> None:
        """Take over another's contents."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)


class Accounts:
    """The people beneath the people base."""

    def __init__(self, settings: LdapSettings) -> None:
        self._settings = settings
        self._mark = f"{settings.mark}:user:"
        self._system = _system_accounts()
        self._attributes = ["uid", "description", *_COMPARED]
        if settings.deactivation == "lock":
            self._attributes.append("pwdAccountLockedTime")

    def manages(self, row: Row) -> bool:
        """Whether a user's entry is DM's to write."""
        which = self._settings.manage_users
        return which == "all" or (which == "synchronised" and row["source"] is not None)

    def push(
        self,
        connection: Any,
        rows: Sequence[Row],
        hashes: Mapping[str, str] | None = None,
        *,
        dry_run: bool = False,
    ) -> AccountReport:
        """Make the directory agree about these users.

        :param rows: of table ``users``, with uid numbers. :param hashes: password hashes by user name, as the
            directory keeps them (``{SSHA512}...``); written to our own entries, compared with nothing.
        :raises ServiceUnavailable: part of it may be done; again is fine.
        """
        report = AccountReport()
        mine = [row for row in rows if self.manages(row)]
        for start in range(0, len(mine), _AT_ONCE):
            chunk = mine[start : start + _AT_ONCE]
            entries = self._of(connection, chunk)
            for row in chunk:
                one = AccountReport()
                try:
                    self._one(connection, row, entries, one, hashes or {}, dry_run)
                except ldap.EntryRefused as error:
                    LOG.warning("entry of %s: %s", row["username"], error)
                    one = AccountReport(refused=[{"user": row["username"], "reason": str(error)}])
                report.add(one)
        return report

    def compared(
        self, connection: Any, rows: Sequence[Row], between: Callable[[], None]
    ) -> tuple[list[Row], list[dict[str, Any]]]:
        """Compare everybody: return the rows whose entries may differ, and the entries of ours that none of them has.

        :param between: called again and again, for what must not wait.
        """
        by_id = {row["id"]: row for row in rows if self.manages(row)}
        differing, extra, seen = [], [], set()
        for entry in self._ours(connection):
            between()
            row = by_id.get(entry["id"])
            if row is None:
                extra.append(entry)
            else:
                gone = self._settings.deactivation == "remove" and not row["active"]
                if gone or entry["id"] in seen or entry["uid"] != [row["username"]] or self._changes(row, entry):
                    differing.append(row)
            seen.add(entry["id"])
        differing += [row for number, row in by_id.items() if number not in seen and row["active"]]
        return differing, extra

    def remove(self, connection: Any, entry: Mapping[str, Any]) -> None:
        """Remove one of our entries; one that is gone already is fine."""
        connection.delete(entry["dn"])
        ldap.done(connection, ldap.NO_SUCH_OBJECT)

    def _one(  # noqa: PLR0917 - one person's part of a push
        self,
        connection: Any,
        row: Row,
        entries: Mapping[str, dict[str, Any]],
        report: AccountReport,
        hashes: Mapping[str, str],
        dry_run: bool,
    ) -> None:
        name = row["username"]
        entry = entries.get(f"id {row['id']}")
        taken = entries.get(f"uid {name}")
        gone = self._settings.deactivation == "remove" and not row["active"]
        if taken is not None and taken["id"] != row["id"]:
            report.foreign.append(name)
        elif name in self._system and row["active"] and (entry is None or entry["uid"] != [name]):
            # On hosts that ask LDAP for passwords, whoever the directory calls so would be that account.
            raise ldap.EntryRefused(f"{name} is an account of the system; the user needs another name.")
        elif row["uid_number"] is None:
            report.unnumbered.append(name)
        elif entry is None:
            if not row["active"]:
                return
            report.added.append(name)
            if not dry_run:
                self._add(connection, row, hashes.get(name))
            if name in hashes:
                report.passwords.append(name)
        elif gone:
            report.removed.append(name)
            if not dry_run:
                self.remove(connection, entry)
        else:
            self._update(connection, row, entry, report, hashes.get(name), dry_run)

    def _update(  # noqa: PLR0917 - see _one
        self,
        connection: Any,
        row: Row,
        entry: dict[str, Any],
        report: AccountReport,
        password_hash: str | None,
        dry_run: bool,
    ) -> None:
        name, dn = row["username"], entry["dn"]
        changes = self._changes(row, entry)
        renamed = entry["uid"] != [name]
        if changes or renamed:
            (report.changed if row["active"] else report.closed).append(name)
        if password_hash is not None:
            changes["userPassword"] = [(ldap.REPLACE, [password_hash])]
            report.passwords.append(name)
        if dry_run:
            return
        if renamed:
            connection.modify_dn(dn, f"uid={ldap.escaped_dn(name)}")
            ldap.done(connection)
            dn = self._dn(name)
        if changes:
            connection.modify(dn, changes)
            ldap.done(connection)

    def _add(self, connection: Any, row: Row, password_hash: str | None) -> None:
        values: dict[str, Any] = {name: texts for name, texts in self._wanted(row).items() if texts}
        locked = values.pop("pwdAccountLockedTime", None)
        values |= {"uid": [row["username"]], "description": [f"{self._mark}{row['id']}"]}
        if password_hash is not None:
            values["userPassword"] = [password_hash]
        dn = self._dn(row["username"])
        connection.add(dn, list(_CLASSES), values)
        ldap.done(connection)
        if locked:  # operational: cannot be given as the entry is made
            connection.modify(dn, {"pwdAccountLockedTime": [(ldap.REPLACE, locked)]})
            ldap.done(connection)

    def _changes(self, row: Row, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: [(ldap.REPLACE, texts)]
            for name, texts in self._wanted(row).items()
            if sorted(entry.get(name) or []) != sorted(texts)
        }

    def _wanted(self, row: Row) -> dict[str, list[str]]:
        name = row["username"]
        full = " ".join(part for part in (row["first_name"], row["middle_name"], row["last_name"]) if part)
        values = {
            "cn": full or name,
            "sn": row["last_name"] or name,
            "givenName": row["first_name"],
            "mail": row["email"] if row["email"].isascii() else "",
            "employeeNumber": str(row["badge"] or ""),
            "uidNumber": str(row["uid_number"]),
            "gidNumber": str(self._settings.user_gid),
            "homeDirectory": self._settings.home_directory.replace("{username}", name),
            "loginShell": self._settings.login_shell if row["active"] else _CLOSED_SHELL,
            "shadowExpire": "" if row["active"] else "1",
        }
        if self._settings.deactivation == "lock":
            values["pwdAccountLockedTime"] = "" if row["active"] else _LOCKED_FOR_GOOD
        return {key: [text] if text.strip() else [] for key, text in values.items()}

    def _ours(self, connection: Any) -> Iterator[dict[str, Any]]:
        text = f"(&(objectClass=posixAccount)(description={self._mark}*))"
        for entry in ldap.search(connection, self._settings.people_base, text, self._attributes):
            number = marked(entry["description"], self._mark)
            if number is not None:
                yield entry | {"id": number}

    def _of(self, connection: Any, rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
        """Return the entries that are, or are in the way of, these users', by ``id <id>`` and ``uid <name>``."""
        terms = [f"(uid={ldap.escaped_filter(row['username'])})(description={self._mark}{row['id']})" for row in rows]
        found: dict[str, dict[str, Any]] = {}
        for entry in ldap.search(connection, self._settings.people_base, f"(|{''.join(terms)})", self._attributes):
            entry["id"] = marked(entry["description"], self._mark)
            if entry["id"] is not None:
                found[f"id {entry['id']}"] = entry
            for name in entry["uid"]:
                found[f"uid {name}"] = entry
        return found

    def _dn(self, username: str) -> str:
        return f"uid={ldap.escaped_dn(username)},{self._settings.people_base}"


def _system_accounts() -> frozenset[str]:
    """Return root and the accounts of this host itself with numbers below those of people."""
    lines = [line.split(":") for line in _PASSWD.read_text("utf-8", "replace").splitlines()]
    found = {parts[0] for parts in lines if len(parts) > 2 and parts[2].isdecimal() and int(parts[2]) < _LEAST_UID}
    return frozenset(found | {"root"})
