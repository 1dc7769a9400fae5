"""Whether a file costs the same when 100,000 went before it, and how soon a service with that many takes up again.

    python benchmarks/scale.py                          # 100,000 files of 1 to 4 KiB in one DAQ
    python benchmarks/scale.py --files 20000 --size 102400

Files appear by slices of a tenth: a detector - another process - writes them into directories of 1,000, and the next
slice begins when the last one is done. Of each slice: seconds, and CPU seconds of every part of the suite per 1,000
files. Then the suite is left alone for a while (what does watching so many files cost?), and the acquisition service is
stopped, and killed, and started again: how long until it answers, has its ledger back, and a file written meanwhile is
done and in the catalog.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from suite import EXPERIMENT, Suite, Usage, settle_disk, workplace

from dm.common.errors import DmException, ObjectNotFound

_DETECTOR = """
import os, sys
target, count, per, least, most = sys.argv[1], *map(int, sys.argv[2:])
block = os.urandom(most)
for number in range(count):
    folder = os.path.join(target, f"part_{number // per:03d}")
    if not number % per:
        os.mkdir(folder)
    size = least + (number * 7919) % (most - least + 1)
    with open(os.path.join(folder, f"frame_{number:06d}.raw"), "wb") as stream:
        stream.write(number.to_bytes(8, "big") + block[8:size])
