"""Shared fixtures: one real PostgreSQL and one MongoDB-wire server per run, started when first asked for.

At the end of the run nothing may be left: no thread, no child process, not even one that detached itself.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from dm.common.embedded import EmbeddedMongo, EmbeddedPostgres
from tests import live
from tests.live import Suite

if TYPE_CHECKING:
    from tests.service.acquisition_fixtures import Site
    from tests.service.storage_fixtures import Site as StorageSite

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 10.0
_first_seen: dict[int, str] = {}
_counter = itertools.count(1)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


def _children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join(process.cmdline())  # empty while it is ending
            if process.status() != psutil.STATUS_ZOMBIE and words and "multiprocessing.resource_tracker" not in words:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return f"process {process.pid}"


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail the run when a thread or process outlives it."""
    # Orphans (daemons started by commands under test) then become our children, so that they can be seen.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    deadline = time.monotonic() + _GRACE_SECONDS
    while (_threads() or _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [
        f"{'daemon ' if t.daemon else ''}thread {t.name!r} (first seen after {_first_seen.get(id(t), 'the end')})"
        for t in _threads()
    ]
    for process in _children():
        left.append(f"{_describe(process)} (first seen after {_first_seen.get(process.pid, 'the end')})")
        process.kill()
    assert not left, "left behind by the tests: " + "; ".join(left)


@pytest.fixture(scope="module", autouse=True)
def _who_started_what(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    name = request.node.name
    for key in [*(id(thread) for thread in _threads()), *(process.pid for process in _children())]:
        _first_seen.setdefault(key, name)


@pytest.fixture(scope="session", autouse=True)
def _own_home(run_directory: Path) -> Iterator[None]:
    """Keep the tests away from the caller's DM settings and session cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("DM_")]:
            patch.delenv(name)
        patch.setenv("DM_HOME", str(run_directory / "home"))
        yield


@pytest.fixture(scope="module", autouse=True)
def _environment_put_back() -> Iterator[None]:
    """A module that runs the demo in this process leaves no DM_* variables to the next."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def run_directory() -> Iterator[Path]:
    """A directory for the run that other accounts may pass (databases and stages do not run as root)."""
    directory = Path(tempfile.mkdtemp(prefix="dm-test-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def open_directory(run_directory: Path) -> Iterator[Path]:
    """An empty directory per test that other accounts may enter (``tmp_path`` is private to its user)."""
    directory = run_directory / f"open-{next(_counter)}"
    directory.mkdir(mode=0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(run_directory: Path) -> Iterator[EmbeddedPostgres]:
    """The run's PostgreSQL server."""
    server = EmbeddedPostgres(run_directory / "postgres", durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def new_postgres_database(postgres_server: EmbeddedPostgres) -> Callable[[], str]:
    """A factory of empty databases; each call returns the SQLAlchemy URL of a new one."""
    return lambda: postgres_server.create_database(f"test_{next(_counter)}")


@pytest.fixture(scope="module")
def postgres_url(new_postgres_database: Callable[[], str]) -> str:
    """The SQLAlchemy URL of an empty database, one per test module."""
    return new_postgres_database()


@pytest.fixture(scope="session")
def mongo_server(run_directory: Path) -> Iterator[EmbeddedMongo]:
    """The run's MongoDB-wire server."""
    server = EmbeddedMongo(run_directory / "mongo")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def new_mongo_database(mongo_server: EmbeddedMongo) -> Callable[[], str]:
    """A factory of empty databases; each call returns a ``mongodb://.../<database>`` URL of a new one."""
    return lambda: mongo_server.url(f"test_{next(_counter)}")


@pytest.fixture(scope="module")
def mongo_url(new_mongo_database: Callable[[], str]) -> str:
    """The ``mongodb://`` URL of an empty database, one per test module."""
    return new_mongo_database()


@pytest.fixture
def database(new_mongo_database: Callable[[], str]) -> str:
    """The ``mongodb://`` URL of an empty database, one per test."""
    return new_mongo_database()


@pytest.fixture(scope="session")
def certificates(run_directory: Path) -> Path:
    """A directory with ``ca.pem``, ``server.pem`` and ``server.key`` for localhost and 127.0.0.1."""
    from dm.common import tls

    directory = run_directory / "certificates"
    directory.mkdir()
    tls.make_authority(directory)
    tls.issue(directory, ["localhost", "127.0.0.1"])
    return directory


@pytest.fixture(scope="module")
def site(run_directory: Path, new_postgres_database: Callable[[], str], certificates: Path) -> Iterator[Site]:
    """A running storage service with a station, as tests of acquisition need it; one per test module."""
    from tests.service.acquisition_fixtures import running_site

    directory = run_directory / f"site-{next(_counter)}"
    directory.mkdir()
    with running_site(directory, new_postgres_database(), certificates) as found:
        yield found


@pytest.fixture(scope="module")
def storage_site(
    postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StorageSite]:
    """A running storage service with two stations and people; one per test module."""
    from tests.service.storage_fixtures import running_site

    with running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
def work(open_directory: Path) -> Path:
    """A directory that stages, which run under another account, may write to."""
    open_directory.chmod(0o777)
    return open_directory


@pytest.fixture(scope="session")
def suite(run_directory: Path) -> Iterator[Suite]:
    """The whole suite, installed and started once per run; tests make experiments of their own in it."""
    running = live.start(run_directory / "suite")
    yield running
    live.stop(running)
