"""What watching costs, and how soon a file is known.

    python benchmarks/watch.py                        # 100,000 files in 1,000 directories
    python benchmarks/watch.py --files 10000 --seconds 20

1. A DAQ watches a tree of many files in which nothing happens: the processor time of the whole acquisition service, in
   percent of a core, once with events, once with polling, beside that of a service that watches nothing.
2. What the walks over that tree cost.
3. From a file's close to "found whole" in the ledger, one file every 50 ms, with events and with polling; the settle
   time, which is part of it, is said beside.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from suite import EXPERIMENT, PATIENCE, Suite, detect, percentile, workplace

_METHODS = ("events", "polling")


def make_tree(root: Path, files: int, directories: int) -> None:
    """Make empty files, evenly spread."""
    for number in range(directories):
        place = root / f"d{number // 100:03d}" / f"e{number:05d}"
        place.mkdir(parents=True)
        for index in range(number, files, directories):
            os.close(os.open(place / f"f{index:06d}.h5", os.O_CREAT | os.O_WRONLY))


def watched(suite: Suite, place: Path, method: str) -> str:
    """Start a DAQ and return its id after its first walk."""
    daq = str(suite.daqs.startDaq(EXPERIMENT, str(place), {"watchMethod": method, "destDirectory": method})["id"])
    begun = time.monotonic()
    while "lastReconcileTime" not in suite.daqs.getDaqInfo(daq).data:
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit("The DAQ does not end its first walk.")
        time.sleep(0.2)
    return daq


def walks(suite: Suite) -> int:
    """Return how often the service has looked at every file of its directories."""
    text = str(suite.daqs.client.send("GET", "/metrics").text)
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("dm_walks_total ")))


def idle(suite: Suite, seconds: float) -> float:
    """Return the processor time of the acquisition service in percent of a core while nobody asks it anything."""
    before, begun = suite.usage(["acquisition"])["acquisition"].cpu, time.monotonic()
    time.sleep(seconds)
    used = suite.usage(["acquisition"])["acquisition"].cpu - before
    return 100 * used / (time.monotonic() - begun)


def ended(suite: Suite, daq: str, place: Path) -> dict[str, Any]:
    """Stop a DAQ and return its last record."""
    suite.daqs.stopDaq(EXPERIMENT, str(place))
    return dict(suite.daqs.waitDaq(daq, PATIENCE).data)


def latencies(suite: Suite, place: Path, method: str, count: int) -> list[float]:
    """Return the seconds from close to "found whole" of files that come one every 50 ms."""
    place.mkdir()
    daq = watched(suite, place, method)
    closed = detect(place, count, 0.05, 1000)
    begun = time.monotonic()
    while suite.daqs.getDaqInfo(daq)["nProcessedFiles"] < count:
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit(f"The DAQ does not finish: {suite.daqs.getDaqInfo(daq).data}")
        time.sleep(0.2)
    found = {str(row["path"]): row for row in suite.daqs.listDaqFiles(daq, limit=count)}
    ended(suite, daq, place)
    return [found[name]["times"]["ready"] - moment for name, moment in closed.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--directories", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=200, help="of watching idly, each way; several walks' time")
    parser.add_argument("--frames", type=int, default=200, help="files for the latencies")
    options = parser.parse_args()
    console = Console()
    shown = f"{options.files:,} files in {options.directories:,} directories"
    table = Table("service, idle", "% of a core", "reconciles", "one takes, s", title=f"watching {shown}")
    results: list[tuple[str, list[float]]] = []
    with workplace("watch", None) as root:
        tree = root / "tree"
        make_tree(tree, options.files, options.directories)
        with Suite(root, watch=False) as suite:
            time.sleep(5)
            table.add_row("watching nothing", f"{idle(suite, min(30, options.seconds)):.2f}", "", "")
            for method in _METHODS:
                daq = watched(suite, tree, method)
                time.sleep(5)  # a directory's time is trusted after some seconds
                before = walks(suite)
                used = idle(suite, options.seconds)
                count = walks(suite) - before
                record = ended(suite, daq, tree)
                table.add_row(method, f"{used:.2f}", str(count), f"{record['lastReconcileSeconds']:.2f}")
            for method in _METHODS:
                results.append((method, latencies(suite, root / method, method, options.frames)))
    console.print(table)
    waits = Table("close to found whole", "p50, ms", "p99, ms", "settle time, ms")
    for method, seconds in results:
        tail = percentile(seconds, 0.99)
        settle = "50" if method == "events" else "300, polled every 2 s"
        waits.add_row(method, f"{1000 * statistics.median(seconds):.0f}", f"{1000 * tail:.0f}", settle)
    console.print(waits)


if __name__ == "__main__":
    main()
