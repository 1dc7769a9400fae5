"""The metadata catalog as a process: building it from objects or settings, and running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dm.common import program
from dm.common import settings as settings_files
from dm.common.errors import DmException
from dm.common.health import Health, Level
from dm.common.settings import StationSettings
from dm.common.web.application import Application, Authenticator, Authorizer
from dm.common.web.server import Server, serve
from dm.common.web.sessions import MemorySessionStore, SessionStore
from dm.station.catalog.access import Access, Site
from dm.station.catalog.documents import RUN, DatasetCatalog, DocumentCatalog
from dm.station.catalog.filecollections import FileCollections
from dm.station.catalog.files import FileCatalog
from dm.station.catalog.operations import Operations
from dm.station.catalog.replies import Outcome
from dm.station.catalog.routes import UseCases, routes
from dm.station.catalog.settings import CatalogSettings
from dm.station.catalog.site import Site as RemoteSite
from dm.station.catalog.store import Store
from dm.station.identity import SiteIdentity

NAME = "catalog"


@dataclass
class Catalog:
    """The catalog's working parts.

    :param store: prepared database. :param site: answers about experiments.
    """

    store: Store
    site: Site
    health: Health
    files: FileCatalog = field(init=False)
    collections: FileCollections = field(init=False)
    operations: Operations = field(init=False)
    datasets: DatasetCatalog = field(init=False)
    runs: DocumentCatalog = field(init=False)

    def __post_init__(self) -> None:
        self.files = FileCatalog(self.store)
        self.collections = FileCollections(self.store, self.files)
        self.operations = Operations(self.store, self.files)
        self.datasets = DatasetCatalog(self.store, self.files)
        self.runs = DocumentCatalog(self.store.runs, RUN)
        self._records = self.health.counter("catalog_records", "File records received in bulk.", ("outcome",))
        self._documents = self.health.gauge("catalog_documents", "Documents in the catalog, roughly.", ("kind",))
        self.health.check("database", self._check_database)

    def start(self) -> None:
        """Start background work."""
        self.operations.start()

    def stop(self) -> None:
        """Stop background work and close the database."""
        self.operations.stop()
        self.store.close()

    def count(self, outcome: Outcome) -> None:
        """Count what became of records that came in bulk."""
        record = outcome.as_record()
        for name in ("Added", "Updated", "Unchanged", "Errors"):
            self._records.labels(name.lower()).inc(record[f"n{name}"])

    def _check_database(self) -> tuple[Level, str]:
        try:
            self.store.ping()
            counts = self.store.approximate_counts()
        except DmException as error:
            return "critical", error.message
        for kind, number in counts.items():
            self._documents.labels(kind).set(number)
        return "ok", "about " + ", ".join(f"{number} {kind}" for kind, number in counts.items())


def build_app(
    catalog: Catalog, authenticator: Authenticator, authorizer: Authorizer, sessions: SessionStore
) -> Application:
    """Return the catalog's web application."""
    use = UseCases(
        access=Access(catalog.site),
        files=catalog.files,
        collections=catalog.collections,
        operations=catalog.operations,
        datasets=catalog.datasets,
        runs=catalog.runs,
        health=catalog.health,
        count=catalog.count,
    )
    return Application(NAME, routes(use), authenticator, authorizer, sessions, catalog.health)


@dataclass
class CatalogService:
    """A service, ready to run: start it, run :attr:`server`, stop it."""

    catalog: Catalog
    server: Server
    site: RemoteSite
    identity: SiteIdentity

    def start(self) -> None:
        """Start background work."""
        self.catalog.start()

    def stop(self) -> None:
        """Stop background work, close the database and the connections to the site."""
        self.catalog.stop()
        self.site.close()
        self.identity.close()


def build_from_settings(settings: CatalogSettings, station: StationSettings) -> CatalogService:
    """Return the service, its database prepared, nothing started.

    :raises ConfigurationError: unusable settings. :raises ServiceUnavailable: the database does not answer.
    """
    identity = SiteIdentity(station)
    site = RemoteSite(station, identity)
    store = Store(settings.database_url)
    store.prepare()
    catalog = Catalog(store, site, Health(NAME, station.name))
    sessions = MemorySessionStore(*settings.session_limits)
    application = build_app(catalog, identity, identity.authorizer(), sessions)
    server = Server.of(application, settings)
    return CatalogService(catalog, server, site, identity)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM.

    :returns: see :func:`dm.common.program.run`.
    """
    return program.run(NAME, "Run the metadata catalog of a station.", CatalogSettings, _run, arguments)


def _run(settings: CatalogSettings, file: Path) -> None:
    service = build_from_settings(settings, settings_files.load(StationSettings, "station", file))
    service.start()
    serve(service.server, NAME, service.stop)
