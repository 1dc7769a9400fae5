"""How fast the catalog takes and gives file records, on the embedded database or any other.

    python benchmarks/catalog.py [--files 20000] [--batch 500] [--database-url mongodb://...]

Each figure is records per second, of one writer or reader: first upsert, the same again (nothing to write), a second
version, reading all by pages, one query that the database can narrow and one it cannot, statistics.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dm.common.embedded import EmbeddedMongo
from dm.station.catalog.filecollections import FileCollections
from dm.station.catalog.files import FileCatalog, parse_query
from dm.station.catalog.store import ExperimentRef, Store

EXPERIMENT = ExperimentRef(1, "benchmark")


def records(count: int, version: int) -> list[dict[str, Any]]:
    """Return records like those of a detector: size, time, digests, one replica, ten metadata keys."""
    return [
        {
            "path": f"scan_{number // 1000:04d}/frame_{number:07d}.h5",
            "fileSize": 8 << 20,
            "fileModificationTime": 1.7e9 + number + version,
            "md5Sum": f"{number:032x}",
            "digests": {"xxh3_128": f"{number:032x}"},
            "version": version,
            "replicas": [{"url": f"file:///storage/scan_{number // 1000:04d}/frame_{number:07d}.h5"}],
            "metadata": {"scan": number // 1000, "frame": number, **{f"motor{n}": n * 0.1 for n in range(8)}},
        }
        for number in range(count)
    ]


def upsert(files: FileCatalog, batch: list[dict[str, Any]], size: int) -> int:
    """Store the records in batches; return how many were refused."""
    refused = 0
    for start in range(0, len(batch), size):
        refused += files.upsert(EXPERIMENT, batch[start : start + size]).as_record()["nErrors"]
    return refused


def read(files: FileCatalog) -> int:
    """Read all by pages; return how many."""
    count, after = 0, None
    while True:
        page = files.page(EXPERIMENT, parse_query({}), after, 2000)
        count += len(page["files"])
        after = page["after"]
        if after is None:
            return count


@contextmanager
def database(url: str | None) -> Iterator[str]:
    """Yield the URL of the database to measure."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedMongo(Path(directory) / "mongo")
        server.start()
        try:
            yield server.url("benchmark")
        finally:
            server.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000, help="number of file records")
    parser.add_argument("--batch", type=int, default=500, help="records per bulk write")
    parser.add_argument("--database-url", help="MongoDB to use instead of the embedded one")
    options = parser.parse_args()
    with database(options.database_url) as url:
        store = Store(url)
        store.prepare()
        files = FileCatalog(store)
        count = options.files
        first, second = records(count, 1), records(count, 2)
        steps: list[tuple[str, Callable[[], Any], Any]] = [
            ("upsert, new", lambda: upsert(files, first, options.batch), 0),
            ("upsert, same again", lambda: upsert(files, first, options.batch), 0),
            ("upsert, next version", lambda: upsert(files, second, options.batch), 0),
            ("read by pages", lambda: read(files), count),
            ("query, narrowed", lambda: len(files.find(EXPERIMENT, parse_query({"frame": count // 2}))), 1),
            (
                "query, regex",
                lambda: len(files.find(EXPERIMENT, parse_query({"fileName": {"$regex": "_0000001\\."}}))),
                1,
            ),
            ("statistics", lambda: FileCollections(store, files).stats(EXPERIMENT)["countFiles"], count),
        ]
        print(f"{count} files, batches of {options.batch}")
        for name, step, wanted in steps:
            began = time.perf_counter()
            found = step()
            seconds = time.perf_counter() - began
            if found != wanted:
                raise SystemExit(f"{name}: {found} instead of {wanted}")
            print(f"{name:22} {count / seconds:10.0f} records/s  {seconds:8.2f} s")
        store.close()


if __name__ == "__main__":
    main()
