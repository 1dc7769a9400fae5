"""What a run of synchronisation would do: people of a directory compared with the users known. No database here.

The directory's own key of a person says who is who. A user without that key is the same person only when the badge is
the same, or the user name together with the last name while a badge is missing; a name alone may have been given to
somebody else, who must not inherit rights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument
from dm.common.texts import storable
from dm.site import rules
from dm.site.identity.sync_settings import UserSyncSettings

if TYPE_CHECKING:
    from dm.site.facility.adapters.base import Person

COMPARED = ("username", "badge", "first_name", "middle_name", "last_name", "email", "institution")
MAX_KEY = 255
MAX_BADGE = (1 << 31) - 1
_LONGEST = 1000


@dataclass(frozen=True)
class Known:
    """A user of the database, whatever its source."""

    id: int
    username: str
    badge: int | None
    first_name: str
    middle_name: str
    last_name: str
    email: str
    institution: str
    active: bool
    source: str | None
    source_key: str | None
    absent_since: datetime | None
    absent_runs: int
    deactivated_by: str | None
    directory_digest: bytes | None
    administrator: bool


@dataclass(frozen=True)
class Change:
    """A known user who becomes what the directory says. :param name: the user name from now on."""

    user: Known
    person: Person
    name: str
    reactivated: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """The columns compared, as they will be."""
        return {**{column: getattr(self.person, column) for column in COMPARED}, "username": self.name}


@dataclass
class Plan:
    """What a run would do.

    :param matched: who stays, by id of the user, with the person: for LDAP.
    :param seen: how many persons the directory named. :param known: how many users of this directory there were.
    """

    source: str
    known: int = 0
    seen: int = 0
    added: list[Person] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    deactivated: list[tuple[Known, str]] = field(default_factory=list)
    absent: list[Known] = field(default_factory=list)
    present_again: list[Known] = field(default_factory=list)
    matched: list[tuple[Known, Person]] = field(default_factory=list)
    unchanged: int = 0
    inactive: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def touched(self) -> int:
        """How many of the known users a run would change or lose, now or, as they have just vanished, later."""
        vanishing = sum(user.absent_runs == 0 for user in self.absent)
        reactivated_only = sum(not differences(change) for change in self.changed)
        return len(self.changed) - reactivated_only + len(self.deactivated) + vanishing

    def refusal(self, settings: UserSyncSettings) -> str:
        """Return why this should not be done unasked, or empty text."""
        if not self.seen:
            return f"Directory {self.source} came back empty; nobody was changed. Repeat with force if that is right."
        most = max(settings.limit_least, self.known * settings.limit_percent / 100)
        if self.touched > most:
            return (
                f"{self.touched} of {self.known} users of {self.source} would change or vanish, more than "
                f"{settings.limit_percent:g} %; nobody was changed. Look at a dry run, then repeat with force."
            )
        return ""

    def summary(self) -> dict[str, Any]:
        """Return counts, ``skipped`` and ``notes`` one by one, and the user names of who changes."""
        renamed = [change for change in self.changed if change.name != change.user.username]
        reactivated = [change.name for change in self.changed if change.reactivated]
        counts = {
            "seen": self.seen,
            "known": self.known,
            "added": len(self.added),
            "updated": sum(bool(differences(change)) for change in self.changed),
            "renamed": len(renamed),
            "reactivated": len(reactivated),
            "deactivated": len(self.deactivated),
            "absent": len(self.absent),
            "unchanged": self.unchanged,
            "inactive": self.inactive,
            "skipped": len(self.skipped),
        }
        return counts | {
            "addedUsers": [person.username for person in self.added[:_LONGEST]],
            "updatedUsers": [
                {"username": change.user.username, "keys": found}
                for change in self.changed
                if (found := differences(change))
            ][:_LONGEST],
            "reactivatedUsers": reactivated[:_LONGEST],
            "deactivatedUsers": [
                {"username": user.username, "reason": reason} for user, reason in self.deactivated[:_LONGEST]
            ],
            "absentUsers": [user.username for user in self.absent[:_LONGEST]],
            "skippedPersons": self.skipped[: 10 * _LONGEST],
            "notes": self.notes[: 10 * _LONGEST],
        }


def differences(change: Change) -> list[str]:
    """Return the columns in which a user differs from what it will be."""
    found = [column for column, value in change.values.items() if getattr(change.user, column) != value]
    return found if change.user.source_key == change.person.key else [*found, "source_key"]


def make_plan(
    source: str,
    people: Iterable[Person],
    users: Sequence[Known],
    settings: UserSyncSettings,
    now: datetime,
    *,
    rejected: Sequence[tuple[str, str]] = (),
) -> Plan:
    """Compare.

    :param source: name of the directory. :param users: all users, of any source.
    :param now: the database's time, against which days of absence are counted.
    :param rejected: rows the adapter could make no person of: which, and why. Whom they name has not vanished.
    """
    plan = Plan(source)
    mine = {user.source_key: user for user in users if user.source == source}
    plan.known = len(mine)
    good, keys = _checked(plan, people)
    matches = _matched(plan, good, users, mine, keys)
    taken = _renamed(plan, matches, users)
    for person, user in matches:
        if user is None:
            _add(plan, person, taken)
        else:
            _compare(plan, person, user, taken)
    left_out = {which for which, _ in rejected}
    plan.skipped += [{"key": _shown(which), "username": None, "reason": _shown(why)} for which, why in rejected]
    present = keys | {user.source_key for _, user in matches if user is not None}
    for key, user in mine.items():
        if key not in present and user.active and f"user {str(key)[:40]!a}" not in left_out:
            _vanished(plan, user, settings, now)
    _keep_an_administrator(plan, users)
    return plan


def _skip(plan: Plan, person: Person, reason: str) -> None:
    key = person.key if isinstance(person.key, str) else repr(person.key)
    name = person.username if isinstance(person.username, str) else None
    plan.skipped.append({"key": _shown(key), "username": _shown(name) if name else None, "reason": storable(reason)})


def _shown(text: str) -> str:
    return storable(text[:80])


def _note(plan: Plan, user: str, note: str) -> None:
    plan.notes.append({"username": _shown(user), "note": note})


def _checked(plan: Plan, people: Iterable[Person]) -> tuple[list[Person], set[str | None]]:
    """Return the persons that can be used, and every key that was named, usable or not."""
    by_key: dict[str, Person] = {}
    keys: set[str | None] = set()
    ambiguous: set[str] = set()
    for person in people:
        plan.seen += 1
        if isinstance(person.key, str):
            keys.add(person.key)
        problem = malformed(person)
        if problem:
            _skip(plan, person, problem)
        elif (other := by_key.get(person.key)) is None:
            by_key[person.key] = person
        elif other == person:
            _note(plan, str(person.username), "The directory names this person twice, with the same values.")
        else:
            ambiguous.add(person.key)
            _skip(plan, person, "The directory has this key twice, with different values.")
    for key in ambiguous:
        _skip(plan, by_key.pop(key), "The directory has this key twice, with different values.")
    good = list(by_key.values())
    names = Counter(person.username.casefold() for person in good if person.username)
    badges = Counter(person.badge for person in good if person.badge is not None)
    usable = []
    for person in good:
        if person.username and names[person.username.casefold()] > 1:
            _skip(plan, person, "The directory gives this user name to several people.")
        elif person.badge is not None and badges[person.badge] > 1:
            _skip(plan, person, f"The directory gives badge {person.badge} to several people.")
        else:
            usable.append(person)
    return usable, keys


def malformed(person: Person) -> str:
    """Return what is wrong with a person's record, or empty text."""
    try:
        if not isinstance(person.key, str) or not person.key.strip() or len(person.key) > MAX_KEY:
            return f"The key must be text of 1 to {MAX_KEY} characters."
        rules.plain_text(person.key, "The key")
        if person.badge is not None and (
            not isinstance(person.badge, int) or isinstance(person.badge, bool) or not 0 < person.badge <= MAX_BADGE
        ):
            return f"Badge {str(person.badge)[:40]!a} is no positive number below 2^31."
        if not isinstance(person.username, str):
            return "There is neither a user name nor a badge."
        rules.username(person.username)
        for column in COMPARED[2:]:
            value = getattr(person, column)
            if not isinstance(value, str) or len(value) > _LONGEST:
                return f"{column} is no text of at most {_LONGEST} characters."
            rules.plain_text(value, column)
    except InvalidArgument as error:
        return str(error)
    return ""


