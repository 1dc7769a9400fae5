"""Twenty-one stations at one site, all at once: does a file cost more than at a single one, and does anything go wrong?

    python benchmarks/stations.py                      # 1 station, then 21: one file a second each, for 60 s
    python benchmarks/stations.py --burst 20 --every 10

One site (a storage service with its PostgreSQL) and as many stations as asked for on this machine: each its own
acquisition and catalog service, its own experiment and watched directory; one embedded document database serves all,
with databases of their own. Idle first, then files: CPU seconds of all parts together per file. The cost of being there
is inside that figure; it is shown alone, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite import EXPERIMENT, Suite, usage, workplace

from dm.common.environment import read_login_file, write_login_file
from dm.common.hosting import free_port
from dm.common.settings import read
from dm.deploy import tomlwriter
from dm.deploy.components import Component, components
from dm.deploy.install import ADMINISTRATOR
from dm.site.storage.api import ExperimentDsApi
from dm.site.storage.bootstrap import Station as StationRecord
from dm.site.storage.bootstrap import bootstrap
from dm.site.storage.settings import StorageSettings
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.catalog.api import FileCatApi

_PATIENCE = 300.0
_DETECTOR = """
import os, sys, time
burst, every, rounds, size, first = int(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:6])
targets = sys.argv[6:]
begun = time.monotonic()
for turn in range(rounds):
    for place, target in enumerate(targets):
        time.sleep(max(0.0, begun + (turn + place / len(targets)) * every - time.monotonic()))
        for number in range(first + turn * burst, first + (turn + 1) * burst):
            with open(os.path.join(target, f"frame_{number:06d}.raw"), "wb") as stream:
                stream.write(os.urandom(size))
"""


@dataclass
class Station:
    """One station: its services and an experiment whose directory is watched."""

    name: str
    watched: Path
    parts: dict[str, Component]
    daqs: ExperimentDaqApi
    catalog: FileCatApi
    experiment: str
    daq: str = ""
    logs: list[Path] = field(default_factory=list)

    def close(self) -> None:
        """Stop the DAQ and the services."""
        with contextlib.suppress(Exception):
            self.daqs.stopDaq(self.experiment, str(self.watched))
            self.daqs.waitDaq(self.daq, 30)
        self.daqs.close()
        self.catalog.close()
        for name in ("acquisition", "catalog"):
            self.parts[name].stop()


def add_station(suite: Suite, number: int) -> Station:
    """Make a station beside the suite's own and start its services."""
    name = f"BENCH{number:02d}"
    root = suite.root / "stations" / name
    for directory in ("etc", "var/run", "var/log", "detector"):
        (root / directory).mkdir(parents=True)
    main = read(suite.layout.settings)
    accounts = {role: (f"{role}bench{number:02d}", secrets.token_urlsafe(16)) for role in ("dm", "user")}
    for username, password in accounts.values():
        write_login_file(root / "etc" / username, username, password)
    bootstrap(
        StorageSettings.model_validate(main["storage"]),
        admin_username=ADMINISTRATOR,
        admin_password=read_login_file(suite.layout.login_file(ADMINISTRATOR))[1],
        storage_name=suite.plan.storage_name,
        storage_directory=suite.layout.root / "storage",
        stations=[StationRecord(name, *accounts["dm"], *accounts["user"])],
    )
    ports = {service: free_port() for service in ("catalog", "acquisition")}
    sections: dict[str, dict[str, Any]] = {
        "station": main["station"]
        | {
            "name": name,
            "service_username": accounts["dm"][0],
            "service_password_file": root / "etc" / accounts["dm"][0],
            "var_dir": root / "var",
        }
    }
    del sections["station"]["database_directory"]
    for service, port in ports.items():
        address = str(main[service]["database_url"]).replace(f"/dm_{service}", f"/dm_{service}_{number:02d}")
        sections[service] = main[service] | {
            "port": port,
            "database_url": address,
            "log_file": root / "var" / "log" / f"{service}.log",
        }
    plugins = {"metadata": {}, "catalog": {"url": f"https://localhost:{ports['catalog']}"}}
    sections["acquisition"]["plugins"] = plugins
    (root / "etc" / "dm.toml").write_text(tomlwriter.dumps(sections))
    parts = components(root / "etc" / "dm.toml")
    for part in parts.values():
        part.start()
    return Station(
        name,
        root / "detector",
        parts,
        ExperimentDaqApi(*accounts["user"], f"https://localhost:{ports['acquisition']}"),
        FileCatApi(*accounts["user"], f"https://localhost:{ports['catalog']}"),
        f"{EXPERIMENT}{number:02d}",
        logs=[root / "var" / "log" / f"{service}.log" for service in ports],
    )


def begin(suite: Suite, station: Station) -> None:
    """Make a station's experiment and start its DAQ."""
    experiments = ExperimentDsApi(*read_login_file(suite.layout.login_file(ADMINISTRATOR)))
    experiments.addExperiment(station.experiment, stationName=station.name, typeName="TEST")
    experiments.close()
    station.daq = station.daqs.startDaq(station.experiment, str(station.watched))["id"]


