"""What the Processing Service can do, beside others that run shell commands.

    python benchmarks/processing.py                              # 500 jobs of 3 stages, three rounds, everything
    python benchmarks/processing.py --jobs 50 --rounds 1 --only stages
    python benchmarks/processing.py --only calls --finished 2000

1. ``stages``: jobs of three trivial stages through REST, submitted one by one from a few threads and with the bulk
   call, with all durable records; beside them the same commands run by bare ``subprocess`` in as many threads, by Huey
   on SQLite and by Parsl's high-throughput executor - each as it comes, and once more made equally durable. All run in
   turn in every round, on the same disk; the medians count. The rivals are installed into an environment of this
   benchmark's own below the user's cache directory.
2. ``calls``: how long submitting takes while 100 jobs run, and listing the newest 100 of many finished jobs; and what
   the service uses while nothing happens.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import resource
import ssl
import statistics
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from suite import PATIENCE, STATION, Suite, family, percentile, settle_disk, workplace

from dm.station.processing.api import WorkflowProcApi

STAGES = 3
COMMAND = "/bin/true"
TRIVIAL, SLEEPING, SINGLE = "trivial", "sleeping", "single"
RUNNING = 100
SHOWN = 100
_TICK = os.sysconf("SC_CLK_TCK")
_RIVALS = ("bare", "bare-durable", "huey", "huey-durable", "parsl", "parsl-durable")
_DURABLE = ("bare-durable", "huey-durable", "parsl-durable")
_WAYS = ("dm", "dm-bulk")
_POLL = 0.02


@dataclass
class Round:
    """What one way took in one round: seconds, CPU seconds by part, bytes that are left of it."""

    seconds: float
    cpu: dict[str, float] = field(default_factory=dict)
    size: int = 0


def rivals_python() -> str:
    """Return the interpreter that has the rivals, after installing them if need be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "dm-benchmarks" / f"rivals-{sys.version_info.major}.{sys.version_info.minor}"
    python = place / "bin" / "python"
    ready = place / "ready"
    if not ready.exists():
        print(f"installing Huey and Parsl into {place}", flush=True)
        venv.create(place, clear=True, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "huey", "parsl"], check=True)
        ready.touch()
    return str(python)


def run_rival(python: str, name: str, commands: int, parallel: int, directory: Path) -> tuple[Round, str]:
    """Run a rival once; return what it took, and its version."""
    directory.mkdir()
    program = Path(__file__).resolve().with_name("processing_rivals.py")
    words = [python, str(program), name, str(commands), str(parallel), str(directory), COMMAND]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=directory)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(done.stdout.splitlines()[-1])
    # with its start and its warming up, as far as they cannot be told from the rest
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Round(float(told["seconds"]), {"all": cpu}, int(told["bytes"])), str(told["version"])


