"""The schema and its migrations, the first steps on an empty database, sessions - against a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

import dm.site.database.migrations
from dm.common.errors import ServiceUnavailable
from dm.common.web.routes import Principal
from dm.site.database.store import MIGRATION_LOCK, Store, lock
from dm.site.database.tables import METADATA
from dm.site.identity.sessions import SqlSessionStore
from dm.site.identity.users import Users
from dm.site.storage.bootstrap import Station, bootstrap
from dm.site.storage.settings import StorageSettings

Factory = Callable[[], str]


@pytest.fixture
def store(new_postgres_database: Factory) -> Iterator[Store]:
    made = Store(new_postgres_database(), 4)
    yield made
    made.close()


def downgrade(store: Store, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(dm.site.database.migrations.__file__).parent))
    with store.transaction() as connection:
        lock(connection, MIGRATION_LOCK, 0)
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def tables(store: Store) -> set[str]:
    with store.transaction() as connection:
        return set(inspect(connection).get_table_names())


def test_f52_the_migrations_make_what_the_code_expects(store: Store) -> None:
    store.migrate()
    with store.transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_f52_upgrade_can_be_repeated_and_taken_back(store: Store) -> None:
    assert store.migrate() == store.migrate()
    downgrade(store, "base")
    assert tables(store) == {"alembic_version"}
    store.migrate()
    assert {"users", "experiments", "published_files"} <= tables(store)


def test_f52_a_migration_that_is_cut_short_leaves_nothing(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute(text("CREATE TABLE operations (in_the_way int)"))
    with pytest.raises(Exception, match="already exists"):
        store.migrate()
    assert tables(store) == {"operations"}
    with store.transaction() as connection:
        connection.execute(text("DROP TABLE operations"))
    store.migrate()
    assert {"users", "operations"} <= tables(store)


def test_services_that_start_together_migrate_once(new_postgres_database: Factory) -> None:
    url = new_postgres_database()
    errors: list[BaseException] = []

    def migrate() -> None:
        store = Store(url, 2)
        try:
            store.migrate()
        except BaseException as error:
            errors.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=migrate) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_numbers_of_experiments_are_never_chosen_nor_used_twice(store: Store) -> None:
    store.migrate()
    with store.transaction() as connection:
        first = connection.execute(text("INSERT INTO stations (name) VALUES ('a') RETURNING id")).scalar_one()
        connection.execute(text("DELETE FROM stations"))
    with pytest.raises(Exception, match="GENERATED ALWAYS"), store.transaction() as connection:
        connection.execute(text("INSERT INTO stations (id, name) VALUES (:id, 'b')"), {"id": first})
    with store.transaction() as connection:
        second = connection.execute(text("INSERT INTO stations (name) VALUES ('b') RETURNING id")).scalar_one()
    assert second > first


def test_an_unreachable_database_is_a_service_that_is_unavailable(tmp_path: Path) -> None:
    store = Store(f"postgresql+psycopg2://dm@/dm?host={tmp_path}", 2)
    with pytest.raises(ServiceUnavailable, match="database does not answer"):
        store.ping()
    store.close()


def test_integrity_errors_reach_the_caller(store: Store) -> None:
    store.migrate()
    with pytest.raises(IntegrityError), store.transaction() as connection:
        connection.execute(text("INSERT INTO stations (name) VALUES ('a'), ('a')"))


def test_bootstrap_completes_what_is_missing_and_repeats(new_postgres_database: Factory, tmp_path: Path) -> None:
    settings = StorageSettings(
        certificate=tmp_path, key=tmp_path, database_url=new_postgres_database(), storage_host="host.example.org"
    )

    def run(password: str = "administrator's", *stations: Station) -> list[str]:
        return bootstrap(
            settings,
            admin_username="dmadmin",
            admin_password=password,
            storage_name="VOYAGER",
            storage_directory=tmp_path / "storage",
            stations=stations,
        ).made

    made = run("administrator's", Station("25IDC", "s25iddm", "service's one", experiment_types=("XPCS",)))
    assert "user dmadmin" in made and "station 25IDC" in made and "experiment type XPCS" in made
    assert run("administrator's", Station("25IDC", "s25iddm", "service's one", experiment_types=("XPCS",))) == []
    assert run("another password") == ["password of dmadmin"]
    assert (tmp_path / "storage").stat().st_mode & 0o7777 == 0o711
    more = run("another password", Station("2BM", "s2bmdm", "service's two", "s2bmuser", "manager's two"))
    assert "s2bmuser as manager of 2BM" in more
    store = Store(settings.database_url, 2)
    principal = Users(store).login("s25iddm", "service's one")
    assert principal.serves("25IDC") and principal.manages("25IDC") and not principal.manages("2BM")
    assert Users(store).login("dmadmin", "another password").is_admin
    store.close()


def test_f36_sessions_end_idle_and_in_any_case_and_when_the_clock_was_wrong(store: Store) -> None:
    store.migrate()
    Users(store).add("d123456", "long enough")
    sessions = SqlSessionStore(store, idle_seconds=100, absolute_seconds=1000)
    principal = Principal("d123456")

    def aged(**changes: str) -> str:
        session_id = sessions.create(principal)
        with store.transaction() as connection:
            for column, shift in changes.items():
                connection.execute(
                    text(f"UPDATE sessions SET {column} = {column} + CAST(:shift AS interval)"
                         " WHERE created = (SELECT max(created) FROM sessions)"),
                    {"shift": shift},
                )  # fmt: skip
        return session_id

    assert sessions.get(aged()) is not None
    assert sessions.get(aged(used="-101 s")) is None
    assert sessions.get(aged(created="-1001 s")) is None
    assert sessions.get(aged(used="1 h")) is None
    touched = aged(used="-50 s")
    assert sessions.get(touched) is not None
    with store.transaction() as connection:
        stale = connection.execute(text("SELECT count(*) FROM sessions WHERE now() - used > interval '40 s'"))
        before = stale.scalar_one()
        stored = connection.execute(text("SELECT encode(id_hash, 'hex') FROM sessions")).scalars().all()
    assert before == 1 and touched not in stored and all(len(value) == 64 for value in stored)
    assert sessions.sweep() == 2
    for _ in range(250):
        sessions.create(principal)
    with store.transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM sessions")).scalar_one() == 200
    assert sessions.get("../../etc/passwd") is None
    alive = sessions.create(principal)
    sessions.delete(alive)
    sessions.delete(alive)
    assert sessions.get(alive) is None
