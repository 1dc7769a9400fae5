"""SQL about the Globus groups of experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from dm.site.database.tables import experiment_roles, experiments, globus_groups, station_roles, stations, users

_LIVING = ("active", "moving")
_BACK_OFF = (30, 60, 120, 300, 900)  # seconds before the next try after so many failures


@dataclass(frozen=True)
class People:
    """Who belongs to groups. :param members: by experiment. :param managers: by station."""

    members: dict[int, list[RowMapping]]
    managers: dict[int, list[RowMapping]]


def _joined() -> Any:
    return (
        select(
            globus_groups,
            experiments.c.name,
            experiments.c.state,
            experiments.c.storage_directory,
            experiments.c.end_date,
            experiments.c.station_id,
            stations.c.name.label("station_name"),
            experiments.c.state.in_(_LIVING).label("living"),
            func.extract("epoch", func.clock_timestamp() - globus_groups.c.compared).label("age"),
        )
        .join(experiments, experiments.c.id == globus_groups.c.experiment_id)
        .join(stations, stations.c.id == experiments.c.station_id)
    )


def one(connection: Connection, experiment_id: int) -> RowMapping | None:
    """Return the group of an experiment, joined with it."""
    return connection.execute(_joined().where(globus_groups.c.experiment_id == experiment_id)).mappings().one_or_none()


def every(connection: Connection, due: bool = False) -> Sequence[RowMapping]:
    """Return all groups by experiment, oldest first. :param due: without those that rest after a failure."""
    statement = _joined().order_by(globus_groups.c.experiment_id)
    if due:
        now = func.clock_timestamp()
        statement = statement.where((globus_groups.c.not_before.is_(None)) | (globus_groups.c.not_before <= now))
    return connection.execute(statement).mappings().all()


def people(connection: Connection, experiment_id: int | None = None) -> People:
    """Return the active people of the experiments that have groups, or of one."""
    chosen = select(globus_groups.c.experiment_id)
    if experiment_id is not None:
        chosen = chosen.where(globus_groups.c.experiment_id == experiment_id)
    at_stations = select(experiments.c.station_id).where(experiments.c.id.in_(chosen))
    fields = (users.c.username, users.c.badge, users.c.email)
    of_experiments = (
        select(experiment_roles.c.experiment_id.label("of"), *fields)
        .join(experiment_roles, experiment_roles.c.user_id == users.c.id)
        .where(experiment_roles.c.experiment_id.in_(chosen), users.c.active)
        .distinct()
    )
    of_stations = (
        select(station_roles.c.station_id.label("of"), *fields)
        .join(station_roles, station_roles.c.user_id == users.c.id)
        .where(station_roles.c.station_id.in_(at_stations), station_roles.c.role == "manager", users.c.active)
    )
    return People(_grouped(connection, of_experiments), _grouped(connection, of_stations))


def _grouped(connection: Connection, statement: Any) -> dict[int, list[RowMapping]]:
    found: dict[int, list[RowMapping]] = {}
    for row in connection.execute(statement.order_by("of", "username")).mappings():
        found.setdefault(row["of"], []).append(row)
    return found


def by_username(connection: Connection, username: str) -> RowMapping | None:
    """Return what a user's identity is made of."""
    fields = select(users.c.username, users.c.badge, users.c.email).where(users.c.username == username)
    return connection.execute(fields).mappings().one_or_none()


def add(connection: Connection, experiment_id: int, group_id: str, group_name: str) -> None:
    """Note a new group, in the experiment's record, too."""
    connection.execute(
        insert(globus_groups).values(experiment_id=experiment_id, group_id=group_id, group_name=group_name)
    )
    connection.execute(update(experiments).where(experiments.c.id == experiment_id).values(globus_group_id=group_id))


def remove(connection: Connection, experiment_id: int) -> None:
    """Forget a group, in the experiment's record, too."""
    connection.execute(delete(globus_groups).where(globus_groups.c.experiment_id == experiment_id))
    connection.execute(update(experiments).where(experiments.c.id == experiment_id).values(globus_group_id=None))


def change(connection: Connection, experiment_id: int, **values: Any) -> None:
    """Set columns."""
    connection.execute(update(globus_groups).where(globus_groups.c.experiment_id == experiment_id).values(**values))


def succeeded(connection: Connection, experiment_id: int, **values: Any) -> None:
    """Note that Globus is as the database."""
    now = func.clock_timestamp()
    change(connection, experiment_id, compared=now, failures=0, not_before=None, last_error="", **values)


def failed(connection: Connection, experiment_id: int, sentence: str, failures: int) -> None:
    """Note that it is not, and when to try again."""
    pause = _BACK_OFF[min(failures, len(_BACK_OFF) - 1)]
    later = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, pause)
    change(connection, experiment_id, failures=failures + 1, not_before=later, last_error=sentence[:1000])
