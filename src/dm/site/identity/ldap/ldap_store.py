"""SQL about what the directory should hold, and about what it has yet to learn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from dm.common.errors import ConfigurationError
from dm.site.database.tables import directory_marks, directory_numbers, directory_runs, experiments, users

_EXISTS = (experiments.c.state != "deleted") | (experiments.c.purged.is_(None) & experiments.c.purge_after.is_not(None))
_KEPT_RUNS = 50
_USERS_AT_ONCE = 100
_MARK_HOURS = 24


@dataclass(frozen=True)
class Group:
    """An experiment's group as the database has it.

    :param members: user names; only of active users.
    """

    experiment_id: int
    name: str
    gid: int
    members: frozenset[str]


@dataclass(frozen=True)
class Marks:
    """What changed since the directory was told: ``ids`` of the marks, and the experiments and users they are about.

    :param more: there are further marks of users.
    """

    ids: list[int]
    experiments: set[int]
    users: set[int]
    more: bool


def marks(connection: Connection) -> Marks:
    """Return the marks of experiments and stations and the oldest ones of users, and whose groups they are about."""
    found = connection.execute(_MARKS, {"most": _USERS_AT_ONCE}).all()
    by_kind: dict[str, set[int]] = {"experiment": set(), "station": set(), "user": set()}
    for row in found:
        by_kind[row.kind].add(row.subject)
    touched = by_kind["experiment"]
    if by_kind["station"] or by_kind["user"]:
        touched |= set(
            connection.execute(
                _TOUCHED, {"stations": list(by_kind["station"]), "people": list(by_kind["user"])}
            ).scalars()
        )
    more = sum(row.kind == "user" for row in found) == _USERS_AT_ONCE
    return Marks([row.id for row in found], touched, by_kind["user"], more)


_MARKS = text(
    "SELECT id, kind, subject FROM directory_marks WHERE kind <> 'user' UNION ALL"
    " (SELECT id, kind, subject FROM directory_marks WHERE kind = 'user' ORDER BY id LIMIT :most)"
)
_TOUCHED = text(
    "SELECT id FROM experiments WHERE purged IS NULL AND (station_id = ANY(:stations)"
    "  OR station_id IN (SELECT station_id FROM station_roles WHERE user_id = ANY(:people)))"
    " UNION SELECT experiment_id FROM experiment_roles WHERE user_id = ANY(:people)"
)


def forget_marks(connection: Connection, ids: Sequence[int]) -> None:
    """Remove marks that the directory knows of."""
    if ids:
        connection.execute(delete(directory_marks).where(directory_marks.c.id.in_(ids)))


def waiting(connection: Connection) -> tuple[int, float]:
    """Return how many marks there are, and the age of the oldest in seconds."""
    row = connection.execute(
        text("SELECT count(*) AS n, coalesce(extract(epoch FROM now() - min(made)), 0) AS age FROM directory_marks")
    ).one()
    return int(row.n), max(float(row.age), 0.0)


def sweep_marks(connection: Connection) -> int:
    """Remove marks that nobody read in a day: there is no directory, or it is compared as a whole when it is back."""
    return connection.execute(
        text("DELETE FROM directory_marks WHERE made < now() - make_interval(hours => :hours)"), {"hours": _MARK_HOURS}
    ).rowcount


def give_numbers(connection: Connection, first: int, last: int) -> int:
    """Let experiments have group numbers from now on, and give those that have none theirs; return how many got one.

    :raises ConfigurationError: experiments have numbers by another ``first``, and their files bear them.
    """
    row = connection.execute(select(directory_numbers).with_for_update()).one_or_none()
    if row is not None and row.gid_first != first:
        given = connection.execute(select(experiments.c.id).where(experiments.c.gid.is_not(None)).limit(1)).first()
        if given is not None:
            raise ConfigurationError(
                f"storage.ldap.gid_first is {first}, but experiments have group numbers from {row.gid_first} on, which "
                "their files bear; set it back."
            )
    values = {"enabled": True, "gid_first": first, "gid_last": last}
    statement = upsert(directory_numbers).values(id=1, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))
    return connection.execute(
        text(
            "UPDATE experiments SET gid = :first + id WHERE gid IS NULL AND state <> 'deleted' AND :first + id <= :last"
        ),
        {"first": first, "last": last},
    ).rowcount


def stop_numbers(connection: Connection) -> None:
    """Let new experiments have no group number: the site has no directory (any more)."""
    connection.execute(update(directory_numbers).values(enabled=False))


def without_number(connection: Connection) -> int:
    """Return how many experiments have no group number, because there are none left."""
    statement = select(func.count()).where(experiments.c.gid.is_(None), experiments.c.state != "deleted")
    return int(connection.execute(statement).scalar_one())


def give_uid_numbers(connection: Connection, ids: Iterable[int], first: int, last: int) -> None:
    """Give users without a uid number their own."""
    statement = text(
        "UPDATE users SET uid_number = :first + id WHERE uid_number IS NULL AND id = ANY(:ids) AND :first + id <= :last"
    )
    connection.execute(statement, {"first": first, "last": last, "ids": list(ids)})


def groups(connection: Connection, ids: Iterable[int] | None = None) -> list[Group]:
    """Return the groups of experiments that have a number, by id of the experiment.

    A deleted experiment that can be restored keeps its group, without members.

    :param ids: only of these experiments; ``None``: of all.
    """
    chosen = select(
        experiments.c.id,
        experiments.c.auth_group_name,
        experiments.c.gid,
        experiments.c.station_id,
        experiments.c.state,
    ).where(_EXISTS, experiments.c.gid.is_not(None))
    if ids is not None:
        chosen = chosen.where(experiments.c.id.in_(bindparam("ids", expanding=True)))
    parameters: dict[str, Any] = {} if ids is None else {"ids": list(ids)}
    rows = connection.execute(chosen.order_by(experiments.c.id), parameters).all()
    by_experiment: dict[int, set[str]] = {row.id: set() for row in rows if row.state != "deleted"}
    for row in connection.execute(_MEMBERS, {"ids": list(by_experiment)}):
        by_experiment[row.experiment_id].add(row.username)
    by_station: dict[int, set[str]] = {}
    for row in connection.execute(_STAFF):
        by_station.setdefault(row.station_id, set()).add(row.username)
    return [
        Group(
            row.id,
            row.auth_group_name,
            row.gid,
            frozenset(by_experiment[row.id] | by_station.get(row.station_id, set()))
            if row.id in by_experiment
            else frozenset(),
        )
        for row in rows
    ]


_MEMBERS = text(
    "SELECT r.experiment_id, u.username FROM experiment_roles r JOIN users u ON u.id = r.user_id"
    " WHERE u.active AND r.experiment_id = ANY(:ids)"
)
_STAFF = text("SELECT r.station_id, u.username FROM station_roles r JOIN users u ON u.id = r.user_id WHERE u.active")


def people(connection: Connection, synchronised_only: bool, ids: Iterable[int] | None = None) -> Sequence[RowMapping]:
    """Return users' rows. :param synchronised_only: only of those that came from a user directory."""
    statement = select(users).order_by(users.c.id)
    if synchronised_only:
        statement = statement.where(users.c.source.is_not(None))
    if ids is not None:
        statement = statement.where(users.c.id.in_(list(ids)))
    return connection.execute(statement).mappings().all()


def forget_told(connection: Connection, usernames: Iterable[str]) -> None:
    """Let the next synchronisation hand over these users' password hashes again: their entries are new."""
    names = list(usernames)
    if names:
        connection.execute(update(users).where(users.c.username.in_(names)).values(directory_digest=None))


def add_run(connection: Connection, report: dict[str, Any]) -> None:
    """Keep the report of a comparison of everything, and drop the oldest ones."""
    number = connection.execute(
        insert(directory_runs).values(report=report).returning(directory_runs.c.id)
    ).scalar_one()
    connection.execute(delete(directory_runs).where(directory_runs.c.id <= number - _KEPT_RUNS))


def last_run(connection: Connection) -> tuple[float, dict[str, Any]] | None:
    """Return the age in seconds and the report of the last comparison of everything, or ``None``."""
    row = connection.execute(
        text("SELECT extract(epoch FROM now() - finished) AS age, report FROM directory_runs ORDER BY id DESC LIMIT 1")
    ).one_or_none()
    return (float(row.age), dict(row.report)) if row is not None else None
