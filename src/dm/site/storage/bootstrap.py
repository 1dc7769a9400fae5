"""First steps on an empty database, straight against it: no service needs to run, nobody can log in yet.

The installer calls :func:`bootstrap`; running it again completes what is missing and changes nothing that is there,
except passwords that are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dm.common.errors import ObjectAlreadyExists, ObjectNotFound
from dm.site.database.store import Store
from dm.site.identity.users import Users
from dm.site.storage.registry import Registry
from dm.site.storage.settings import StorageSettings


@dataclass(frozen=True)
class Station:
    """A station and the accounts that run it.

    :param service_username: account of the station's services (roles ``service`` and ``manager``).
    :param manager_username: account of the people who run the beamline (role ``manager``), if it is to be made.
    """

    name: str
    service_username: str
    service_password: str
    manager_username: str | None = None
    manager_password: str | None = None
    description: str = ""
    experiment_types: tuple[str, ...] = ()


@dataclass
class Summary:
    """What was made, in words, in order; empty when everything was there."""

    made: list[str] = field(default_factory=list)


def bootstrap(
    settings: StorageSettings,
    *,
    admin_username: str,
    admin_password: str,
    storage_name: str,
    storage_directory: Path,
    storage_host: str | None = None,
    stations: Iterable[Station] = (),
    experiment_types: Iterable[str] = ("TEST",),
) -> Summary:
    """Make schema, first administrator, storage, experiment types and stations with their accounts; idempotent.

    :param settings: of the storage service; only database and host are used.
    :param storage_name: its lower-case form is the scheme of storage URLs.
    :param storage_directory: made (mode 0711) when missing.
    :param storage_host: default ``settings.storage_host``.
    :param stations: each station also gets an experiment type of its own name.
    :raises ServiceUnavailable: the database is down. :raises InvalidArgument: a name or password that cannot be.
    """
    store = Store(settings.database_url, 2)
    try:
        store.migrate()
        users, registry, summary = Users(store), Registry(store), Summary()
        _user(users, summary, admin_username, admin_password)
        _once(summary, f"administrator {admin_username}", users.add_system_role, admin_username, "administrator")
        if not storage_directory.exists():
            storage_directory.mkdir(mode=0o711, parents=True)
            storage_directory.chmod(0o711)
            summary.made.append(f"directory {storage_directory}")
        host = storage_host or settings.storage_host
        _once(summary, f"storage {storage_name}", registry.add_storage, storage_name, host, str(storage_directory))
        for name in experiment_types:
            _once(summary, f"experiment type {name}", registry.add_experiment_type, name)
        for station in stations:
            _station(users, registry, summary, station)
        return summary
    finally:
        store.close()


def _station(users: Users, registry: Registry, summary: Summary, station: Station) -> None:
    _once(summary, f"station {station.name}", registry.add_station, station.name, station.description)
    for name in (station.name, *station.experiment_types):
        _once(summary, f"experiment type {name}", registry.add_experiment_type, name)
    accounts: list[tuple[str, str, tuple[str, ...]]] = [
        (station.service_username, station.service_password, ("service", "manager"))
    ]
    if station.manager_username and station.manager_password:
        accounts.append((station.manager_username, station.manager_password, ("manager",)))
    for username, password, roles in accounts:
        _user(users, summary, username, password)
        for role in roles:
            _once(
                summary,
                f"{username} as {role} of {station.name}",
                users.add_station_role,
                username,
                role,
                station.name,
            )


def _user(users: Users, summary: Summary, username: str, password: str) -> None:
    """Make the user, or give an existing one the password if it is another one now."""
    try:
        users.get(username)
    except ObjectNotFound:
        users.add(username, password, last_name=username)
        summary.made.append(f"user {username}")
        return
    if not users.has_password(username, password):
        users.update(username, password)
        summary.made.append(f"password of {username}")


def _once(summary: Summary, what: str, make: Callable[..., Any], *arguments: Any) -> None:
    try:
        make(*arguments)
    except ObjectAlreadyExists:
        return
    summary.made.append(what)
