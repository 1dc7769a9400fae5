"""Experiments: the unit that data belongs to and that people are members of."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from dm.common.errors import InvalidArgument, ObjectAlreadyExists, ObjectNotFound
from dm.common.web.routes import Principal
from dm.site import rules
from dm.site.database import registry_store
from dm.site.database.store import CREATE_LOCK, Store, constraint_of, lock
from dm.site.identity import audit
from dm.site.identity.users import give_role
from dm.site.storage import experiment_records, experiment_store, layout, storages
from dm.site.storage.changes import Changes
from dm.site.storage.directories import ExperimentDirectory, Owners


@dataclass(frozen=True)
class Reference:
    """How a caller names an experiment: by number, or by name and station. A number that is known decides."""

    id: int | None = None
    name: str | None = None
    station: str | None = None

    def __str__(self) -> str:
        if self.name is None:
            return f"with id {self.id}"
        shown = ascii(self.name[:160])
        return f"{shown} at station {self.station[:80]!a}" if self.station else shown

    def not_found(self) -> ObjectNotFound:
        """Return the error, whose words scripts look for."""
        return ObjectNotFound(f"Experiment {self} does not exist.")


def find(connection: Connection, reference: Reference, lock: bool = False) -> RowMapping:
    """Return an experiment's row; a name without station must be the only one of that name.

    :raises ObjectNotFound: none. :raises InvalidArgument: the name alone is ambiguous.
    """
    row: RowMapping | None = None
    if reference.id is not None:
        in_range = 0 < reference.id < 1 << 31
        row = experiment_store.by_id(connection, reference.id, lock) if in_range else None
    elif reference.name is not None:
        station = reference.station
        if not station:
            having = experiment_store.stations_having(connection, reference.name)
            if len(having) > 1:
                raise InvalidArgument(f"Experiment {reference.name!a} exists at several stations; name the station.")
            station = having[0] if having else ""
        row = experiment_store.by_name(connection, reference.name, station, lock)
    if row is None:
        raise reference.not_found()
    return row


def find_visible(connection: Connection, reference: Reference, principal: Principal) -> RowMapping:
    """Return an experiment the caller may know of. :raises ObjectNotFound: none, or none of theirs."""
    try:
        row = find(connection, reference)
    except InvalidArgument:
        if principal.is_admin:
            raise
        rows = [
            candidate
            for station in experiment_store.stations_having(connection, reference.name or "")
            if (candidate := experiment_store.by_name(connection, reference.name or "", station))
            and visible(connection, candidate, principal)
        ]
        if len(rows) == 1:
            return rows[0]
        if rows:
            raise
        raise reference.not_found() from None
    if not visible(connection, row, principal):
        raise reference.not_found()
    return row


def visible(connection: Connection, row: RowMapping, principal: Principal) -> bool:
    """Whether the caller manages the experiment's station or is a member."""
    station = row["station_name"]
    return principal.reaches(station) and (
        principal.manages(station) or experiment_store.is_member(connection, row["id"], principal.username)
    )


