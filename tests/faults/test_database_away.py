"""F-26: PostgreSQL goes away, drops everybody or is killed, while people work: nothing acknowledged is lost."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from dm.common.embedded import EmbeddedPostgres
from dm.common.errors import ObjectAlreadyExists, ServiceUnavailable
from tests.service import storage_fixtures as fx

AWAY = [1.0, pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(400)])]
DROP = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()")  # fmt: skip


def drop_everybody(url: str, times: int) -> None:
    """End every connection to the database, again and again."""
    engine = create_engine(url)
    try:
        for _ in range(times):
            try:
                with engine.begin() as connection:
                    connection.execute(DROP)
            except DBAPIError:
                engine.dispose()
            time.sleep(0.05)
    finally:
        engine.dispose()


@pytest.mark.parametrize("seconds", AWAY)
def test_f26_no_acknowledged_write_is_lost(
    certificates: Path, run_directory: Path, tmp_path: Path, seconds: float
) -> None:
    postgres = EmbeddedPostgres(run_directory / f"away-{seconds:.0f}")  # durable, as in production
    numbers, acknowledged, refused, errors = itertools.count(600_000), [], [], []
    stop = threading.Event()

    def work(site: fx.Site) -> None:
        users = site.users(fx.ADMIN)
        try:
            while not stop.is_set():
                name = f"d{next(numbers)}"
                while not stop.is_set():
                    try:
                        users.addUser(name, lastName="Away")
                        acknowledged.append(name)
                        break
                    except ObjectAlreadyExists:  # the try before was carried out, though its answer was an error
                        break
                    except ServiceUnavailable as error:
                        refused.append(str(error))
                        time.sleep(0.05)
        except BaseException as error:
            errors.append(error)

    try:
        url = postgres.start()
        with fx.running_site(url, certificates, tmp_path / "site", database_connections=3) as site:
            threads = [threading.Thread(target=work, args=(site,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            drop_everybody(url, 10)
            pid = postgres.running()
            assert pid is not None
            os.kill(pid, signal.SIGQUIT)  # immediate: nothing is written that was not on disk
            stop.wait(seconds)
            postgres.start()
            before = len(acknowledged)
            deadline = time.monotonic() + 60
            while len(acknowledged) < before + 10 and not errors:
                assert time.monotonic() < deadline, f"it does not recover: {refused[-1:]}"
                time.sleep(0.05)
            stop.set()
            for thread in threads:
                thread.join(60)
            assert not errors, errors[0]
            assert refused and all("database" in reason for reason in refused)
            known = {user["username"] for user in site.users(fx.ADMIN).getUsers()}
            assert set(acknowledged) <= known
            assert site.rest().get("/status")["status"] in ("ok", "warning")
    finally:
        stop.set()
        postgres.stop()
