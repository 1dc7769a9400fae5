"""Keeps the directory as the database says: after every change, and by comparing everything now and then.

Whoever changes the database leaves a mark in the same transaction (a trigger does). Of all processes of the site one
at a time, the one with the advisory lock, reads the marks, then the database as it is by then, then the directory;
writes the differences; and only then removes the marks. A process that dies before leaves them to the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dm.common import timestamps
from dm.site.database.store import DIRECTORY_LOCK, Store, lock, try_lock
from dm.site.identity import audit
from dm.site.identity.ldap import ldap_store
from dm.site.identity.ldap.accounts import AccountReport, Accounts, Row
from dm.site.identity.ldap.connection import Attempt, Directory
from dm.site.identity.ldap.groups import Differences, Groups

LOG = logging.getLogger(__name__)
ACTOR = "directory"

_GROUPS_AT_ONCE = 40
_PEOPLE_AT_ONCE = 100
_DRAIN_SECONDS = 0.5
_SHOWN = 200
_AUDITED = 50


class DirectoryKeeper:
    """The use cases: :meth:`catch_up`, :meth:`reconcile`, :meth:`push_users`.

    :param store: the site's database.
    """

    def __init__(self, store: Store, directory: Directory) -> None:
        self._store = store
        self._directory = directory
        self._settings = directory.settings
        self._groups = Groups(self._settings)
        self._accounts = Accounts(self._settings)
        # Whether the last round was cut short: without the database's lock it may have written what was not true any
        # more, so everything is compared.
        self._unsure = False

    @property
    def writes_people(self) -> bool:
        """Whether people's entries are DM's to write."""
        return self._settings.manage_users != "none"

    def prepare(self) -> None:
        """Give experiments their group numbers. :raises ConfigurationError: ``gid_first`` was changed."""
        with self._store.transaction() as connection:
            given = ldap_store.give_numbers(connection, self._settings.gid_first, self._settings.gid_last)
        if given:
            LOG.info("%d experiments got the numbers of their groups", given)

    def catch_up(self, attempt: Attempt) -> bool:
        """Tell the directory what changed, and compare everything when that is due.

        :returns: whether there is more to do at once.
        :raises ServiceUnavailable: the marks stay. :raises ServiceUnavailable: no database.
        """
        more, worked = False, False
        with self._only_one(wait=False) as alone:
            if not alone:
                return False
            with self._store.transaction() as connection:
                marked = ldap_store.waiting(connection)[0] > 0
                last = ldap_store.last_run(connection)
            due = self._unsure or last is None or last[0] > self._settings.reconcile_minutes * 60
            if marked or due:
                self._unsure = worked = True
                with self._directory.opened(attempt) as ldap:
                    more = self._drain(ldap)
                    if due and not more:
                        self._reconcile(ldap, dry_run=False, force=False, first=last is None)
        if worked:
            self._unsure = due and more
        return more

    def reconcile(self, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """Compare the whole directory with the database and write the differences.

        :param dry_run: write nothing. :param force: also remove more than ``most_removals`` groups or people.
        :returns: the report: ``dryRun``, ``groups`` (how many there should be), ``drift`` (how many differences), the
            lists ``missingGroups``, ``extraGroups``, ``wrongGid``, ``wrongName``, ``missingMembers``,
            ``extraMembers``, ``inTheWay``, ``doubled``, ``refused`` (each cut at 200, with ``<name>Count``),
            ``heldBack``, ``withoutNumber``, ``people``, ``startTime``, ``runTime`` (seconds).
        :raises ServiceUnavailable: it does not answer, or refuses.
        """
        with self._only_one(wait=not dry_run), self._directory.opened(Attempt()) as ldap:
            with self._store.transaction() as connection:
                first = ldap_store.last_run(connection) is None
            if not dry_run:
                while self._drain(ldap):
                    pass
            return self._reconcile(ldap, dry_run, force, first)

    def push_users(
        self, ids: Iterable[int], hashes: Mapping[str, str] | None = None, dry_run: bool = False
    ) -> AccountReport:
        """Write the entries of users whose entries are DM's to write; to be called after the commit of their rows.

        :param ids: of the users. :param hashes: password hashes by user name, as the directory keeps them; they are
            written to it and neither kept nor logged.
        :returns: what was done, by user names. :raises ServiceUnavailable: part of it may be done; again is fine.
        """
        report = AccountReport()
        numbers = sorted(set(ids))
        if self._settings.manage_users == "none":
            return report
        for start in range(0, len(numbers), _PEOPLE_AT_ONCE):
            # The lock is given back in between: groups must not wait for thousands of people.
            with self._only_one(wait=True), self._directory.opened(Attempt()) as ldap:
                rows = self._people(numbers[start : start + _PEOPLE_AT_ONCE], dry_run)
                report.add(self._accounts.push(ldap, rows, hashes, dry_run=dry_run))
        return report

    def state(self) -> dict[str, Any]:
        """Return ``waiting`` (marks), ``oldest`` (their greatest age, seconds), ``withoutNumber``, ``last`` (report of
        the last comparison or ``None``) and ``age`` (of that, seconds).
        """
        with self._store.transaction() as connection:
            count, oldest = ldap_store.waiting(connection)
            last = ldap_store.last_run(connection)
            return {
                "waiting": count,
                "oldest": oldest,
                "withoutNumber": ldap_store.without_number(connection),
                "last": last[1] if last else None,
                "age": last[0] if last else 0.0,
            }

    @contextmanager
    def _only_one(self, wait: bool) -> Iterator[bool]:
        with self._store.transaction() as connection:
            if wait:
                lock(connection, DIRECTORY_LOCK, 0)
                yield True
            else:
                yield try_lock(connection, DIRECTORY_LOCK, 0)

    def _drain(self, ldap: Any) -> bool:
        """Tell the directory of all marks; return whether there are more."""
        with self._store.transaction() as connection:
            marks = ldap_store.marks(connection)
        if not marks.ids:
            return False
        self._push_groups(ldap, marks.experiments)
        made: list[str] = []
        if marks.users and self._settings.manage_users != "none":
            made = self._accounts.push(ldap, self._people(marks.users)).added
        with self._store.transaction() as connection:
            ldap_store.forget_told(connection, made)
            ldap_store.forget_marks(connection, marks.ids)
        return marks.more

    def _push_groups(self, ldap: Any, ids: Iterable[int]) -> Differences:
        with self._store.transaction() as connection:
            groups = ldap_store.groups(connection, ids)
        return self._groups.push(ldap, groups, ids)

    def _people(self, ids: Iterable[int] | None, dry_run: bool = False) -> Sequence[Row]:
        """Return the rows of those whose entries are ours to write, with uid numbers."""
        only = self._settings.manage_users == "synchronised"
        first, last = self._settings.uid_first, self._settings.uid_last
        with self._store.transaction() as connection:
            rows = ldap_store.people(connection, only, ids)
            unnumbered = {row["id"] for row in rows if row["uid_number"] is None and first + row["id"] <= last}
            if dry_run:
                return [dict(row) | {"uid_number": row["uid_number"] or first + row["id"]} for row in rows]
            if not unnumbered:
                return rows
            ldap_store.give_uid_numbers(connection, unnumbered, first, last)
            return ldap_store.people(connection, only, ids)

    def _reconcile(self, ldap: Any, dry_run: bool, force: bool, first: bool) -> dict[str, Any]:
        began, clock = time.time(), time.monotonic()
        found, wanted, differing, extra = self._compare(ldap)
        drift = found.count
        held_back = extra if len(extra) > self._settings.most_removals and not force else set()
        people, people_held = self._reconcile_people(ldap, dry_run, force)
        if not dry_run:
            found.refused += self._repair(ldap, sorted(differing | (extra - held_back))).refused
        drift += people.count
        report: dict[str, Any] = {
            "dryRun": dry_run,
            "groups": wanted,
            "drift": 0 if first and not dry_run else drift,
            "heldBack": len(held_back) + people_held,
        }
        report |= _shown(vars(found))
        report["people"] = _shown(vars(people))
        with self._store.transaction() as connection:
            report["withoutNumber"] = ldap_store.without_number(connection)
            report |= timestamps_of(began, time.monotonic() - clock)
            if not dry_run:
                if not first:
                    self._audit(connection, found)
                ldap_store.add_run(connection, report)
        LOG.info("directory compared: %d groups, %d differences%s", wanted, drift, ", dry run" if dry_run else "")
        return report

    def _compare(self, ldap: Any) -> tuple[Differences, int, set[int], set[int]]:
        """Return all differences, how many groups there should be, whose are wrong, and whose should not be.

        What is marked is no drift: the directory has not been told yet.
        """
        entries = list(self._groups.ours(ldap))
        with self._store.transaction() as connection:
            groups = ldap_store.groups(connection)
            told_soon = ldap_store.marks(connection).experiments
        by_id: dict[int, list[Any]] = {}
        for entry in entries:
            by_id.setdefault(entry.experiment_id or 0, []).append(entry)
        found, differing = Differences(), set()
        for group in groups:
            one = self._groups.compared(group, by_id.get(group.experiment_id, []))
            if one.count and group.experiment_id not in told_soon:
                found.add(one)
                differing.add(group.experiment_id)
        extra = set(by_id) - {group.experiment_id for group in groups} - told_soon
        found.extra_groups += [entry.dn for number in sorted(extra) for entry in by_id[number]]
        missing = [group for group in groups if group.experiment_id in differing and group.name in found.missing_groups]
        for start in range(0, len(missing), _GROUPS_AT_ONCE):
            chunk = missing[start : start + _GROUPS_AT_ONCE]
            there = self._groups.of(ldap, chunk)
            found.in_the_way += [name for group in chunk for name in self._groups.compared(group, there).in_the_way]
        return found, len(groups), differing, extra

    def _repair(self, ldap: Any, ids: list[int]) -> Differences:
        """Write what differs, from the database as it is now; changes made meanwhile do not wait for the end."""
        drained, written = time.monotonic(), Differences()
        for start in range(0, len(ids), _GROUPS_AT_ONCE):
            written.add(self._push_groups(ldap, ids[start : start + _GROUPS_AT_ONCE]))
            if time.monotonic() - drained > _DRAIN_SECONDS:
                self._drain(ldap)
                drained = time.monotonic()
        return written

    def _reconcile_people(self, ldap: Any, dry_run: bool, force: bool) -> tuple[AccountReport, int]:
        report = AccountReport()
        if self._settings.manage_users == "none":
            return report, 0
        rows = self._people(None, dry_run)
        drained = time.monotonic()

        def between() -> None:
            nonlocal drained
            if not dry_run and time.monotonic() - drained > _DRAIN_SECONDS:
                self._drain(ldap)
                drained = time.monotonic()

        # On a connection of its own, as a search by pages bears no other one beside it: groups do not wait for people.
        with self._directory.opened(Attempt()) as reader:
            differing, extra = self._accounts.compared(reader, rows, between)
        with self._store.transaction() as connection:
            told_soon = ldap_store.marks(connection).users
            known = {row["id"] for row in ldap_store.people(connection, False, [entry["id"] for entry in extra])}
        extra = [entry for entry in extra if entry["id"] not in known]
        differing = [row for row in differing if row["id"] not in told_soon]
        for start in range(0, len(differing), _PEOPLE_AT_ONCE):
            chunk = [row["id"] for row in differing[start : start + _PEOPLE_AT_ONCE]]
            report.add(self._accounts.push(ldap, self._people(chunk, dry_run), dry_run=dry_run))
            if not dry_run:
                self._drain(ldap)
        if not dry_run:
            with self._store.transaction() as connection:
                ldap_store.forget_told(connection, report.added)
        if len(extra) > self._settings.most_removals and not force:
            return report, len(extra)
        for entry in extra:
            report.removed.append(entry["dn"])
            if not dry_run:
                self._accounts.remove(ldap, entry)
        return report, 0

    @staticmethod
    def _audit(connection: Any, found: Differences) -> None:
        kinds = [(kind, value) for kind, values in vars(found).items() for value in values]
        with audit.acting(ACTOR):
            for kind, value in kinds[:_AUDITED]:
                details = dict(value) if isinstance(value, dict) else {"group": value}
                subject = str(details.pop("group"))
                audit.record(connection, "group.drift", subject, kind=kind, **details)
            if len(kinds) > _AUDITED:
                audit.record(connection, "group.drift", kind="more", count=len(kinds) - _AUDITED)


def timestamps_of(began: float, seconds: float) -> dict[str, Any]:
    """Return ``startTime``, ``startTimestamp`` and ``runTime`` of a report."""
    return {"startTime": began, "startTimestamp": timestamps.text(began), "runTime": round(seconds, 3)}


def _shown(lists: Mapping[str, list[Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, values in lists.items():
        first, *rest = name.split("_")
        key = first + "".join(part.capitalize() for part in rest)
        result[key] = values[:_SHOWN]
        result[f"{key}Count"] = len(values)
    return result
