"""The logbook of accepted submissions: nothing is missing, also where it cannot be written."""

from __future__ import annotations

import datetime
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import ConfigurationError, InvalidArgument, ServiceUnavailable
from dm.station.processing.logbook import Logbook

TODAY = "today"


def line(number: int, **more: Any) -> dict[str, Any]:
    return {"time": time.time(), "id": f"job-{number}", **more}


def path_of(book: Logbook) -> Path:
    return book.directory / f"{datetime.date.today().isoformat()}.jsonl"


@pytest.fixture
def book(tmp_path: Path) -> Logbook:
    made = Logbook(tmp_path / "logbook")
    made.prepare()
    yield made
    made.close()


def test_entries_come_back_in_order_page_by_page(book: Logbook) -> None:
    for number in range(25):
        book.append(line(number, name="ü\udcff\n"))
    found, after, sizes = [], None, []
    while True:
        page = book.page(TODAY, after, 10)
        found += page["entries"]
        sizes.append(len(page["entries"]))
        after = page["after"]
        if after is None:
            break
    assert [entry["id"] for entry in found] == [f"job-{number}" for number in range(25)] and sizes == [10, 10, 5]
    assert found[0]["name"] == "ü\udcff\n"
    assert stat.S_IMODE(path_of(book).stat().st_mode) == 0o640
    assert book.page("2026-03-05") == {"entries": [], "after": None}


@pytest.mark.parametrize("after", ["x", "-1", "7", "99999", "1e3", "9" * 17])
def test_a_cursor_of_somebody_else_is_refused(book: Logbook, after: str) -> None:
    book.append(line(1))
    with pytest.raises(InvalidArgument, match="Cursor"):
        book.page(TODAY, after)
    with pytest.raises(InvalidArgument, match="Cursor"):
        book.page("2026-03-05", after)


@pytest.mark.parametrize(
    "date", ["", "yesterday", "2026-13-01", "20260305", "2026-W10-4", "../../etc/passwd", "2026-03-05\n"]
)
def test_what_is_no_date_is_refused(book: Logbook, date: str) -> None:
    with pytest.raises(InvalidArgument, match="Date"):
        book.page(date)


def test_submissions_at_the_same_time_share_flushes(book: Logbook, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes, real = [], os.fdatasync

    def counted(descriptor: int) -> None:
        flushes.append(descriptor)
        time.sleep(0.02)  # a disk of its usual slowness
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    threads = [threading.Thread(target=book.append, args=(line(number),)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry["id"] for entry in book.page(TODAY)["entries"]} == {f"job-{number}" for number in range(64)}
    assert len(flushes) < 32


def test_a_line_torn_by_a_crash_does_no_harm(book: Logbook) -> None:
    book.append(line(1))
    book.close()
    with path_of(book).open("ab") as file:
        file.write(b'{"time": 1, "id": "to')
    assert [entry["id"] for entry in book.page(TODAY)["entries"]] == ["job-1"]
    book.append(line(2))
    book.append(line(3))
    assert [entry["id"] for entry in book.page(TODAY)["entries"]] == ["job-1", "job-2", "job-3"]


def test_a_file_that_was_moved_away_is_begun_anew(book: Logbook) -> None:
    book.append(line(1))
    path_of(book).rename(book.directory / "kept")
    book.append(line(2))
    assert [entry["id"] for entry in book.page(TODAY)["entries"]] == ["job-2"]
    assert "job-1" in (book.directory / "kept").read_text()


def test_old_days_go(tmp_path: Path) -> None:
    book = Logbook(tmp_path, days=30)
    old = datetime.date.today() - datetime.timedelta(days=31)
    kept = datetime.date.today() - datetime.timedelta(days=30)
    for name in (f"{old}.jsonl", f"{kept}.jsonl", "notes.jsonl", "2020-01-01.txt"):
        (tmp_path / name).touch()
    book.prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"{kept}.jsonl", "notes.jsonl", "2020-01-01.txt"]
    )
    Logbook(tmp_path).prepare()
    assert (tmp_path / f"{kept}.jsonl").exists()


def test_links_are_not_followed(book: Logbook, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    path_of(book).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServiceUnavailable, match="No job was accepted"):
        book.append(line(1))
    assert not (tmp_path / "elsewhere").read_bytes()


def test_a_directory_that_cannot_be_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Logbook directory"):
        Logbook(tmp_path / "file" / "logbook").prepare()


FULL = """
import resource, signal, sys, time
from pathlib import Path
from dm.common.errors import ServiceUnavailable
from dm.station.processing.logbook import Logbook
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
book = Logbook(Path(sys.argv[1]))
book.prepare()
accepted = []
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
for number in range(100):
    try:
        book.append({"time": time.time(), "id": f"job-{number}", "filler": "x" * 100})
        accepted.append(number)
    except ServiceUnavailable as error:
        refused = str(error)
assert 5 < len(accepted) < 100 and "No job was accepted" in refused and "File too large" in refused, refused
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
book.append({"time": time.time(), "id": "job-after"})
print(*accepted)
"""


def test_without_space_nothing_is_accepted_and_nothing_half_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    expected = [*(f"job-{number}" for number in done.stdout.split()), "job-after"]
    book = Logbook(tmp_path)
    assert [entry["id"] for entry in book.page(TODAY)["entries"]] == expected
    assert all(json.loads(text)["id"] for text in path_of(book).read_text().splitlines())  # no line is torn
