"""How long people wait for what they ask of a ledger with many files, and whether forgetting old ones disturbs others.

    python benchmarks/people.py                          # 100,000 files, 2,000 upload records, the embedded database
    python benchmarks/people.py --files 20000 --url mongodb://host/benchmark

One upload with all the files is written as the pipeline writes it, then asked for in the ways of the REST interface,
without HTTP. At the end it is forgotten by the housekeeping while another connection asks for a row every 5 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dm.common.client import RestClient
from dm.common.embedded import EmbeddedMongo
from dm.common.web.routes import Principal
from dm.station.acquisition import listing
from dm.station.acquisition.completion import Rule
from dm.station.acquisition.exporting import exported
from dm.station.acquisition.keeping import Keeping
from dm.station.acquisition.ledger import Ledger
from dm.station.acquisition.listing import Query, listed_files
from dm.station.acquisition.office import Office
from dm.station.acquisition.parts import Parts
from dm.station.acquisition.rows import State
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.store import Store
from dm.station.acquisition.task import UPLOAD
from dm.station.acquisition.transports.base import FileStamp
from dm.station.acquisition.transports.local import Local, LocalSettings

_GROUP = 200
_YEAR = 365 * 86_400.0


class _Identity:
    """Nobody asks the site here."""

    def experiment(self, principal: Principal, name: str) -> dict[str, Any]:
        return {"id": 1, "name": name}


@contextlib.contextmanager
def opened(url: str | None) -> Iterator[Office]:
    """An office on a database, not open for work."""
    with contextlib.ExitStack() as stack:
        if url is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dm-people-"))
            server = EmbeddedMongo(Path(directory) / "mongo")
            server.start()
            stack.callback(server.stop)
            url = server.url("people")
        settings = AcquisitionSettings(certificate=Path("none"), key=Path("none"), database_url=url)
        store = Store(url)
        stack.callback(store.close)
        store.prepare()
        client = RestClient("https://localhost:1")
        transports = [Local(LocalSettings())]
        parts = Parts(store, StorageSite(client), _Identity(), lambda _who: client, "S1", settings, transports, [])
        yield Office(parts)


def upload(number: int, ended: float) -> dict[str, Any]:
    """The document of an upload that has ended."""
    counts = {"countFiles": 0, "nProcessedFiles": 0, "nCompletedFiles": 0, "nProcessingErrors": 0, "nSkippedFiles": 0}
    return {
        "_id": f"00000000-0000-4000-8000-{number:012d}",
        "kind": UPLOAD,
        "order": f"{UPLOAD}:{int((ended - 60) * 1e9):020d}",
        "open": False,
        "status": "done",
        "station": "S1",
        "owner": "d123456",
        "claim": f"c{number}",
        "place": f"S1:{number}",
        "root": "data",
        "request": json.dumps({"dataDirectory": f"/detector/run{number}", "taskInfo": {"sample": "Cu"}}),
        "experiment": json.dumps({"id": number % 50, "name": f"e{number % 50}", "storageDirectory": "/storage/e"}),
        "grant": {"id": "", "secret": ""},
        "plugins": [],
        "startTime": ended - 60,
        "endTime": ended,
        "counts": counts,
        "errorMessage": "",
    }


def fill(office: Office, task: str, count: int) -> float:
    """Write a ledger with so many files, one of a hundred failed; return the seconds it took."""
    ledger = Ledger(office.store, task)
    begun = time.perf_counter()
    for first in range(0, count, _GROUP):
        stamps = [(b"run%03d/frame_%06d.h5" % (n // 1000, n), FileStamp(n, n)) for n in range(first, first + _GROUP)]
        items = ledger.ready([(path, stamp, Rule.CLOSED) for path, stamp in stamps])
        outcomes = []
        for item in items:
            fields = {"digests": {"xxh3_128": f"{item.size:032x}"}, "md5Sum": f"{item.size:032x}", "version": 1}
            failed = item.size % 100 == 0
            fields["lastError"] = "no" if failed else ""
            outcomes.append((item, State.FAILED if failed else State.DONE, fields))
        ledger.finish(outcomes)
    return time.perf_counter() - begun


def timed(work: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """Return the median of some runs in seconds, and the last result."""
    seconds, found = [], None
    for _ in range(runs):
        begun = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds), found


def disturbed(office: Office, url: str, task: str, days: float) -> tuple[float, float, float, int]:
    """Forget the task; return its seconds, and what another connection waited for a row: median and longest, s."""
    waits: list[float] = []
    over = threading.Event()

    def ask() -> None:
        other = Store(url)
        while not over.wait(0.005):
            begun = time.perf_counter()
            other.lease()
            waits.append(time.perf_counter() - begun)
        other.close()

    thread = threading.Thread(target=ask)
    thread.start()
    begun = time.perf_counter()
    count = Keeping(office, days).prune()
    seconds = time.perf_counter() - begun
    over.set()
    thread.join()
    assert office.store.task(task) is None
    return seconds, statistics.median(waits), max(waits), count


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--url", help="mongodb:// URL of an empty database; default: an embedded one")
    given = parser.parse_args()
    with opened(given.url) as office:
        now = time.time()
        big = upload(0, now - 2 * _YEAR)
        office.store.add_task(big)
        others = [upload(number, now - given.records + number) for number in range(1, given.records)]
        office.store.tasks.insert_many(others)
        task = str(big["_id"])
        table = Table("asked", "seconds (median)", "found")
        table.add_row(f"write a ledger of {given.files} files", f"{fill(office, task, given.files):.2f}", "")
        last = given.files - 1000

        def records(**query: Any) -> int:
            found = (one for one in office.records(UPLOAD, cleared=True, **query))
            return sum(1 for _ in zip(found, range(1000), strict=False))

        def some(pattern: str, after: int | None = None) -> int:
            return len(listed_files(office, task, None, 0, 1000, Query(pattern=pattern), after))

        asked: list[tuple[str, Callable[[], Any]]] = [
            ("first page of 1,000", lambda: len(listed_files(office, task, None, 0, 1000))),
            ("last page of 1,000", lambda: len(listed_files(office, task, None, last, 1000))),
            ("first 1,000 failed", lambda: len(listed_files(office, task, "failed", 0, 1000))),
            ("page by pattern, from a position", lambda: some("*", last - 1)),
            ("exact counts by state", lambda: listing.counts(office, task)),
            ("one file", lambda: listing.one_file(office, task, b"run000/frame_000007.h5") is not None),
            ("all by pattern *_000007.h5", lambda: some("*_000007.h5")),
            ("export as CSV, bytes", lambda: sum(map(len, exported(listing.once_each(office, task, Query()), "csv")))),
            ("newest 1,000 upload records", records),
            ("upload records of one experiment", lambda: records(experiment="e7")),
        ]
        for name, work in asked:
            seconds, found = timed(work, given.runs)
            table.add_row(name, f"{seconds:.3f}", str(found))
        seconds, median, most, count = disturbed(office, office.parts.settings.database_url, task, 400)
        others_waited = f"others waited {median * 1e3:.1f} ms, at most {most * 1e3:.0f} ms"
        table.add_row(f"forget {count} upload with {given.files} files", f"{seconds:.2f}", others_waited)
        Console().print(table)


if __name__ == "__main__":
    main()
