"""Does anything grow, leak or stall when a lot goes on for long? (Fault F-50)

    python benchmarks/soak.py                           # 5 uploads x 20,000 files, jobs and clients for 10 minutes
    python benchmarks/soak.py --seconds 1800            # half an hour
    python benchmarks/soak.py --seconds 180 --files 2000

Five uploads run at the same time; when one is over, the next begins at once, into a new directory. Meanwhile jobs are
started one after the other, and clients ask: for the health of every service, for uploads and their files. Every few
seconds the descriptors, threads and resident memory of every service are noted. After a warm-up, nothing may go up any
more: the slope of a straight line through the notes, over the rest of the time, stays below the limits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from suite import STATION, Suite, Usage, workplace

from dm.common.errors import DmException
from dm.site.storage.api import ExperimentDsApi
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.processing.api import WorkflowProcApi

_SERVICES = ("storage", "catalog", "acquisition", "processing")
_WORKFLOW = {"name": "soak", "stages": {"01-LOOK": {"command": "/bin/echo seen $number"}}}
_DESCRIPTORS = 8
_THREADS = 8


@dataclass
class Soak:
    """What goes on, and what was seen of it."""

    suite: Suite
    files: int
    over: threading.Event = field(default_factory=threading.Event)
    uploads: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    waits: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[tuple[float, dict[str, Usage]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def until_over(self, work: Callable[[], Any], what: str, pause: float) -> Callable[[], None]:
        """Return what a thread does: something again and again; errors are kept, and do not end it."""

        def run() -> None:
            while not self.over.is_set():
                try:
                    work()
                except Exception as error:  # anything: it is what we are here to find
                    with self.lock:
                        self.problems.append(f"{what}: {type(error).__name__}: {error}")
                self.over.wait(pause)

        return run

    def timed(self, name: str, work: Callable[[], Any]) -> Callable[[], None]:
        """Return the same call with its duration noted."""
        waits = self.waits.setdefault(name, [])

        def call() -> None:
            begun = time.perf_counter()
            work()
            waits.append(time.perf_counter() - begun)

        return call


def uploader(soak: Soak, number: int) -> Callable[[], None]:
    """Return what uploads one directory again and again, each time to another place."""
    source = soak.suite.root / f"source-{number}"
    source.mkdir()
    for name in range(soak.files):
        if not name % 1000:
            (source / f"part_{name // 1000:03d}").mkdir()
        (source / f"part_{name // 1000:03d}" / f"frame_{name:06d}.raw").write_bytes(os.urandom(1024 + name % 3072))
    experiments = ExperimentDsApi(*soak.suite.login)
    experiments.addExperiment(f"soak{number}", stationName=STATION, typeName="TEST")
    experiments.close()
    daqs = ExperimentDaqApi(*soak.suite.login)
    turn = 0

    def once() -> None:
        nonlocal turn
        turn += 1
        started = daqs.upload(f"soak{number}", str(source), {"destDirectory": f"turn{turn}"})
        while not soak.over.is_set():
            info = daqs.getUploadInfo(started["id"], waitTime=5)
            if info.is_over:
                break
        info = daqs.getUploadInfo(started["id"])
        with soak.lock:
            soak.uploads.append(dict(info))
            if info.is_over and (info["status"] != "done" or info["nCompletedFiles"] != soak.files):
                soak.problems.append(f"upload {number}, turn {turn}: {dict(info)}")

    return once


def jobs(soak: Soak) -> Callable[[], None]:
    """Return what starts a job and waits for its end."""
    api = WorkflowProcApi(*soak.suite.login)
    owner = str(api.upsertWorkflow(_WORKFLOW)["owner"])

    def once() -> None:
        job = api.startProcessingJob(
            owner, "soak", {"filePath": str(Path(__file__).resolve()), "number": len(soak.jobs)}
        )
        job = api.waitProcessingJob(None, job["id"], timeout=60)
        with soak.lock:
            soak.jobs.append(str(job["status"]))
            if job["status"] != "done":
                soak.problems.append(f"job {job['id']}: {job['status']} {job.get('errorMessage')}")

    return once


def client(soak: Soak) -> Callable[[], None]:
    """Return what a person's program asks for while it waits."""
    daqs = ExperimentDaqApi(*soak.suite.login)

    def look() -> None:
        running = daqs.listUploads(status="running")
        for info in running[:2]:
            daqs.getUploadInfo(info["id"])
            daqs.listUploadFiles(info["id"], skip=100, limit=50)

    return soak.timed("list uploads and files", look)


def health(soak: Soak, name: str) -> Callable[[], None]:
    """Return what asks a service for its health, over a new connection each time as monitoring does."""
    part = soak.suite.part(name)

    def ask() -> None:
        status = part.status()
        if status["status"] == "critical":
            raise DmException(f"{name} is critical: {json.dumps(status)[:500]}")

    return soak.timed(f"status of {name}", ask)


