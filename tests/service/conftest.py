"""Fixtures that several modules of service tests share: hosts of files, and a dask scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dm.common.web.server import Server
from tests.service.acquisition_fixtures import Site, running_catalog
from tests.service.acquisition_hosts import running_rsync_daemon, running_sshd
from tests.service.dask_server import DaskServer, running_dask
from tests.service.gridftp_server import GridAuthority, GridFtpServer, running


@pytest.fixture(scope="module")
def catalog(site: Site, new_mongo_database: Callable[[], str]) -> Iterator[Server]:
    """The catalog of the site's station."""
    with running_catalog(site, new_mongo_database()) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command that logs in to another host, which is this one."""
    with running_sshd(tmp_path_factory.mktemp("ssh") / "server") as command:
        yield command


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, Path]]:
    """An rsync daemon: its port, its directory and the file with its password."""
    with running_rsync_daemon(tmp_path_factory.mktemp("rsync") / "server") as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the GridFTP servers of a module are."""
    return tmp_path_factory.mktemp("gridftp")


@pytest.fixture(scope="module")
def authority(place: Path) -> GridAuthority:
    """Whom the GridFTP servers of a module trust."""
    return GridAuthority(place / "authority")


@pytest.fixture(scope="module")
def plain(place: Path) -> Iterator[GridFtpServer]:
    """A GridFTP server that lets everybody in."""
    with running(GridFtpServer(place / "anonymous")) as server:
        yield server


@pytest.fixture(scope="module")
def secure(place: Path, authority: GridAuthority) -> Iterator[GridFtpServer]:
    """A GridFTP server that asks for a credential."""
    with running(GridFtpServer(place / "secure", authority)) as server:
        yield server


@pytest.fixture(scope="session")
def dask_server(run_directory: Path) -> Iterator[DaskServer]:
    """The run's dask scheduler with two workers; tests that end any of it start one of their own."""
    with running_dask(run_directory) as server:
        yield server