def _matched(
    plan: Plan, people: list[Person], users: Sequence[Known], mine: dict[str | None, Known], keys: set[str | None]
) -> list[tuple[Person, Known | None]]:
    """Say who is who; a person in doubt is reported and left out."""
    by_name: dict[str, list[Known]] = defaultdict(list)
    for one in users:
        by_name[one.username.casefold()].append(one)
    lost = {one.badge: one for key, one in mine.items() if one.badge is not None and key not in keys}
    found: list[tuple[Person, Known | None]] = []
    adopted: set[int] = set()
    for person in people:
        user: Known | None = mine.get(person.key)
        if user is None:
            user = _adopted(person, by_name[str(person.username).casefold()], lost, plan.source, keys)
            if user is not None and user.id in adopted:
                _skip(plan, person, f"Several people would be user {user.username}.")
                continue
            if user is not None:
                adopted.add(user.id)
                _note(plan, user.username, f"The directory's key changed from {user.source_key} to {person.key}.")
        found.append((person, user))
    return found


def _adopted(
    person: Person, named: list[Known], lost: dict[int, Known], source: str, keys: set[str | None]
) -> Known | None:
    """Return the user whose key in the directory changed into this person's."""
    if person.badge is not None and person.badge in lost:
        return lost[person.badge]
    for user in named:
        same_name = user.last_name.casefold() == person.last_name.casefold() != ""
        no_badge = person.badge is None or user.badge is None
        if user.source == source and user.source_key not in keys and no_badge and same_name:
            return user
    return None