"""
_PARTS = ("acquisition", "storage", "catalog", "station-database", "site-database")
_PATIENCE = 1800.0
_REST = 20.0


def wait_for(suite: Suite, count: int) -> dict[str, Any]:
    """Wait until the DAQ has finished so many files and return its record."""
    begun = time.monotonic()
    while True:
        info = dict(suite.daqs.getDaqInfo(suite.daq))
        if info["nProcessedFiles"] >= count:
            if info["nProcessingErrors"] or info["nCompletedFiles"] != count:
                raise SystemExit(f"Not all files were stored: {info}")
            return info
        if time.monotonic() - begun > _PATIENCE:
            raise SystemExit(f"The DAQ did not finish its files: {info}")
        time.sleep(0.25)


def one_slice(suite: Suite, name: str, count: int, given: argparse.Namespace) -> tuple[float, dict[str, Usage]]:
    """Return the seconds until one more slice is done, and what every part used for it."""
    target = suite.watched / name
    target.mkdir()
    settle_disk()
    before = suite.usage(_PARTS)
    begun = time.perf_counter()
    sizes = [str(given.size or 1 << 10), str(given.size or 4 << 10)]
    subprocess.run(
        [sys.executable, "-c", _DETECTOR, str(target), str(count), str(given.per_directory), *sizes], check=True
    )
    suite.done += count
    wait_for(suite, suite.done)
    seconds = time.perf_counter() - begun
    after = suite.usage(_PARTS)
    return seconds, {
        part: Usage(after[part].cpu - before[part].cpu, after[part].rss, after[part].descriptors, after[part].threads)
        for part in after
    }


def grow(suite: Suite, given: argparse.Namespace) -> float:
    """Feed all slices and print them; return by how much the last costs more CPU than the first."""
    slices = []
    count = given.files // 10
    for number in range(10):
        slices.append(one_slice(suite, f"slice_{number:02d}", count, given))
        seconds, used = slices[-1]
        print(f"slice {number}: {seconds:.1f} s, CPU {sum(part.cpu for part in used.values()):.1f} s", flush=True)
    table = Table(title=f"{given.files:,} files; per slice of {count:,}: CPU ms per file and resident MB of every part")
    for column in ("slice", "seconds", "files/s", "CPU ms", *_PARTS):
        table.add_column(column, justify="right")
    for number, (seconds, used) in enumerate(slices):
        total = sum(part.cpu for part in used.values())
        parts = [f"{1000 * used[part].cpu / count:.2f} / {used[part].rss >> 20}" for part in _PARTS]
        table.add_row(
            str(number + 1), f"{seconds:.1f}", f"{count / seconds:,.0f}", f"{1000 * total / count:.2f}", *parts
        )
    Console(width=130).print(table)
    cpu = [sum(part.cpu for part in used.values()) for _seconds, used in slices]
    print(
        f"last slice against the first: CPU {cpu[-1] / cpu[0]:.2f}, wall {slices[-1][0] / slices[0][0]:.2f}; "
        f"last three against the first three: CPU {sum(cpu[-3:]) / sum(cpu[:3]):.2f}"
    )
    return cpu[-1] / cpu[0]


def idle(suite: Suite, seconds: float) -> None:
    """Print what every part uses while nothing happens."""
    time.sleep(_REST)  # what the last files left to do
    before, begun = suite.usage(), time.perf_counter()
    time.sleep(seconds)
    after, passed = suite.usage(), time.perf_counter() - begun
    shares = ", ".join(f"{part} {(after[part].cpu - before[part].cpu) / passed:.2%}" for part in before)
    print(f"idle for {passed:.0f} s, share of a core: {shares}")


def restart(suite: Suite, number: int, kill: bool) -> float:
    """Restart the acquisition service; return the seconds until a file written meanwhile is done and cataloged."""
    service = suite.part("acquisition")
    if kill:
        os.kill(suite.pids()["acquisition"], signal.SIGKILL)
        service.pid_file.reap()
    service.stop()
    fresh = suite.watched / f"while_away_{number}.raw"
    fresh.write_bytes(os.urandom(4096))
    suite.done += 1
    begun = time.perf_counter()
    service.start()
    answering = time.perf_counter() - begun
    full = cataloged = 0.0
    while not (full and cataloged):
        if not cataloged:
            try:
                suite.catalog.getExperimentFile(EXPERIMENT, fresh.name)
                cataloged = time.perf_counter() - begun
            except ObjectNotFound:
                pass
        try:
            if not full and suite.daqs.getDaqInfo(suite.daq)["nCompletedFiles"] >= suite.done:
                full = time.perf_counter() - begun
        except DmException as error:
            if time.perf_counter() - begun > 120:
                raise SystemExit(f"After the restart: {error}") from error
        time.sleep(0.02)
    wait_for(suite, suite.done)
    used = suite.usage(["acquisition"])["acquisition"]
    print(
        f"{'killed' if kill else 'stopped'} and started: answers after {answering:.1f} s, the file written "
        f"meanwhile is in the catalog after {cataloged:.1f} s and done after {full:.1f} s; CPU {used.cpu:.1f} s, "
        f"resident {used.rss >> 20} MB"
    )
    return max(full, cataloged)


def main() -> None:
    """Measure and print; the exit status is 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=0, help="bytes per file; default 1 to 4 KiB")
    parser.add_argument("--per-directory", type=int, default=1000, help="files per directory")
    parser.add_argument("--idle", type=float, default=120.0, help="seconds to watch it idle")
    parser.add_argument("--restarts", type=int, default=2, help="restarts of each kind")
    parser.add_argument("--growth", type=float, default=1.2, help="CPU of the last slice by that of the first, at most")
    parser.add_argument("--again", type=float, default=10.0, help="seconds a restart may take, at most")
    parser.add_argument("--resident", type=float, default=250.0, help="MB of the acquisition service, at most")
    parser.add_argument("--root", type=Path, help="work here, on the file system to be measured")
    given = parser.parse_args()
    with workplace("scale", given.root) as root, Suite(root) as suite:
        one_slice(suite, "warm", 500, given)
        growth = grow(suite, given)
        suite.verify(suite.done)
        resident = suite.usage(["acquisition"])["acquisition"].rss / 1e6
        if given.idle:
            idle(suite, given.idle)
        times = [restart(suite, number, kill=bool(number % 2)) for number in range(2 * given.restarts)]
        suite.verify(suite.done)
        resident = max(resident, suite.usage(["acquisition"])["acquisition"].rss / 1e6)
    again = statistics.median(times) if times else 0.0
    print(
        f"growth {growth:.2f}, restart {again:.1f} s (longest {max(times, default=0.0):.1f}), "
        f"resident {resident:.0f} MB"
    )
    if growth > given.growth or again > given.again or resident > given.resident:
        raise SystemExit(
            f"That is above growth {given.growth:g}, restart {given.again:g} s or resident {given.resident:g} MB."
        )


if __name__ == "__main__":
    main()
