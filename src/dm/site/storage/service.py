"""The Storage Management Service: put together from its parts, or from its settings."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dm.common import program
from dm.common.errors import DmException
from dm.common.health import Health, Level
from dm.common.web.application import Application
from dm.common.web.server import Server, serve
from dm.common.web.throttle import LoginThrottle
from dm.site.database.store import Store
from dm.site.identity.audit_log import AuditLog
from dm.site.identity.ldap import parts as ldap_parts
from dm.site.identity.lockout import Lockouts, SqlTally
from dm.site.identity.sessions import SqlSessionStore
from dm.site.identity.tokens import Tokens
from dm.site.identity.users import Users
from dm.site.storage import batch_store, capacity
from dm.site.storage.access import SiteAuthorizer
from dm.site.storage.archive import Archives
from dm.site.storage.batches import Batches, Signal
from dm.site.storage.deletion import Deletion
from dm.site.storage.directories import Owners
from dm.site.storage.download_policy import DownloadPolicy
from dm.site.storage.experiments import Experiments
from dm.site.storage.explain import Explanations
from dm.site.storage.file_changes import FileChanges
from dm.site.storage.files import Files
from dm.site.storage.globus_groups import GlobusGroups
from dm.site.storage.globus_worker import GlobusWorker
from dm.site.storage.grants import Grants
from dm.site.storage.housekeeping import Housekeeper
from dm.site.storage.inspection import Inspections, Inspector, watch
from dm.site.storage.life_routes import Life
from dm.site.storage.members import Members
from dm.site.storage.moving import Moving
from dm.site.storage.operations import Operations
from dm.site.storage.permission_routes import Permitting
from dm.site.storage.permissions import Permissions
from dm.site.storage.publisher import Publisher
from dm.site.storage.recorded import Recorded
from dm.site.storage.registry import Registry
from dm.site.storage.routes import UseCases, routes
from dm.site.storage.settings import StorageSettings
from dm.site.storage.updates import Updates
from dm.site.storage.vault import Vault

NAME = "storage"
_SLOW_BACKLOG_SECONDS = 60.0


@dataclass
class StorageService:
    """A service, ready to run: start it, serve :attr:`application`, stop it."""

    application: Application
    store: Store
    publisher: Publisher
    housekeeper: Housekeeper
    use_cases: UseCases

    def start(self) -> None:
        """Bring the schema up to date and begin the background work. :raises ServiceUnavailable: no database."""
        self.store.migrate()
        self.publisher.start()
        self.housekeeper.start()
        self.use_cases.directory.start()
        self.use_cases.globus.start()
        self.use_cases.permitting.inspector.start()
        self.use_cases.operations.start()

    def stop(self) -> None:
        """End the background work (after the batches being published now) and close the database."""
        self.use_cases.operations.stop()
        self.use_cases.permitting.inspector.stop()
        self.use_cases.globus.stop()
        self.use_cases.directory.stop()
        self.housekeeper.stop()
        self.publisher.stop()
        with contextlib.suppress(DmException):  # what was only counted is worth no error here
            self.use_cases.users.refusals.flush()
        self.store.close()


def build_app(store: Store, owners: Owners, settings: StorageSettings) -> StorageService:
    """Put the service together from its database, its accounts and its settings; nothing is started."""
    queued, ended, work = Signal(), Signal(), Signal()
    health = Health(NAME)
    sessions = SqlSessionStore(store, *settings.session_limits)
    operations = Operations(store, work)
    members = Members(store)
    deletion = Deletion(store, owners, operations, settings.deleted_keep_days)
    directory = ldap_parts.build(settings.ldap, store, health)
    users = Users(store, directory.checks_passwords)
    tokens = Tokens(store, settings.token_max_days)
    audit_log = AuditLog(store, settings.audit_days)
    publisher = Publisher(store, owners, settings, queued, ended)
    housekeeper = Housekeeper(
        store,
        publisher=publisher,
        sessions=sessions,
        work=work,
        staging_hours=settings.staging_max_age_hours,
        duties=(
            deletion.purge_due,
            users.refusals.flush,
            directory.sweep,
            tokens.warn,
            audit_log.forget,
            functools.partial(tokens.forget, settings.audit_days),
        ),
    )
    use_cases = UseCases(
        experiments=Experiments(store, owners),
        members=members,
        life=Life(
            Updates(store, owners, operations),
            deletion,
            members,
            FileChanges(store, owners, operations),
            Moving(store, owners, operations),
            Vault(store, owners, operations, settings.archive_directory),
        ),
        users=users,
        registry=Registry(store),
        grants=Grants(store),
        batches=Batches(
            store,
            owners,
            queued=queued,
            ended=ended,
            max_files=settings.batch_max_files,
            waiters=max(settings.threads // 2, 1),
        ),
        files=Files(store),
        archives=Archives(store),
        download_policy=DownloadPolicy(store, settings.download),
        operations=operations,
        recorded=Recorded(store),
        permissions=Permissions(store, owners),
        permitting=_permitting(store, owners, settings, health),
        health=health,
        throttle=LoginThrottle(SqlTally(store)),
        lockouts=Lockouts(store),
        tokens=tokens,
        audit_log=audit_log,
        sessions=sessions,
        directory=directory,
        globus=GlobusWorker(GlobusGroups(store, settings.globus), health),
    )
    _checks(health, store, publisher, settings)
    health.check("tokens", tokens.health)
    application = Application(
        NAME,
        routes(use_cases),
        users,
        SiteAuthorizer(store, settings.pi_manages_users),
        sessions,
        health,
        streams=max(settings.threads // 3, 1),
        throttle=use_cases.throttle,
    )
    return StorageService(application, store, publisher, housekeeper, use_cases)


def _permitting(store: Store, owners: Owners, settings: StorageSettings, health: Health) -> Permitting:
    wanted = Signal()
    inspector = Inspector(store, owners, settings.inspection, wanted)
    watch(health, store, owners, inspector, settings.inspection)
    return Permitting(Inspections(store, owners, wanted), Explanations(store, owners), inspector)


def build_server(service: StorageService, settings: StorageSettings) -> Server:
    """Return the HTTPS server of a service, not started."""
    return Server.of(service.application, settings)


def build_from_settings(settings: StorageSettings) -> StorageService:
    """Put the service together from its settings. :raises ConfigurationError: an account that does not exist."""
    return build_app(Store(settings.database_url, settings.database_connections), Owners(settings), settings)


def _checks(health: Health, store: Store, publisher: Publisher, settings: StorageSettings) -> None:
    def database() -> tuple[Level, str]:
        store.ping()
        return "ok", "answers"

    def backlog() -> tuple[Level, str]:
        with store.transaction() as connection:
            count, age = batch_store.backlog(connection)
        health.gauge("batches_waiting", "Batches queued or being published.").set(count)
        health.gauge("batches_oldest_seconds", "Age of the oldest of them.").set(age)
        slow = age > _SLOW_BACKLOG_SECONDS
        return "warning" if slow else "ok", f"{count} batches wait, the oldest for {age:.0f} s"

    health.check("database", database)
    capacity.watch(health, store, settings.minimum_free_gigabytes)
    capacity.watch_deleted(health, store)
    health.check("publisher", backlog)
    published: Any = health.gauge("files_published", "Files published since the start.")
    published.set_function(lambda: publisher.published_files)
    failed: Any = health.gauge("files_failed", "Files refused since the start.")
    failed.set_function(lambda: publisher.failed_files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM.

    :returns: see :func:`dm.common.program.run`.
    """
    return program.run(NAME, "Run the Storage Management Service.", StorageSettings, _run, arguments)


def _run(settings: StorageSettings, file: Path) -> None:
    service = build_from_settings(settings)
    service.start()
    try:
        serve(build_server(service, settings), NAME)
    finally:
        service.stop()
