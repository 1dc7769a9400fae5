"""How long a file takes from its close to "stored and cataloged", while a detector writes at a steady pace.

    python benchmarks/latency.py                       # one file of 100 KiB every 50 ms for 60 s
    python benchmarks/latency.py --every 0.01 --seconds 20

A detector - another process - writes files into a watched directory and notes when each was closed. Nobody looks while
it does so; afterwards the ledger tells when each file was found whole, stored and done, and the catalog when it got the
file's record. A file counts from its close to the later of "done" in the ledger and its record in the catalog.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from suite import EXPERIMENT, PATIENCE, Suite, detect, percentile, workplace


def ledger_rows(suite: Suite, count: int) -> dict[str, dict[str, Any]]:
    """Return name -> ledger record, once all files are done."""
    begun = time.monotonic()
    while suite.daqs.getDaqInfo(suite.daq)["nProcessedFiles"] < count:
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit(f"The DAQ did not finish: {dict(suite.daqs.getDaqInfo(suite.daq))}")
        time.sleep(0.2)
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        page = suite.daqs.listDaqFiles(suite.daq, skip=len(found), limit=500)
        if not page:
            raise SystemExit(f"The ledger lists {len(found)} files of {count}.")
        found |= {str(row["path"]).rpartition("/")[2]: dict(row) for row in page}
    return found


def measure(suite: Suite, count: int, every: float, size: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return stage -> seconds per file, and component -> share of a core it used."""
    before = suite.usage()
    begun = time.monotonic()
    closed = detect(suite.watched, count, every, size)
    seconds = time.monotonic() - begun
    after = suite.usage()
    rows = ledger_rows(suite, count)
    cataloged = {
        str(record["experimentFilePath"]).rpartition("/")[2]: float(record["catalogTime"])
        for record in suite.catalog.iterateExperimentFiles(EXPERIMENT)
    }
    stages: dict[str, list[float]] = {
        "close to found whole": [],
        "close to stored": [],
        "close to cataloged": [],
        "close to done in the ledger": [],
        "close to stored and cataloged": [],
    }
    for name, at in closed.items():
        if rows[name]["state"] != "done" or name not in cataloged:
            raise SystemExit(f"{name} is {rows[name]['state']} in the ledger: {rows[name]['lastError']}")
        times = {moment: float(found) for moment, found in (rows[name].get("times") or {}).items() if found}
        finished = times.get("done") or float(rows[name]["finishTime"])
        stages["close to found whole"].append((times.get("ready") or float(rows[name]["readyTime"])) - at)
        if "stored" in times:
            stages["close to stored"].append(times["stored"] - at)
        stages["close to cataloged"].append(cataloged[name] - at)
        stages["close to done in the ledger"].append(finished - at)
        stages["close to stored and cataloged"].append(max(finished, cataloged[name]) - at)
    return stages, {name: (after[name].cpu - before[name].cpu) / seconds for name in before}


def main() -> None:
    """Measure and print; the exit status is 1 when the latency is above the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--every", type=float, default=0.05, help="seconds from file to file")
    parser.add_argument("--seconds", type=float, default=60.0, help="for so long")
    parser.add_argument("--size", type=int, default=100 << 10, help="bytes per file")
    parser.add_argument("--rounds", type=int, default=1, help="measure so often, each time with a new suite")
    parser.add_argument("--p50", type=float, default=0.150, help="seconds the median may take")
    parser.add_argument("--p99", type=float, default=0.500, help="seconds that 99 of 100 files may take")
    parser.add_argument("--raw", type=Path, help="write what was measured of each file here, as JSON")
    parser.add_argument("--root", type=Path, help="work here, on the file system to be measured")
    given = parser.parse_args()
    count = max(1, round(given.seconds / given.every))
    medians, tails = [], []
    for _ in range(given.rounds):
        with workplace("latency", given.root) as root, Suite(root) as suite:
            stages, load = measure(suite, count, given.every, given.size)
        if given.raw:
            given.raw.write_text(json.dumps(stages))
        table = Table(
            title=f"{count:,} files of {given.size:,} bytes, one every {given.every * 1000:g} ms; milliseconds"
        )
        for column in ("from close", "p50", "p90", "p99", "most"):
            table.add_column(column, justify="left" if column == "from close" else "right")
        for name, values in stages.items():
            if values:
                shown = [*(percentile(values, share) for share in (0.5, 0.9, 0.99)), max(values)]
                table.add_row(name, *(f"{1000 * value:.0f}" for value in shown))
        Console(width=100).print(table)
        print("share of a core: " + ", ".join(f"{name} {share:.1%}" for name, share in load.items()))
        whole = stages["close to stored and cataloged"]
        medians.append(percentile(whole, 0.5))
        tails.append(percentile(whole, 0.99))
    middle, tail = statistics.median(medians), statistics.median(tails)
    print(f"close to stored and cataloged: p50 {1000 * middle:.0f} ms, p99 {1000 * tail:.0f} ms")
    if middle > given.p50 or tail > given.p99:
        raise SystemExit(f"That is above p50 {1000 * given.p50:g} ms, p99 {1000 * given.p99:g} ms.")


if __name__ == "__main__":
    main()
