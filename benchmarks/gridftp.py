"""How fast files get to storage through a GridFTP server, beside a bare ``globus-url-copy`` of the same list.

    python benchmarks/gridftp.py                    # the transport alone: 2,000 files of 100 KiB, medians of 3
    python benchmarks/gridftp.py --files 10000      # the published figure
    python benchmarks/gridftp.py --suite            # beside it, the whole suite through the same server

A real ``globus-gridftp-server`` on loopback, anonymous, takes what ``globus-url-copy -fast -cc 4 -f list`` sends it;
that verifies nothing. The transport sends the same files in batches, as many at a time as the pipeline has on their way
for one DAQ, digests them (xxh3-128 and MD5) and looks at what arrived. The way of a whole DAQ is described in
``benchmarks/ingest.py``. The exit status is 1 when the transport takes more than ``--limit`` times as long as the bare
program.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ingest import make_files, timed
from rich.console import Console
from rich.table import Table
from suite import Suite

from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.transports.base import Source, TransferBatch, TransferFile
from dm.station.acquisition.transports.gridftp import GridFtp
from dm.station.acquisition.transports.gridftp_settings import GridFtpSettings

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.service.gridftp_server import GridFtpServer, running

HOST = "localhost"


def bare(server: GridFtpServer, source: Path, target: Path) -> float:
    """Return the seconds of ``globus-url-copy -fast -cc 4`` with the list of all files."""
    target.mkdir()
    listed = target.with_suffix(".list")
    names = sorted(os.listdir(source))
    listed.write_text("".join(f"file://{source}/{name} {server.url}{target}/{name}\n" for name in names))
    seconds = timed(lambda: subprocess.run(["globus-url-copy", "-fast", "-cc", "4", "-f", str(listed)], check=True))
    if len(os.listdir(target)) != len(names):
        raise SystemExit("globus-url-copy did not send all files.")
    shutil.rmtree(target)
    return seconds


def through_transport(server: GridFtpServer, source: Path, target: Path, size: int) -> float:
    """Return the seconds of the transport, in batches as the pipeline makes them for one DAQ."""
    target.mkdir()
    names = sorted(os.listdir(source))
    defaults = AcquisitionSettings.model_construct()
    most = min(defaults.batch_files, max(1, defaults.batch_megabytes * 1_000_000 // size))
    transport = GridFtp(GridFtpSettings.model_validate({"servers": {HOST: {"urls": [server.url]}}}))

    def move(first: int) -> None:
        staging = target / str(first)
        staging.mkdir(mode=0o700)
        files = [
            TransferFile(os.fsencode(name), size, 0, f"f{number:06d}")
            for number, name in enumerate(names[first : first + most])
        ]
        batch = TransferBatch("bench", Source(str(source), os.fsencode(source)), files, os.fsencode(staging), HOST)
        bad = [outcome.error for outcome in transport.move(batch) if not outcome.ok]
        if bad:
            raise SystemExit(f"gridftp: {bad[0]}")

    with ThreadPoolExecutor(max(1, defaults.moves // 2)) as workers:
        seconds = timed(lambda: list(workers.map(move, range(0, len(names), most))))
    transport.close()
    shutil.rmtree(target)
    return seconds


def report(rows: dict[str, list[float]], count: int, size: int) -> float:
    """Print medians; return the ratio of the transport to the bare program."""
    table = Table(title=f"Through a GridFTP server on loopback: {count:,} x {size:,} bytes")
    for column in ("way", "seconds (median)", "files/s", "MB/s", "times the bare program"):
        table.add_column(column, justify="left" if column == "way" else "right")
    middles = {name: statistics.median(seconds) for name, seconds in rows.items()}
    base = next(iter(middles.values()))
    for name, middle in middles.items():
        table.add_row(
            name,
            f"{middle:.2f}",
            f"{count / middle:,.0f}",
            f"{count * size / middle / 1e6:,.0f}",
            f"{middle / base:.2f}",
        )
    Console(width=100).print(table)
    return middles["transport gridftp"] / base


def main() -> None:
    """Run; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--size", type=int, default=100 << 10, help="bytes per file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1.5, help="how much longer the transport may take")
    parser.add_argument("--root", type=Path, help="work here, on the file system to be measured")
    parser.add_argument("--suite", action="store_true", help="the whole suite, too")
    given = parser.parse_args()
    rows: dict[str, list[float]] = {"globus-url-copy -fast -cc 4": [], "transport gridftp": []}
    with (
        tempfile.TemporaryDirectory(prefix="dm-gridftp-", dir=given.root) as directory,
        running(GridFtpServer(Path(directory) / "server")) as server,
    ):
        root = Path(directory)
        root.chmod(0o711)
        source = root / "source"
        make_files(source, given.files, given.size)
        for _ in range(given.rounds):
            rows["globus-url-copy -fast -cc 4"].append(bare(server, source, root / "bare"))
            rows["transport gridftp"].append(through_transport(server, source, root / "staging", given.size))
        if given.suite:
            transports = {"gridftp": {"servers": {HOST: {"urls": [server.url]}}}, "local": {}}
            with Suite(root, {"acquisition": {"transports": transports}}) as whole:
                rows["suite, files moved in"] = [
                    whole.ingest(source, f"round-{number}", move=True) for number in range(given.rounds)
                ]
                whole.verify(given.rounds * given.files)
        ratio = report(rows, given.files, given.size)
    if ratio > given.limit:
        raise SystemExit(
            f"The transport takes {ratio:.2f} times as long as the bare program, more than {given.limit:g}."
        )


if __name__ == "__main__":
    main()
