"""What the benchmarks of the whole suite share: an installed suite with a watching DAQ, and meters of its processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXPERIMENT = "ingest"
STATION = "BENCH"
PATIENCE = 600.0
_WRITER = """
import os, sys
source, target = sys.argv[1:]
for name in sorted(os.listdir(source)):
    with open(os.path.join(source, name), "rb") as stream:
        data = stream.read()
    with open(os.path.join(target, name), "wb") as stream:
        stream.write(data)
"""
_SERVICES = {
    "storage": "DM_DS_WEB_SERVICE_URL",
    "acquisition": "DM_DAQ_WEB_SERVICE_URL",
    "catalog": "DM_CAT_WEB_SERVICE_URL",
}
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


_DETECTOR = """
import json, os, sys, time
target, count, every, size = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
closed = {}
begun = time.monotonic()
for number in range(count):
    time.sleep(max(0.0, begun + number * every - time.monotonic()))
    name = f"frame_{number:06d}.raw"
    with open(os.path.join(target, name), "wb") as stream:
        stream.write(number.to_bytes(8, "big") + os.urandom(size - 8))
    closed[name] = time.time()
print(json.dumps(closed))
"""


@contextlib.contextmanager
def workplace(name: str, root: Path | None) -> Iterator[Path]:
    """A directory to work in, for the time of a benchmark.

    :param root: where; default: the place for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix=f"dm-{name}-", dir=root) as made:
        place = Path(made)
        place.chmod(0o711)  # as root, the database runs under an account of its own
        yield place


def detect(target: Path, count: int, every: float, size: int) -> dict[str, float]:
    """Write files at a steady pace, as another process.

    :param every: seconds from file to file. :param size: bytes per file, 8 at least.
    :returns: name -> epoch seconds when it was closed.
    """
    words = [sys.executable, "-c", _DETECTOR, str(target), str(count), str(every), str(size)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    closed: dict[str, float] = json.loads(done.stdout)
    return closed


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def settle_disk() -> None:
    """Let the last round's writes not count against the next one."""
    os.sync()


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants use: CPU seconds so far (those of ended children included), resident bytes,
    open descriptors, threads."""

    cpu: float
    rss: int
    descriptors: int
    threads: int


def usage(pid: int) -> Usage:
    """Return what a process and all below it use now; what ended meanwhile counts as nothing."""
    cpu = 0.0
    rss = descriptors = threads = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            # the command name in brackets may itself contain blanks and brackets
            fields = Path(f"/proc/{member}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
            cpu += sum(map(int, fields[11:15])) / _TICK
            threads += int(fields[17])
            rss += int(fields[21]) * _PAGE
            descriptors += len(os.listdir(f"/proc/{member}/fd"))
    return Usage(cpu, rss, descriptors, threads)


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for member in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{member}/task"):
                with contextlib.suppress(OSError):
                    found += map(int, Path(f"/proc/{member}/task/{task}/children").read_text("ascii").split())
    return found


class Suite:
    """The whole suite in a directory, with a DAQ that watches.

    :param settings: more settings: section -> key -> value. :param watch: start the DAQ.
    """

    def __init__(
        self, root: Path, settings: dict[str, dict[str, Any]] | None = None, watch: bool = True, station: str = STATION
    ) -> None:
        from dm.deploy import components
        from dm.deploy.install import Plan, install

        self.root = root
        self.watched = root / "detector"
        self._components = components
        self.watch = watch
        self.plan = Plan(
            root / "suite", station, host="localhost", listen="127.0.0.1", free_ports=True, settings=settings or {}
        )
        self.layout = install(self.plan).layout
        try:
            components.start(components.chosen("all", self.layout.settings))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Suite:
        try:
            from dm.common.environment import read_login_file
            from dm.common.setupfile import read_setup
            from dm.site.storage.api import ExperimentDsApi
            from dm.station.acquisition.api import ExperimentDaqApi
            from dm.station.catalog.api import FileCatApi

            os.environ.update(read_setup(self.layout.setup))
            os.environ["DM_HOME"] = str(self.root / "home")
            login = read_login_file(self.layout.login_file(self.plan.manager_account))
            experiments = ExperimentDsApi(*login)
            experiments.addExperiment(EXPERIMENT, stationName=self.plan.station, typeName="TEST")
            experiments.close()
            self.login = login
            self.daqs, self.catalog = ExperimentDaqApi(*login), FileCatApi(*login)
            self.watched.mkdir()
            if self.watch:
                self.daq = self.daqs.startDaq(EXPERIMENT, str(self.watched))["id"]
        except BaseException:
            self._stop()
            raise
        self.done = 0
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.watch:
                self.daqs.stopDaq(EXPERIMENT, str(self.watched))
                self.daqs.waitDaq(self.daq, PATIENCE)
            self.daqs.close()
            self.catalog.close()
        finally:
            self._stop()

    def _stop(self) -> None:
        self._components.stop(self._components.chosen("all", self.layout.settings))

    def pids(self) -> dict[str, int]:
        """Return component -> process id of all that runs."""
        parts = self._components.chosen("all", self.layout.settings)
        return {part.name: pid for part in parts if (pid := part.pid_file.alive()) is not None}

    def usage(self, only: Iterable[str] = ()) -> dict[str, Usage]:
        """Return component -> what it uses."""
        return {name: usage(pid) for name, pid in self.pids().items() if not only or name in only}

    def parts(self) -> dict[str, float]:
        """Return ``<service>: <part>`` -> CPU seconds so far, as the services' own metrics tell."""
        found: dict[str, float] = {}
        trust = ssl.create_default_context(cafile=os.environ["DM_CA_FILE"])
        for name, variable in _SERVICES.items():
            with urllib.request.urlopen(f"{os.environ[variable]}/metrics", context=trust, timeout=30) as reply:
                text = reply.read().decode()
            for part, seconds in re.findall(r'^dm_cpu_seconds_total{part="([^"]*)"} (\S+)$', text, re.MULTILINE):
                found[f"{name}: {part}"] = float(seconds)
        return found

    def part(self, name: str) -> Any:
        """Return a component, to start, stop or ask it."""
        return self._components.chosen(name, self.layout.settings)[0]

    def ingest(self, source: Path, folder: str, move: bool) -> float:
        """Return the seconds until all files of a tree that appear in a sub-folder are done."""
        count = len(os.listdir(source))
        target = self.watched / folder
        target.mkdir()
        ready = self.root / "ready"
        if move:
            shutil.copytree(source, ready)
        settle_disk()
        begun = time.perf_counter()
        if move:
            for name in sorted(os.listdir(ready)):
                os.rename(ready / name, target / name)
        else:
            subprocess.run([sys.executable, "-c", _WRITER, str(source), str(target)], check=True)
        self.done += count
        while True:
            info = self.daqs.getDaqInfo(self.daq)
            if info["nProcessedFiles"] >= self.done:
                break
            if info["nProcessingErrors"] or time.perf_counter() - begun > PATIENCE:
                raise SystemExit(f"The DAQ did not finish its files: {dict(info)}")
            time.sleep(0.05)
        seconds = time.perf_counter() - begun
        if move:
            ready.rmdir()
        shutil.rmtree(target)  # stored and cataloged: the disk is needed
        return seconds

    def verify(self, expected: int) -> None:
        """Fail unless the catalog has all files."""
        found = self.catalog.getExperimentFileCollectionStats(EXPERIMENT)["countFiles"]
        if found != expected:
            raise SystemExit(f"The catalog has {found} files, not {expected}.")