def spent(suite: Suite, stations: list[Station]) -> Counter[str]:
    """Return kind of part -> CPU seconds so far."""
    found: Counter[str] = Counter()
    for name, used in suite.usage(["storage", "site-database", "station-database"]).items():
        found[name] += used.cpu
    for station in stations:
        for name, part in station.parts.items():
            pid = part.pid_file.alive()
            found[name] += usage(pid).cpu if pid else 0.0
    return found


def during(suite: Suite, stations: list[Station], work: Any) -> tuple[float, Counter[str]]:
    """Return the seconds something took and what the parts used."""
    before, begun = spent(suite, stations), time.perf_counter()
    work()
    after = spent(suite, stations)
    return time.perf_counter() - begun, Counter({name: after[name] - before[name] for name in after})


def feed(suite: Suite, stations: list[Station], given: argparse.Namespace, rounds: int, done: int) -> None:
    """Let every station get files and wait until all are done."""
    words = [given.burst, given.every, rounds, given.size, done, *(station.watched for station in stations)]
    subprocess.run([sys.executable, "-c", _DETECTOR, *map(str, words)], check=True)
    wanted = done + rounds * given.burst
    begun = time.monotonic()
    for station in stations:
        while (info := station.daqs.getDaqInfo(station.daq))["nCompletedFiles"] < wanted:
            if info["nProcessingErrors"] or time.monotonic() - begun > _PATIENCE:
                raise SystemExit(f"{station.name}: {dict(info)}")
            time.sleep(0.5)


def complaints(suite: Suite, stations: list[Station]) -> list[str]:
    """Return what any service logged as an error, and services that are not well."""
    found = []
    for log in [suite.layout.log / "storage.log", *(log for station in stations for log in station.logs)]:
        lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
        found += [f"{log}: {line}" for line in lines if " ERROR " in line or "Traceback" in line]
    for station in stations:
        for name, part in station.parts.items():
            if part.health() != "ok":
                found.append(f"{station.name} {name} is {part.health()}")
    return found


def measure(count: int, given: argparse.Namespace) -> tuple[float, float]:
    """Return CPU seconds per file with so many stations, and the same without the cost of idling."""
    with workplace("stations", given.root) as root, Suite(root, watch=False) as suite:
        for name in ("acquisition", "processing", "catalog"):
            suite.part(name).stop()
        stations: list[Station] = []
        try:
            for number in range(count):
                stations.append(add_station(suite, number))
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda station: begin(suite, station), stations))
            warm = 2
            feed(suite, stations, given, warm, 0)
            seconds, idle = during(suite, stations, lambda: time.sleep(given.idle))
            shares = {name: f"{share / seconds / _many(name, count):.2%}" for name, share in idle.items()}
            print(f"{count} stations idle, share of a core per process: {shares}", flush=True)
            rounds = max(1, round(given.seconds / given.every))
            files = rounds * given.burst
            passed, used = during(suite, stations, lambda: feed(suite, stations, given, rounds, warm * given.burst))
            for station in stations:
                found = station.catalog.getExperimentFileCollectionStats(station.experiment)["countFiles"]
                if found < files:
                    raise SystemExit(f"{station.name}: the catalog has {found} files of {files}.")
            problems = complaints(suite, stations)
        finally:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(Station.close, stations))
    if problems:
        raise SystemExit("\n".join(problems[:20]))
    each = sum(used.values()) / (files * count)
    bare = each - sum(idle.values()) / seconds * passed / (files * count)
    parts = ", ".join(f"{name} {1000 * share / (files * count):.1f}" for name, share in used.items())
    print(
        f"{count} stations, {files} files each in {passed:.1f} s, no errors: {1000 * each:.1f} CPU ms per file "
        f"({parts}); without idling {1000 * bare:.1f}; all parts {sum(used.values()) / passed:.2f} cores",
        flush=True,
    )
    return each, bare


def _many(name: str, count: int) -> int:
    return count if name in ("acquisition", "catalog") else 1


def main() -> None:
    """Measure and print; the exit status is 1 when a file costs too much more at many stations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stations", type=int, default=21)
    parser.add_argument("--burst", type=int, default=1, help="files at once")
    parser.add_argument("--every", type=float, default=1.0, help="seconds from burst to burst of a station")
    parser.add_argument("--seconds", type=float, default=60.0, help="for so long")
    parser.add_argument("--size", type=int, default=100 << 10, help="bytes per file")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to watch them idle")
    parser.add_argument("--more", type=float, default=0.25, help="share a file may cost more than at one station")
    parser.add_argument("--root", type=Path, help="work here, on the file system to be measured")
    given = parser.parse_args()
    os.environ.pop("DM_STATION_NAME", None)
    one, one_bare = measure(1, given)
    many, many_bare = measure(given.stations, given)
    print(
        f"CPU seconds per file at {given.stations} stations by those at one: {many / one:.2f}; "
        f"without idling {many_bare / one_bare:.2f}"
    )
    if many / one > 1 + given.more:
        raise SystemExit(f"That is above {1 + given.more:g}.")


if __name__ == "__main__":
    main()
