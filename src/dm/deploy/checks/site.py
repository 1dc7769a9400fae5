"""Checks of the site: its database, its directory of accounts, its storages and the accounts they belong to."""

from __future__ import annotations

import datetime
import errno
import grp
import os
import pwd
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, text

from dm.common.errors import DmException
from dm.deploy.checks.files import database_password
from dm.deploy.checks.findings import Finding, error, ok, warning
from dm.site.database import registry_store, store
from dm.site.database.store import Store
from dm.site.storage.settings import StorageSettings

_CLOCK_SECONDS = 2.0
_DURABLE = {"fsync": {"on"}, "full_page_writes": {"on"}, "synchronous_commit": {"on", "remote_apply", "remote_write"}}
_VERSION = re.compile(r"v(\d{4})_\w+\.py")
_GIGABYTE = 1 << 30


def database(settings: StorageSettings) -> Iterator[Finding]:
    """Check PostgreSQL: reachable, schema, durability, clock, administrators, storages."""
    name = "storage.database"
    yield from database_password(name, settings.database_url)
    opened = Store(settings.database_url, 1)
    try:
        with opened.transaction() as connection:
            yield ok(name, f"PostgreSQL {connection.execute(text('SHOW server_version')).scalar_one()} answers")
            yield from _durability(connection)
            yield _connections(connection, settings)
            yield _clock(connection)
            schema = _schema(connection)
            yield schema
            if schema.level == 0:
                yield _administrators(connection)
                yield from _storages(connection, settings)
    finally:
        opened.close()


def _durability(connection: Connection) -> Iterator[Finding]:
    for setting, good in _DURABLE.items():
        value = str(connection.execute(text(f"SHOW {setting}")).scalar_one())
        name = f"storage.database.{setting}"
        if value in good:
            yield ok(name, value)
        else:
            yield error(name, f"{setting} is {value}: what users were told is stored may be lost; set it to on.")


def _connections(connection: Connection, settings: StorageSettings) -> Finding:
    most = int(connection.execute(text("SHOW max_connections")).scalar_one())
    wanted = 3 * settings.database_connections
    name = "storage.database.max_connections"
    if wanted + 10 > most:
        return warning(name, f"{most}, and a service may open {wanted}; raise it, or lower database_connections.")
    return ok(name, f"{most}, of which a service opens {wanted} at most")


def _clock(connection: Connection) -> Finding:
    there: datetime.datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    apart = abs((datetime.datetime.now(datetime.UTC) - there).total_seconds())
    if apart > _CLOCK_SECONDS:
        return warning("clock", f"This host and the database are {apart:.0f} s apart; synchronise both (NTP).")
    return ok("clock", f"within {_CLOCK_SECONDS:.0f} s of the database's")


def _schema(connection: Connection) -> Finding:
    # named v<revision>_<what>.py; importing them takes a database
    versions = Path(store.__file__).parent / "migrations" / "versions"
    head = max(match[1] for file in versions.iterdir() if (match := _VERSION.fullmatch(file.name)))
    name = "storage.database.schema"
    if not connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one():
        return error(name, "The database is empty; run dm-install, or start the storage service once.")
    found = str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none())
    if found == head:
        return ok(name, found)
    if found < head:
        return warning(
            name, f"{found}; the next start brings it to {head}, which this release needs; back it up first."
        )
    return error(name, f"{found} is of a newer release than this one ({head}); upgrade this host.")


def _administrators(connection: Connection) -> Finding:
    count = connection.execute(
        text(
            "SELECT count(*) FROM system_roles r JOIN users u ON u.id = r.user_id"
            " WHERE r.role = 'administrator' AND u.active"
        )
    ).scalar_one()
    if not count:
        return error("storage.administrators", "Nobody who may log in is an administrator; run dm-install again.")
    return ok("storage.administrators", str(count))


def _storages(connection: Connection, settings: StorageSettings) -> Iterator[Finding]:
    rows = registry_store.rows(connection, "storage")
    if not rows:
        yield warning("storage", "No storage is registered; add one with dm-add-storage.")
    for row in rows:
        yield from storage_directory(str(row["name"]), Path(str(row["root_directory"])), settings)


def storage_directory(storage: str, directory: Path, settings: StorageSettings) -> Iterator[Finding]:
    """Check one storage's directory: owner, mode, access control lists, free space."""
    name = f"storage.{storage}"
    try:
        status = directory.stat()
    except OSError as failure:
        yield error(name, f"{directory} cannot be looked at: {failure.strerror}; is the file system mounted?")
        return
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode) or not os.access(directory, os.W_OK | os.X_OK):
        yield error(name, f"{directory} is no directory this account can write to; run this as the service's account.")
    elif mode & 0o002 and not mode & stat.S_ISVTX:
        yield error(name, f"{directory} can be written by everybody (mode {mode:04o}); run: chmod 711 {directory}")
    elif not mode & 0o001:
        yield warning(name, f"Other accounts cannot pass {directory} (mode {mode:04o}); run: chmod 711 {directory}")
    elif mode & 0o004:
        yield warning(name, f"Everybody can list {directory} (mode {mode:04o}); run: chmod 711 {directory}")
    else:
        yield ok(name, f"{directory}, mode {mode:04o}")
    yield _lists(f"{name}.acl", directory)
    free = shutil.disk_usage(directory).free / _GIGABYTE
    least = settings.minimum_free_gigabytes
    if free < least:
        yield warning(f"{name}.space", f"{free:.1f} GiB are free, {least:g} should be; make room.")
    else:
        yield ok(f"{name}.space", f"{free:.1f} GiB free")


def _lists(name: str, directory: Path) -> Finding:
    try:
        os.getxattr(directory, "system.posix_acl_default")
    except OSError as failure:
        if failure.errno != errno.ENODATA:
            return warning(name, "The file system has no access control lists; the accounts of movers pass by mode.")
    return ok(name, "the file system has access control lists")


def accounts(settings: StorageSettings) -> Iterator[Finding]:
    """Check that the accounts and groups of the settings exist, and that the service may give files to them."""
    for field, known in (
        ("file_owner", pwd.getpwnam),
        ("staging_owner", pwd.getpwnam),
        ("file_group", grp.getgrnam),
        ("staging_group", grp.getgrnam),
    ):
        value = getattr(settings, field)
        if value is None:
            continue
        try:
            known(value)
        except KeyError:
            yield error(f"storage.{field}", f"{value} does not exist on this host; make it or correct the settings.")
        else:
            yield ok(f"storage.{field}", value)
    if os.geteuid() != 0:
        yield warning(
            "storage.account",
            "This account is not root: files stay with the service's account and groups are those it is a member of.",
        )


def ldap(settings: StorageSettings) -> Iterator[Finding]:
    """Check the directory of accounts: reachable, verified, takes the service's account."""
    if settings.ldap is None:
        yield ok("storage.ldap", "none is configured")
        return
    from dm.site.identity.ldap.connection import Directory

    try:
        Directory(settings.ldap).check()
    except DmException as failure:
        yield error("storage.ldap", str(failure))
        return
    plain = [url for url in settings.ldap.servers if url.startswith("ldap://")]
    if plain and settings.ldap.allow_plain_loopback:
        yield warning("storage.ldap", f"{', '.join(plain)} is spoken to without encryption on this machine.")
    else:
        servers = ", ".join(settings.ldap.servers)
        yield ok("storage.ldap", f"{servers} answers, verified, and takes {settings.ldap.bind_dn}")
