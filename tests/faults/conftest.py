"""The test bench, one per run; every test finds it whole and leaves it so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.bench import Bench


@pytest.fixture(scope="session")
def shared_bench(run_directory: Path, new_postgres_database: Callable[[], str], certificates: Path) -> Iterator[Bench]:
    """A suite of separate processes."""
    directory = run_directory / "bench"
    directory.mkdir(mode=0o755)
    found = Bench(directory, new_postgres_database(), certificates)
    try:
        found.open()
        yield found
    finally:
        found.close()


@pytest.fixture
def bench(shared_bench: Bench, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The shared bench, all services up, with their usual settings or those the test says it wants."""
    shared_bench.restore(**getattr(request.function, "bench_settings", {}))
    yield shared_bench


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty data directory."""
    directory = tmp_path / "source"
    directory.mkdir()
    return directory