class Experiments:
    """The use cases of adding, changing and looking up."""

    def __init__(self, store: Store, owners: Owners) -> None:
        self._store = store
        self._owners = owners

    def at_station(self, principal: Principal, station: str) -> list[dict[str, Any]]:
        """Return the short records of the station's experiments the caller may see, newest last.

        :raises ObjectNotFound: no such station.
        """
        with self._store.transaction() as connection:
            place = registry_store.required(connection, "station", station)
            member = None if principal.manages(station) else principal.username
            rows = experiment_store.at_station(connection, place["id"], member) if principal.reaches(station) else []
        return [experiment_records.short(row) for row in rows]

    def get(self, principal: Principal, reference: Reference) -> dict[str, Any]:
        """Return the full record. :raises ObjectNotFound: none the caller may see."""
        with self._store.transaction() as connection:
            return full(connection, find_visible(connection, reference, principal))

    def add(
        self, name: str, station: str, changes: Changes, storage: str | None = None, usernames: list[str] | None = None
    ) -> dict[str, Any]:
        """Add an experiment and make its directories.

        :param station: name of an existing station.
        :param storage: name; default: the station's, else the one with most space.
        :param usernames: members from the start, role ``User``.
        :returns: the full record. :raises ObjectAlreadyExists: the station has one of that name.
        :raises ObjectNotFound: station, type, storage or user unknown. :raises InvalidArgument: a bad value.
        :raises InvalidObjectState: the directory is taken. :raises ServiceUnavailable: it cannot be made.
        """
        rules.object_name(name)
        below = rules.root_path(changes.root_path)
        values = changes.columns()
        today = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        start = values.setdefault("start_date", min(today, values.get("end_date", today)))
        check_dates(start, values.setdefault("end_date", start))
        try:
            with self._store.transaction() as connection:
                place = registry_store.required(connection, "station", station)
                target = storages.choose(connection, place, storage)
                kind = self._type(connection, changes.type_name, preferred=station)
                facts = layout.Facts(station, name, kind["name"], below, start)
                directory = layout.directory(target["root_directory"], place["path_template"], facts)
                lock(connection, CREATE_LOCK, target["id"])
                refuse_nesting(connection, name, directory, Path(target["root_directory"]))
                values |= {
                    "name": name, "station_id": place["id"], "storage_id": target["id"], "type_id": kind["id"],
                    "root_path": below, "storage_directory": directory,
                    "auth_group_name": auth_group_name(name, station),
                }  # fmt: skip
                number = experiment_store.add(connection, values)
                self._add_members(connection, number, usernames or [])
                row = find(connection, Reference(id=number))
                ExperimentDirectory(directory, self._owners.of_experiment(row)).make(
                    target["root_directory"], number, self._owners
                )
                audit.record(
                    connection, "experiment.added", f"{name}/{station}", experimentId=number, users=usernames or None
                )
                return full(connection, row)
        except IntegrityError as error:
            raise name_taken(error, name, station) from None

    @staticmethod
    def _type(connection: Connection, name: str | None, preferred: str) -> RowMapping:
        """Return the experiment type named, else the preferred one, else the only one."""
        if name:
            return registry_store.required(connection, "experiment type", name)
        rows = registry_store.rows(connection, "experiment type")
        chosen = [row for row in rows if row["name"] == preferred] or list(rows)
        if len(chosen) != 1:
            names = ", ".join(row["name"] for row in rows) or "none exists yet"
            raise InvalidArgument(f"Name the experiment type of the experiment: {names}.")
        return chosen[0]

    @staticmethod
    def _add_members(connection: Connection, experiment_id: int, usernames: list[str]) -> None:
        for username in usernames:
            give_role(connection, username, "User", experiment_id)


def check_dates(start: datetime, end: datetime) -> None:
    """Return if they are in order. :raises InvalidArgument: the end lies before the start."""
    if end < start:
        raise InvalidArgument(f"End date {end:%Y-%m-%d} lies before start date {start:%Y-%m-%d}.")


def refuse_nesting(connection: Connection, name: str, directory: str, root: Path) -> None:
    """Return if no other experiment's directory would contain this one or lie in it.

    :raises InvalidArgument: one would.
    """
    ancestors = [str(parent) for parent in Path(directory).parents if parent != root and root in parent.parents]
    if others := experiment_store.directory_neighbours(connection, directory, ancestors):
        raise InvalidArgument(
            f"The directory of experiment {name!a} and that of {others[0]!a} would lie within each other; "
            "choose another name or root path."
        )


def name_taken(error: IntegrityError, name: str, station: str, advice: str = "") -> Exception:
    """Return what to raise when the database refuses an experiment's name or directory."""
    if constraint_of(error).startswith("uq_experiments_live"):
        where = f" at station {station!a}" if station else ""
        return ObjectAlreadyExists(f"Experiment {name!a}{where} already exists{'; ' if advice else ''}{advice}.")
    return error


def full(connection: Connection, row: RowMapping) -> dict[str, Any]:
    """Return the full record of an experiment's row."""
    return experiment_records.full(row, experiment_store.members(connection, row["id"]))


def auth_group_name(name: str, station: str) -> str:
    """Return a name for the experiment's Unix group: shortened name, station, short hash; at most 32 characters.

    Every call gives another hash: an experiment that reuses a deleted one's name must not inherit its group.
    """
    digest = hashlib.sha256(f"{station}/{name}/{secrets.token_hex(8)}".encode()).hexdigest()[:6]
    place = re.sub(r"[^a-z0-9]", "", station.lower())[:12]
    short = re.sub(r"[^a-z0-9_]", "", name.lower())[: 32 - len(place) - len(digest) - 2] or "exp"
    return f"{short}-{place}-{digest}"
