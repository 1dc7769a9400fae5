"""The connection to PostgreSQL: engine, transactions, error mapping, migrations.

The queries themselves are in the ``*_store`` modules, one per noun; nothing else of the service speaks SQL.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dm.common.errors import ServiceUnavailable

LOG = logging.getLogger(__name__)

# Advisory locks: the first number says what is locked, the second which one.
MIGRATION_LOCK = 0x646D0001
PUBLISH_LOCK = 0x646D0002
CREATE_LOCK = 0x646D0003
HOUSEKEEPING_LOCK = 0x646D0004
FACILITY_LOCK = 0x646D0005  # by adapter and kind
OPERATION_LOCK = 0x646D0010  # by experiment
DIRECTORY_LOCK = 0x646D0011
INSPECTION_LOCK = 0x646D0020
USER_SYNC_LOCK = 0x646D0021  # by user directory
GLOBUS_LOCK = 0x646D0030  # by experiment

_STATEMENT_MILLISECONDS = 60_000


_NOT_DURABLE = text("SET LOCAL synchronous_commit = off")


class Store:
    """A pool of connections that heals itself after the database was away.

    :param url: SQLAlchemy URL, driver psycopg2.
    :param pool_size: connections kept; twice as many are opened under load.
    :param name: what PostgreSQL shows of them in ``pg_stat_activity``.
    """

    def __init__(self, url: str, pool_size: int = 10, name: str = "dm-storage") -> None:
        self.engine: Engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_size=pool_size,
            max_overflow=2 * pool_size,
            pool_timeout=5,
            connect_args={
                "connect_timeout": 5,
                "application_name": name,
                "options": f"-c statement_timeout={_STATEMENT_MILLISECONDS} -c timezone=UTC",
            },
        )

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[Connection]:
        """Run one transaction.

        :param durable: whether it is on disk on return; otherwise a crash of the database server, not of ours, may
            undo it: for what whoever asked finds out and asks again.
        :raises ServiceUnavailable: the database is down or too busy; nothing was changed, unless the connection broke
            during the commit itself.
        :raises IntegrityError: a unique or foreign key says no; the caller knows what that means.
        """
        try:
            with self.engine.begin() as connection:
                if not durable:
                    connection.execute(_NOT_DURABLE)
                yield connection
        except IntegrityError:
            raise
        except PoolTimeout as error:
            raise ServiceUnavailable("The database has no free connection; try again in a moment.") from error
        except DBAPIError as error:
            if _is_outage(error):
                LOG.warning("database outage: %s", str(error.orig).strip().splitlines()[:1])
                raise ServiceUnavailable("The database does not answer; try again in a moment.") from error
            raise

    def ping(self) -> None:
        """Ask the database a trivial question. :raises ServiceUnavailable: it does not answer."""
        with self.transaction() as connection:
            connection.execute(text("SELECT 1"))

    def migrate(self) -> str:
        """Bring the schema to this version of the code, in one transaction and only one process at a time.

        :returns: the schema's revision. :raises ServiceUnavailable: the database is down.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.migration import MigrationContext

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self.transaction() as connection:
            # SET LOCAL: a long migration, or waiting for another process's, is no runaway query.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            lock(connection, MIGRATION_LOCK, 0)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            return str(MigrationContext.configure(connection).get_current_revision())


def lock(connection: Connection, what: int, which: int) -> None:
    """Wait for an advisory lock and hold it until the transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:what, :which)"), {"what": what, "which": which})


def try_lock(connection: Connection, what: int, which: int) -> bool:
    """Take an advisory lock until the transaction ends, unless somebody has it."""
    statement = text("SELECT pg_try_advisory_xact_lock(:what, :which)")
    return bool(connection.execute(statement, {"what": what, "which": which}).scalar_one())


def constraint_of(error: IntegrityError) -> str:
    """Return the name of the constraint that was violated, or empty text."""
    diagnostics: Any = getattr(error.orig, "diag", None)
    return str(getattr(diagnostics, "constraint_name", None) or "")


def _is_outage(error: DBAPIError) -> bool:
    """Whether this is about the connection or the server's state rather than about our statement."""
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "pgcode", None)
    if state is None:
        from psycopg2 import InterfaceError, OperationalError

        return isinstance(error.orig, InterfaceError | OperationalError)
    # 08 connection, 53 resources, 57 operator intervention (shutdown, starting up), 40 rollback, 25006 read-only.
    return state[:2] in ("08", "53", "57", "40") or state == "25006"