def slope(points: list[tuple[float, float]]) -> float:
    """Return the rise over the time the points cover of the straight line that fits them best."""
    if len(points) < 3:
        return 0.0
    times, values = zip(*points, strict=True)
    return statistics.linear_regression(times, values).slope * (times[-1] - times[0])


def judge(soak: Soak, warm: float, memory: float) -> list[str]:
    """Print what grew after the warm-up, and return what grew too much.

    :param memory: share by which resident memory may grow.
    """
    begun = soak.notes[0][0]
    later = [(when, used) for when, used in soak.notes if when - begun >= warm]
    table = Table(title=f"After {warm:.0f} s: level, and rise in {later[-1][0] - later[0][0]:.0f} s")
    for column in ("", "descriptors", "rise", "threads", "rise", "resident MB", "rise"):
        table.add_column(column, justify="right")
    found = []
    for name in later[0][1]:
        points = {
            "descriptors": [(when, float(used[name].descriptors)) for when, used in later if name in used],
            "threads": [(when, float(used[name].threads)) for when, used in later if name in used],
            "resident": [(when, used[name].rss / 1e6) for when, used in later if name in used],
        }
        rises = {what: slope(line) for what, line in points.items()}
        levels = {what: statistics.median(value for _when, value in line) for what, line in points.items()}
        limits = {"descriptors": _DESCRIPTORS, "threads": _THREADS, "resident": memory * levels["resident"] + 4}
        table.add_row(name, *(text for what in points for text in (f"{levels[what]:.0f}", f"{rises[what]:+.1f}")))
        if name not in _SERVICES:
            continue  # the databases open and keep what they are given
        found += [
            f"{name}: {what} went up by {rises[what]:.1f} from {levels[what]:.0f}"
            for what in points
            if rises[what] > limits[what]
        ]
    Console(width=110).print(table)
    return found


def tail(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def run(soak: Soak, given: argparse.Namespace) -> list[str]:
    """Let it all go on for the time given; return what went wrong."""
    work: list[Callable[[], None]] = []
    for number in range(given.uploads):
        work.append(soak.until_over(uploader(soak, number), f"upload {number}", 0.1))
    work.append(soak.until_over(jobs(soak), "jobs", given.job_every))
    work += [soak.until_over(client(soak), "client", 0.5) for _ in range(given.clients)]
    work += [soak.until_over(health(soak, name), "status", 0.25) for name in _SERVICES]
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    while time.monotonic() - begun < given.seconds:
        soak.notes.append((time.monotonic(), soak.suite.usage()))
        time.sleep(given.note_every)
    soak.over.set()
    for thread in threads:
        thread.join(90)
    stuck = [f"{thread.name} did not come to its end" for thread in threads if thread.is_alive()]
    done = sum(upload["nCompletedFiles"] for upload in soak.uploads)
    finished = sum(upload["status"] == "done" for upload in soak.uploads)
    print(f"{finished} uploads finished, {done:,} files stored and cataloged, {len(soak.jobs)} jobs")
    for name, waits in soak.waits.items():
        if waits:
            print(
                f"{name}: {len(waits)} calls, p50 {1000 * tail(waits, 0.5):.0f} ms, "
                f"p99 {1000 * tail(waits, 0.99):.0f} ms, longest {1000 * max(waits):.0f} ms"
            )
    slow = [
        f"{name}: p99 {1000 * tail(waits, 0.99):.0f} ms"
        for name, waits in soak.waits.items()
        if name.startswith("status") and waits and tail(waits, 0.99) > given.status
    ]
    if not finished:
        slow.append(f"no upload came to its end in {given.seconds:g} s")
    return [*soak.problems, *stuck, *slow]


def main() -> None:
    """Run and print; the exit status is 1 when something grew, failed or was slow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--warm", type=float, help="seconds of the beginning that do not count; default a third")
    parser.add_argument("--uploads", type=int, default=5, help="at the same time")
    parser.add_argument("--files", type=int, default=20_000, help="per upload")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--job-every", type=float, default=2.0, help="seconds from job to job")
    parser.add_argument("--note-every", type=float, default=2.0, help="seconds from note to note")
    parser.add_argument("--memory", type=float, default=0.05, help="share resident memory may rise after the warm-up")
    parser.add_argument("--status", type=float, default=0.2, help="seconds a status call may take, p99")
    parser.add_argument("--root", type=Path, help="work here, on the file system to be measured")
    given = parser.parse_args()
    with workplace("soak", given.root) as root, Suite(root, watch=False) as suite:
        soak = Soak(suite, given.files)
        problems = run(soak, given)
        grown = judge(soak, given.seconds / 3 if given.warm is None else given.warm, given.memory)
    if problems or grown:
        raise SystemExit("\n".join([*problems[:20], *grown]))


if __name__ == "__main__":
    main()