class Station:
    """A station of a suite, with a manager who submits."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.owner = suite.login[0]
        self.api = WorkflowProcApi(*suite.login)
        self._trust = ssl.create_default_context(cafile=os.environ["DM_CA_FILE"])
        self._metrics: http.client.HTTPSConnection | None = None
        for name in ("acquisition", "catalog"):
            suite.part(name).stop()
        trivial = {f"{number:02d}-STAGE": {"command": COMMAND} for number in range(1, STAGES + 1)}
        sleeping = {f"{number:02d}-SLEEP": {"command": "sleep 5"} for number in range(1, 100)}
        for name, stages in (
            (TRIVIAL, trivial),
            (SLEEPING, sleeping),
            (SINGLE, {"01-STAGE": {"command": COMMAND}}),
        ):
            self.api.upsertWorkflow({"name": name, "owner": self.owner, "stages": stages})

    def close(self) -> None:
        """Close the connections."""
        self.api.close()
        self.forget()

    def forget(self) -> None:
        """Close the connection for metrics."""
        if self._metrics is not None:
            self._metrics.close()
        self._metrics = None

    def left(self) -> int:
        """Return how many jobs have not ended, as the service's metrics tell."""
        if self._metrics is None:
            place = urlsplit(os.environ["DM_PROC_WEB_SERVICE_URL"])
            self._metrics = http.client.HTTPSConnection(place.netloc, timeout=30, context=self._trust)
        self._metrics.request("GET", "/metrics")
        text = self._metrics.getresponse().read().decode()
        found = re.search(r"^dm_processing_jobs (\S+)$", text, re.MULTILINE)
        if found is None:
            raise SystemExit("The metrics of the processing service do not tell its jobs.")
        return int(float(found[1]))

    def wait(self, most: int = 0, last: str = "") -> None:
        """Wait until no more than so many jobs are left.

        :param last: a job that is one of the last to end: the service is asked all the time only after it.
        """
        begun = time.monotonic()
        if last:
            self.api.waitProcessingJob(self.owner, last, PATIENCE)
        while self.left() > most:
            if time.monotonic() - begun > PATIENCE:
                raise SystemExit(f"{self.left()} jobs are left after {PATIENCE:g} s.")
            time.sleep(_POLL)

    def submit(self, workflow: str, jobs: int, threads: int) -> list[str]:
        """Submit jobs one by one; return their ids."""
        local = threading.local()
        made: list[WorkflowProcApi] = []

        def one(_number: int) -> str:
            if not hasattr(local, "api"):
                local.api = WorkflowProcApi(*self.suite.login)
                made.append(local.api)
            return str(local.api.startProcessingJob(self.owner, workflow, {"filePath": "x"})["id"])

        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(one, range(jobs)))
        for api in made:
            api.close()
        return found

    def submit_many(self, workflow: str, jobs: int) -> list[str]:
        """Submit jobs with the bulk call; return their ids."""
        wishes = [{"argsDict": {"filePath": "x"}}] * jobs
        return [str(answer["id"]) for answer in self.api.startProcessingJobs(self.owner, workflow, wishes)]

    def spent(self) -> dict[str, float]:
        """Return part -> CPU seconds so far."""
        pids = self.suite.pids()
        service = pids["processing"]
        own = resource.getrusage(resource.RUSAGE_SELF)
        found = {"client": own.ru_utime + own.ru_stime, "service": _ticks(service, 0, 2)}
        below = [pid for pid in family(service) if pid != service]
        found["supervisor"] = sum(_ticks(pid, 0, 2) for pid in below)
        found["stages"] = _ticks(service, 2, 4) + sum(_ticks(pid, 2, 4) for pid in below)
        found["database"] = self.suite.usage(["station-database"])["station-database"].cpu
        return found

    def records(self) -> int:
        """Return the bytes that the database and the service keep on disk."""
        var = self.suite.layout.settings.parent.parent
        return sum(path.stat().st_size for path in var.rglob("*") if path.is_file() and not path.is_symlink())

    def round(self, jobs: int, submit: Callable[[], list[str]]) -> Round:
        """Submit and wait for the end of all; everything is checked afterwards."""
        settle_disk()
        size, before = self.records(), self.spent()
        begun = time.perf_counter()
        submitted = submit()
        self.wait(last=submitted[-1])
        seconds = time.perf_counter() - begun
        after = self.spent()
        ids = set(submitted)
        cpu = {part: after[part] - before[part] for part in before}
        records = {str(job["id"]): job for job in self.api.iterateProcessingJobs(self.owner, limit=jobs, keyList="ALL")}
        if ids != records.keys() or len(ids) != jobs:
            raise SystemExit(f"{jobs} jobs were submitted, {len(ids)} accepted, {len(ids & records.keys())} found.")
        for job in records.values():
            runs = [
                child.get("exitStatus")
                for stage in job["workflow"]["stages"].values()
                for child in stage["childProcesses"].values()
            ]
            if job["status"] != "done" or runs != [0] * STAGES:
                raise SystemExit(f"Job {job['id']} is {job['status']} with {runs}: {job.get('errorMessage')}")
        return Round(seconds, cpu, self.records() - size)

    def reconfigure(self, **values: int) -> None:
        """Change settings of the service, and start it anew."""
        self.forget()
        part = self.suite.part("processing")
        part.stop()
        file = self.suite.layout.settings
        text = file.read_text()
        for name, value in values.items():
            text, changed = re.subn(rf"(?m)^{name} = \d+$", f"{name} = {value}", text)
            if changed != 1:
                raise SystemExit(f"{file} has no setting {name}.")
        file.write_text(text)
        part.start()


