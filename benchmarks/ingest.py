"""How fast files get from the detector's disk into verified, cataloged storage, beside a bare ``rsync -a``.

    python benchmarks/ingest.py                   # the whole suite: 2,000 files of 100 KiB, medians of 3
    python benchmarks/ingest.py --transports      # the transports alone, also with large files

The suite is installed and started in a temporary directory (or ``--root``), a DAQ watches a directory, and a detector -
another process - puts files there: by writing them, or (``moved in``) by renaming ready ones, which takes it next to
no time. The clock runs from the first file to the moment the DAQ counts the last one as done: seen, moved, digested
at both ends, published with ``fsync`` and cataloged. ``rsync -a`` copies the same tree within the same file system, in
the same rounds, so that the ratio says more than the figures; it verifies nothing and catalogs nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from suite import Suite, settle_disk

from dm.station.acquisition.transports.base import Source, TransferBatch, TransferFile, Transport
from dm.station.acquisition.transports.local import Local, LocalSettings
from dm.station.acquisition.transports.rsync import Rsync
from dm.station.acquisition.transports.rsync_command import RsyncSettings

BATCH = 500


def make_files(directory: Path, count: int, size: int) -> None:
    """Write ``count`` different files."""
    directory.mkdir(parents=True)
    block = os.urandom(min(size, 1 << 20))
    for number in range(count):
        with (directory / f"frame_{number:06d}.raw").open("wb") as stream:
            stream.write(number.to_bytes(8, "big"))
            left = size - 8
            while left > 0:
                left -= stream.write(block[:left])


def timed(work: Callable[[], object]) -> float:
    """Return the seconds something takes."""
    settle_disk()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def rsync_a(source: Path, target: Path) -> float:
    """Return the seconds of a bare ``rsync -a``."""
    target.mkdir()
    seconds = timed(lambda: subprocess.run(["rsync", "-a", f"{source}/", f"{target}/"], check=True))
    shutil.rmtree(target)
    return seconds


def through_transport(transport: Transport, source: Path, target: Path) -> float:
    """Return the seconds a transport needs for a tree, in batches as the pipeline makes them."""
    names = sorted(os.listdir(source))
    target.mkdir()
    batches = [
        TransferBatch(
            "benchmark",
            Source(str(source), os.fsencode(source)),
            [
                TransferFile(os.fsencode(name), 0, 0, f"{first + number:08d}")
                for number, name in enumerate(names[first : first + BATCH])
            ],
            os.fsencode(target),
        )
        for first in range(0, len(names), BATCH)
    ]

    def work() -> None:
        for batch in batches:
            bad = [outcome.error for outcome in transport.move(batch) if not outcome.ok]
            if bad:
                raise SystemExit(f"{transport.name}: {bad[0]}")

    seconds = timed(work)
    shutil.rmtree(target)
    return seconds


def report(title: str, count: int, size: int, rows: list[tuple[str, list[float]]]) -> None:
    """Print medians as files/s, MB/s and ratio to the first row."""
    table = Table(title=title)
    for column in ("way", "seconds (median)", "files/s", "MB/s", "ratio to rsync -a"):
        table.add_column(column, justify="left" if column == "way" else "right")
    base = statistics.median(rows[0][1])
    for name, seconds in rows:
        middle = statistics.median(seconds)
        table.add_row(
            name,
            f"{middle:.2f}",
            f"{count / middle:,.0f}",
            f"{count * size / middle / 1e6:,.0f}",
            f"{base / middle:.3f}",
        )
    Console(width=100).print(table)


def transports(root: Path, rounds: int, count: int, size: int) -> None:
    """Compare the transports alone."""
    source = root / f"source-{count}"
    make_files(source, count, size)
    ways: list[Transport] = [Local(LocalSettings()), Rsync(RsyncSettings())]
    rows: dict[str, list[float]] = {"rsync -a": [], **{f"transport {way.name}": [] for way in ways}}
    for _ in range(rounds):
        rows["rsync -a"].append(rsync_a(source, root / "copy"))
        for way in ways:
            rows[f"transport {way.name}"].append(through_transport(way, source, root / "staging"))
    for way in ways:
        way.close()
    shutil.rmtree(source)
    report(f"Transports alone, digests at the source: {count:,} x {size:,} bytes", count, size, list(rows.items()))


def suite(root: Path, rounds: int, count: int, size: int) -> float:
    """Measure the whole suite; return files/s of the slower way."""
    source = root / "source"
    make_files(source, count, size)
    rows: dict[str, list[float]] = {"rsync -a": [], "suite, files written": [], "suite, files moved in": []}
    with Suite(root) as running:
        for number in range(rounds):
            rows["rsync -a"].append(rsync_a(source, root / "copy"))
            rows["suite, files written"].append(running.ingest(source, f"written-{number}", move=False))
            rows["suite, files moved in"].append(running.ingest(source, f"moved-{number}", move=True))
        running.verify(2 * rounds * count)
    report(
        f"Watched, moved, verified, cataloged: {count:,} x {size:,} bytes, medians of {rounds}",
        count,
        size,
        list(rows.items()),
    )
    return min(count / statistics.median(seconds) for name, seconds in rows.items() if name != "rsync -a")


def main() -> None:
    """Run; the exit status is 1 when the suite is slower than the floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--size", type=int, default=100 << 10, help="bytes per file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--floor", type=float, default=200.0, help="files/s the suite must reach")
    parser.add_argument("--root", type=Path, help="work here, on the file system to be measured")
    parser.add_argument("--transports", action="store_true", help="the transports alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dm-ingest-", dir=given.root) as directory:
        root = Path(directory)
        root.chmod(0o711)  # as root, the database runs under an account of its own
        if given.transports:
            transports(root, given.rounds, given.files, given.size)
            transports(root, given.rounds, 4, 256 << 20)
            return
        speed = suite(root, given.rounds, given.files, given.size)
    if speed < given.floor:
        raise SystemExit(f"{speed:.0f} files/s is below the floor of {given.floor:g}.")


if __name__ == "__main__":
    main()
