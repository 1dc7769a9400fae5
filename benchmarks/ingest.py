"""How fast files get from the detector's disk into verified, cataloged storage, beside what a user would run instead.

    python benchmarks/ingest.py                   # 10,000 files of 100 KiB, medians of 3
    python benchmarks/ingest.py --large           # 8 files of 512 MiB
    python benchmarks/ingest.py --transports      # the transports alone, also with large files

The suite is installed and started in a temporary directory (or ``--root``), a DAQ watches a directory, and a detector -
another process - puts files there: by writing them, or (``moved in``) by renaming ready ones, which takes it next to
no time. The clock runs from the first file to the moment the DAQ counts the last one as done: seen, moved, digested
at both ends, published with ``fsync`` and cataloged. The others copy the same tree within the same file system, in the
same rounds, so that the ratios say more than the figures. They verify nothing and catalog nothing, but for the digests
of both sides that large files get (``sha256sum``, two at a time). One ``rsync`` process for each file is tried on a
part of the files only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from suite import Suite as Running
from suite import settle_disk, workplace

from dm.station.acquisition.transports.base import Source, TransferBatch, TransferFile, Transport
from dm.station.acquisition.transports.local import Local, LocalSettings
from dm.station.acquisition.transports.rsync import Rsync
from dm.station.acquisition.transports.rsync_command import RsyncSettings

BATCH = 500
_EACH = 300  # files that one process each is tried on
_MEASURED = "suite, files moved in"
_LEAST_SHOWN = 0.001  # ms


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


def copied(source: Path, target: Path, *commands: list[str]) -> float:
    """Return the seconds that commands need to copy a tree, one after the other."""
    target.mkdir()

    def work() -> None:
        for command in commands:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    seconds = timed(work)
    shutil.rmtree(target)
    return seconds


def rsync_a(source: Path, target: Path, *options: str) -> float:
    """Return the seconds of a bare ``rsync -a``."""
    return copied(source, target, ["rsync", "-a", *options, f"{source}/", f"{target}/"])


def rsync_and_digests(source: Path, target: Path) -> float:
    """Return the seconds of ``rsync -a`` and the digests of both sides, two at a time."""
    digests = 'find "$0" "$1" -type f -print0 | xargs -0 -n 1 -P 2 sha256sum'
    copy = ["rsync", "-a", f"{source}/", f"{target}/"]
    return copied(source, target, copy, ["sh", "-c", digests, str(source), str(target)])


def rsync_each(source: Path, target: Path, most: int) -> float:
    """Return the seconds that one process for each file would need for all, from a part of them."""
    names = sorted(os.listdir(source))
    part = names[:most]
    commands = [["rsync", "-a", f"{source}/{name}", f"{target}/"] for name in part]
    return copied(source, target, *commands) * len(names) / len(part)


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
    """Print medians as files/s, MB/s and how many times the seconds of the first row."""
    table = Table(title=title)
    for column in ("way", "seconds (median)", "files/s", "MB/s", f"x {rows[0][0]}"):
        table.add_column(column, justify="left" if column == "way" else "right")
    base = statistics.median(rows[0][1])
    for name, seconds in rows:
        middle = statistics.median(seconds)
        table.add_row(
            name,
            f"{middle:.2f} ({min(seconds):.2f}-{max(seconds):.2f})",
            f"{count / middle:,.0f}",
            f"{count * size / middle / 1e6:,.0f}",
            f"{middle / base:.2f}",
        )
    Console(width=120).print(table)


def report_cpu(title: str, count: int, spent: dict[str, list[float]]) -> None:
    """Print medians of CPU seconds."""
    table = Table(title=title)
    for column in ("part", "CPU seconds (median)", "ms per file"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, seconds in spent.items():
        middle = statistics.median(seconds)
        if middle * 1000 / count >= _LEAST_SHOWN:
            table.add_row(name, f"{middle:.2f}", f"{1000 * middle / count:.3f}")
    Console(width=120).print(table)


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


def suite(root: Path, rounds: int, count: int, size: int, large: bool) -> float:
    """Measure the whole suite.

    :returns: how many times the seconds of the first way the slower way of the suite takes.
    """
    source, copy = root / "source", root / "copy"
    make_files(source, count, size)
    ways: dict[str, Callable[[Running, int], float]] = {}
    if large:
        ways["rsync -a, sha256sum"] = lambda _running, _number: rsync_and_digests(source, copy)
        ways["rsync -a"] = lambda _running, _number: rsync_a(source, copy)
    else:
        ways["rsync -a --fsync"] = lambda _running, _number: rsync_a(source, copy, "--fsync")
        ways["rsync -a"] = lambda _running, _number: rsync_a(source, copy)
        ways["rsync, one process per file"] = lambda _running, _number: rsync_each(source, copy, _EACH)
    ways["suite, files moved in"] = lambda running, number: running.ingest(source, f"moved-{number}", True)
    if not large:
        ways["suite, files written"] = lambda running, number: running.ingest(source, f"written-{number}", False)
    rows: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = defaultdict(list)
    with Running(root) as running:
        for number in range(rounds):
            for name, way in ways.items():
                before = cpu(running) if name == _MEASURED else {}
                rows[name].append(way(running, number))
                if name == _MEASURED:
                    for part, seconds in cpu(running).items():
                        spent[part].append(seconds - before.get(part, 0.0))
        running.verify(sum(name.startswith("suite") for name in ways) * rounds * count)
    title = f"Watched, moved, verified, cataloged: {count:,} x {size:,} bytes, medians of {rounds}"
    report(title, count, size, list(rows.items()))
    report_cpu(f"CPU of the suite, files moved in, {os.cpu_count()} cores", count, spent)
    base = statistics.median(next(iter(rows.values())))
    return max(statistics.median(seconds) for name, seconds in rows.items() if name.startswith("suite")) / base


def cpu(running: Running) -> dict[str, float]:
    """Return part -> CPU seconds so far: of each process, and of what the services tell apart within theirs."""
    whole = {f"process {name}": used.cpu for name, used in running.usage().items()}
    return whole | {"all processes": sum(whole.values())} | running.parts()


def main() -> None:
    """Run; the exit status is 1 when the suite is slower than the floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, help="default: 10000, or 8 large ones")
    parser.add_argument("--size", type=int, help="bytes per file; default: 100 KiB, or 512 MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=float, help="most times the seconds of the first way; default: 2, or 1.3")
    parser.add_argument("--root", type=Path, help="work here, on the file system to be measured")
    parser.add_argument("--large", action="store_true", help="few large files")
    parser.add_argument("--transports", action="store_true", help="the transports alone")
    given = parser.parse_args()
    count = given.files or (8 if given.large else 10_000)
    size = given.size or (512 << 20 if given.large else 100 << 10)
    most = given.most or (1.3 if given.large else 2.0)
    with workplace("ingest", given.root) as root:
        if given.transports:
            transports(root, given.rounds, given.files or 2000, given.size or 100 << 10)
            transports(root, given.rounds, 4, 256 << 20)
            return
        times = suite(root, given.rounds, count, size, given.large)
    if times > most:
        raise SystemExit(f"{times:.2f} times the seconds is more than {most:g} times.")


if __name__ == "__main__":
    main()