def _ticks(pid: int, first: int, last: int) -> float:
    """Return CPU seconds of a process: user, system, and those of its ended children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 + first : 11 + last])) / _TICK


def stages(station: Station, root: Path, given: argparse.Namespace) -> list[str]:
    """Compare; return the limits that were missed."""
    commands = given.jobs * STAGES
    ways = [way for way in (*_WAYS, *_RIVALS) if not given.ways or way in given.ways]
    rounds: dict[str, list[Round]] = {way: [] for way in ways}
    names = {"dm": "Processing Service, single calls", "dm-bulk": "Processing Service, bulk call"}
    python = rivals_python() if any(way in _RIVALS for way in ways) else ""
    if any(way in _WAYS for way in ways):
        station.round(min(50, given.jobs), lambda: station.submit(TRIVIAL, min(50, given.jobs), given.clients))
    for number in range(given.rounds):
        for way in ways:
            settle_disk()
            if way == "dm":
                done = station.round(given.jobs, lambda: station.submit(TRIVIAL, given.jobs, given.clients))
            elif way == "dm-bulk":
                done = station.round(given.jobs, lambda: station.submit_many(TRIVIAL, given.jobs))
            else:
                done, version = run_rival(python, way, commands, given.parallel, root / f"{way}-{number}")
                library, _, durable = way.partition("-")
                shown = "subprocess, threads" if library == "bare" else f"{library.capitalize()} {version}"
                names[way] = f"{shown}{', durable' if durable else ''}"
            rounds[way].append(done)
            print(f"{names[way]}: {commands / done.seconds:,.0f} stages/s", flush=True)
    report(commands, given, names, rounds)
    return judged(commands, given, rounds)


def report(commands: int, given: argparse.Namespace, names: dict[str, str], rounds: dict[str, list[Round]]) -> None:
    """Print the medians."""
    bare = statistics.median(done.seconds for done in rounds["bare"]) if rounds.get("bare") else None
    table = Table(title=f"{given.jobs:,} jobs of {STAGES} stages `{COMMAND}`, {given.parallel} at the same time")
    for column in ("way", "seconds (median)", "stages/s", "x bare", "CPU ms per stage", "bytes per stage"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, found in rounds.items():
        seconds = [done.seconds for done in found]
        middle = statistics.median(seconds)
        cpu = statistics.median(sum(done.cpu.values()) for done in found)
        table.add_row(
            names[way],
            f"{middle:.2f} ({min(seconds):.2f}-{max(seconds):.2f})",
            f"{commands / middle:,.0f}",
            f"{bare / middle:.2f}" if bare else "",
            f"{1000 * cpu / commands:.2f}",
            f"{statistics.median(done.size for done in found) / commands:,.0f}",
        )
    Console(width=120).print(table)
    parts = Table(title="CPU, ms per stage (medians)")
    own = {names[way]: found for way, found in rounds.items() if way in _WAYS}
    for column in ("part", *own):
        parts.add_column(column, justify="left" if column == "part" else "right")
    for part in next(iter(own.values()))[0].cpu if own else ():
        shares = [1000 * statistics.median(done.cpu[part] for done in found) / commands for found in own.values()]
        parts.add_row(part, *(f"{share:.2f}" for share in shares))
    Console(width=120).print(parts)


def judged(commands: int, given: argparse.Namespace, rounds: dict[str, list[Round]]) -> list[str]:
    """Return the limits that were missed."""
    rates = {way: commands / statistics.median(done.seconds for done in found) for way, found in rounds.items()}
    missed = []
    for way in _WAYS:
        if way in rates and rates[way] < given.floor:
            missed.append(f"{way}: {rates[way]:.0f} stages/s are less than {given.floor:g}.")
        for rival in _DURABLE:
            if way in rates and rates.get(rival, 0.0) > rates[way]:
                print(f"{rival} is ahead of {way}: {rates[rival]:.0f} and {rates[way]:.0f} stages/s")
    return missed


def calls(station: Station, given: argparse.Namespace) -> list[str]:
    """Time calls, and watch the service idle; return the limits that were missed."""
    station.reconfigure(concurrent_stages=2 * RUNNING)
    missed = []
    busy = station.submit_many(SLEEPING, RUNNING)
    begun = time.monotonic()
    while (states := [job["status"] for job in station.api.listProcessingJobs(station.owner, limit=RUNNING)]) != [
        "running"
    ] * RUNNING:
        if time.monotonic() - begun > PATIENCE:
            raise SystemExit(f"Not all of the {RUNNING} jobs run: {states}")
        time.sleep(0.1)
    seconds = []
    for _ in range(given.calls):
        start = time.perf_counter()
        station.api.startProcessingJob(station.owner, SINGLE, {"filePath": "x"})
        seconds.append(time.perf_counter() - start)
    station.wait(RUNNING)
    missed += _calls(f"submit while {RUNNING} jobs run", seconds, given.submit)
    for job in busy:
        station.api.stopProcessingJob(station.owner, job)
    station.wait()
    left = given.finished
    begun = time.perf_counter()
    while left > 0:
        count = min(left, 2000)
        station.submit_many(SINGLE, count)
        station.wait(500)
        left -= count
    station.wait()
    took = time.perf_counter() - begun
    print(f"{given.finished:,} jobs of one stage: {took:.1f} s, {given.finished / took:,.0f} per second")
    seconds = []
    for _ in range(100):
        start = time.perf_counter()
        found = station.api.listProcessingJobs(station.owner, limit=SHOWN)
        seconds.append(time.perf_counter() - start)
        if len(found) != SHOWN:
            raise SystemExit(f"{len(found)} jobs are listed, not {SHOWN}.")
    missed += _calls(f"list the newest {SHOWN} of {given.finished:,}", seconds, given.list)
    time.sleep(2)
    before = station.spent()
    time.sleep(given.idle)
    after = station.spent()
    used = {part: (after[part] - before[part]) / given.idle for part in ("service", "supervisor", "stages", "database")}
    shares = ", ".join(f"{part} {share:.2%}" for part, share in used.items())
    print(f"idle for {given.idle:g} s, share of a core: {shares}")
    if used["service"] + used["supervisor"] > given.share:
        missed.append(f"An idle service uses more than {given.share:.1%} of a core.")
    return missed


def _calls(what: str, seconds: list[float], limit: float) -> list[str]:
    shown = [1000 * value for value in (percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds))]
    print(f"{what}: {len(seconds)} calls, ms: p50 {shown[0]:.1f}, p99 {shown[1]:.1f}, most {shown[2]:.1f}", flush=True)
    return [f"{what}: p99 is above {1000 * limit:g} ms."] if shown[1] > 1000 * limit else []


def main() -> None:
    """Measure and print; the exit status is 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("stages", "calls"))
    parser.add_argument("--ways", nargs="*", choices=(*_WAYS, *_RIVALS), help="of the stages; default: all")
    parser.add_argument("--parallel", type=int, default=4 * (os.cpu_count() or 1), help="commands at the same time")
    parser.add_argument("--clients", type=int, default=4, help="threads that submit one by one")
    parser.add_argument("--calls", type=int, default=300, help="submit calls that are timed")
    parser.add_argument("--finished", type=int, default=10_000, help="jobs that have ended when listing is timed")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to watch it idle")
    parser.add_argument("--floor", type=float, default=250.0, help="stages per second, at least")
    parser.add_argument("--submit", type=float, default=0.05, help="seconds a submit call may take, p99")
    parser.add_argument("--list", type=float, default=0.05, help="seconds listing may take, p99")
    parser.add_argument("--share", type=float, default=0.01, help="of a core that the idle service may use")
    parser.add_argument("--root", type=Path, help="work here, on the file system to be measured")
    given = parser.parse_args()
    settings = {"processing": {"concurrent_stages": given.parallel, "active_jobs": 20_000}}
    missed: list[str] = []
    with workplace("processing", given.root) as root, Suite(root, settings, watch=False, station=STATION) as suite:
        station = Station(suite)
        try:
            if given.only != "calls":
                missed += stages(station, root, given)
            if given.only != "stages":
                missed += calls(station, given)
        finally:
            station.close()
    if missed:
        raise SystemExit("\n".join(missed))


if __name__ == "__main__":
    main()