def _renamed(plan: Plan, matches: list[tuple[Person, Known | None]], users: Sequence[Known]) -> dict[str, Known]:
    """Return who has each user name after the renames that are possible; those that are not are reported."""
    wanted = {
        user.id: str(person.username)
        for person, user in matches
        if user is not None and person.username != user.username
    }
    while True:
        taken: dict[str, Known] = {}
        for user in users:
            if user.id not in wanted:
                taken.setdefault(user.username.casefold(), user)
        refused = {
            user_id: taken[name.casefold()]
            for user_id, name in wanted.items()
            if name.casefold() in taken and taken[name.casefold()].id != user_id
        }
        if not refused:
            break
        names = {user.id: user.username for user in users if user.id in refused}
        for user_id, holder in refused.items():
            _note(
                plan,
                names[user_id],
                f"The directory calls this user {wanted.pop(user_id)}, which is the name of {_whose(holder)}; kept.",
            )
    by_id = {user.id: user for user in users}
    return taken | {name.casefold(): by_id[user_id] for user_id, name in wanted.items()}


def _whose(user: Known) -> str:
    if user.source is None:
        return "a local account"
    return f"another user of {user.source}"


def _add(plan: Plan, person: Person, taken: dict[str, Known]) -> None:
    holder = taken.get(str(person.username).casefold())
    if holder is not None:
        _skip(plan, person, f"User name {person.username} is that of {_whose(holder)}.")
    elif not person.active:
        plan.inactive += 1
    else:
        plan.added.append(person)


def _compare(plan: Plan, person: Person, user: Known, taken: dict[str, Known]) -> None:
    renamed = taken.get(str(person.username).casefold())
    name = str(person.username) if renamed is not None and renamed.id == user.id else user.username
    change = Change(user, person, name, reactivated=_reactivated(plan, person, user))
    found = differences(change)
    if "username" in found:
        _note(plan, user.username, f"The user name changes to {name}.")
    if "badge" in found:
        _note(plan, user.username, f"The badge changes from {user.badge} to {person.badge}.")
    if found or change.reactivated:
        plan.changed.append(change)
    leaves = user.active and not person.active
    if leaves:
        plan.deactivated.append((user, "The directory says so."))
    if user.absent_runs:
        plan.present_again.append(user)
    plan.matched.append((user, person))
    plan.unchanged += not (found or change.reactivated or leaves)


def _reactivated(plan: Plan, person: Person, user: Known) -> bool:
    if user.active or not person.active:
        return False
    if user.deactivated_by == "directory":
        return True
    _note(plan, user.username, "Active in the directory, but deactivated here by an administrator; kept inactive.")
    return False


def _vanished(plan: Plan, user: Known, settings: UserSyncSettings, now: datetime) -> None:
    since = user.absent_since or now
    match settings.deactivate:
        case "immediately":
            ends = True
        case "after_runs":
            ends = user.absent_runs + 1 >= settings.absent_runs
        case "after_days":
            ends = now - since >= timedelta(days=settings.absent_days)
        case _:
            ends = False
    if ends:
        plan.deactivated.append((user, f"Not in the directory since {since:%Y-%m-%d %H:%M} UTC."))
    else:
        plan.absent.append(user)


def _keep_an_administrator(plan: Plan, users: Sequence[Known]) -> None:
    """Nobody would be left to repair things otherwise."""
    going = {user.id for user, _ in plan.deactivated}
    if any(user.administrator and user.active and user.id not in going for user in users):
        return
    for user, reason in plan.deactivated:
        if user.administrator:
            plan.deactivated.remove((user, reason))
            _note(plan, user.username, "The last administrator; kept active.")
            return
