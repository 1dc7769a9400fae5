"""How long users take to follow a directory: first run, nothing changed, 1 % changed.

    python benchmarks/user_sync.py [--users 20000] [--rounds 3] [--adapter memory|csv] [--database-url postgresql+psycopg2://...]

Each figure is the median of the rounds in seconds, from the request to the end of the run; every round begins with an
empty users table. ``csv`` reads the people from a file through the adapter of that name, ``memory`` from a list.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import text

from dm.common.embedded import EmbeddedPostgres
from dm.site.database.store import Store
from dm.site.facility.adapters.base import Person
from dm.site.identity.sync_settings import UserSyncSettings
from dm.site.identity.synchronisation import UserSynchronisation

COLUMNS = {
    "key": "key", "badge": "badge", "username": "username", "firstName": "first_name", "middleName": "middle_name",
    "lastName": "last_name", "email": "email", "institution": "institution", "passwordHash": "password_hash",
}  # fmt: skip


def people(count: int) -> list[Person]:
    """Return so many people with everything filled in."""
    return [
        Person(
            key=f"P{number:07d}",
            badge=100_000 + number,
            first_name=f"First{number}",
            middle_name="M",
            last_name=f"Last{number}",
            email=f"first{number}.last{number}@example.org",
            institution=f"Institute {number % 300}",
            password_hash="{SSHA512}" + f"{number:088d}",
        )
        for number in range(count)
    ]


class Memory:
    """A directory that is a list."""

    def __init__(self) -> None:
        self.people: list[Person] = []
        self.on_rejected: Callable[[str, str, str], None] = print

    def users(self) -> Iterable[Person]:
        """Give everybody."""
        return self.people

    def close(self) -> None:
        """Nothing to close."""


def csv_source(directory: Path, memory: Memory) -> Callable[[], Any]:
    """Return a maker of CSV adapters that read what the list holds."""
    from dm.site.facility.adapters import loading

    class Facility:
        adapters = {"hr": {"adapter": "csv", "directory": str(directory)}}  # noqa: RUF012

    def make() -> Any:
        return loading.load(Facility(), directory / "dm.toml")["hr"]

    return make


def write(path: Path, found: list[Person]) -> None:
    """Write people as a CSV file."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(one, column) for column in COLUMNS.values()] for one in found)


def measure(url: str, count: int, adapter: str, directory: Path) -> dict[str, float]:
    """Return seconds of each step, on an emptied users table."""
    store = Store(url)
    store.migrate()
    with store.transaction() as connection:
        connection.execute(text("TRUNCATE users, user_syncs, audit_events CASCADE"))
    memory = Memory()
    source = csv_source(directory, memory) if adapter == "csv" else lambda: memory
    sync = UserSynchronisation(store, {"hr": source}, UserSyncSettings())
    everybody = people(count)
    changed = [replace(one, email="changed@example.org") if n % 100 == 0 else one for n, one in enumerate(everybody)]
    found = {}
    for step, current, key in (
        ("first run", everybody, "added"), ("no change", everybody, "unchanged"), ("1 % changed", changed, "updated"),
    ):  # fmt: skip
        memory.people = current
        if adapter == "csv":
            write(directory / "users.csv", current)
        began = time.perf_counter()
        result = sync.run("benchmark")
        found[step] = time.perf_counter() - began
        expected = count if key != "updated" else (count + 99) // 100
        assert result["status"] == "done" and result[key] == expected, result["message"]
    sync.stop()
    store.close()
    return found


def main() -> None:
    """Run the rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adapter", choices=["memory", "csv"], default="memory")
    parser.add_argument("--database-url", help="default: an embedded PostgreSQL, durable as in production")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dm-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        server = None
        if arguments.database_url is None:
            server = EmbeddedPostgres(directory / "postgres")
        url = arguments.database_url or server.start()  # type: ignore[union-attr]
        try:
            rounds = [measure(url, arguments.users, arguments.adapter, directory) for _ in range(arguments.rounds)]
        finally:
            if server is not None:
                server.stop()
    print(f"{arguments.users} users, adapter {arguments.adapter}, median of {arguments.rounds}:")
    for step in rounds[0]:
        values = [one[step] for one in rounds]
        spread = f"({min(values):.2f} to {max(values):.2f})"
        print(f"  {step:12} {statistics.median(values):6.2f} s {spread}")


if __name__ == "__main__":
    main()
