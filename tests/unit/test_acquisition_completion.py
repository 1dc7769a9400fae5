"""When a file counts as whole. Time is handed in, so nothing waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dm.station.acquisition.completion import Rule, SettleTimes, Tracker, Verdict, look

TIMES = SettleTimes(closed=1, scanned=10, temporary=100)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"one")
    return tmp_path


def tracker(root: Path) -> Tracker:
    return Tracker(os.fsencode(root), TIMES)


def test_a_closed_file_is_whole_after_the_short_time(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, Rule.CLOSED, 100)
    assert waiting.next_due() == 101
    assert waiting.take(100.9) == []
    [(path, verdict, stamp, rule)] = waiting.take(101)
    assert (path, verdict, rule) == (b"a", Verdict.READY, Rule.CLOSED)
    assert stamp == look(os.fsencode(root / "a"))[0]
    assert len(waiting) == 0


def test_a_found_file_is_whole_after_the_long_time(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, Rule.SETTLED, 100)
    waiting.offer(b"a", None, Rule.SETTLED, 109)  # seen again unchanged: the wait does not start anew
    assert waiting.take(109) == []
    assert [row[1] for row in waiting.take(110)] == [Verdict.READY]


def test_a_close_shortens_the_wait_of_a_found_file(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, Rule.SETTLED, 100)
    waiting.offer(b"a", None, Rule.CLOSED, 101)
    assert [row[3] for row in waiting.take(102)] == [Rule.CLOSED]


def test_a_change_starts_the_long_wait(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, Rule.CLOSED, 100)
    (root / "a").write_bytes(b"more bytes")
    assert waiting.take(101) == []
    assert waiting.take(110) == []
    assert [(row[1], row[3]) for row in waiting.take(111)] == [(Verdict.READY, Rule.SETTLED)]


def test_same_size_but_other_time_is_a_change(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, Rule.CLOSED, 100)
    os.utime(root / "a", ns=(1, 1))
    assert waiting.take(101) == []


def test_times_in_the_future_or_long_ago_do_not_matter(root: Path) -> None:
    waiting = tracker(root)
    for mtime in (0, 1, 2**62):
        os.utime(root / "a", ns=(mtime, mtime))
        waiting.offer(b"a", None, Rule.CLOSED, 100)
        assert [row[1] for row in waiting.take(101)] == [Verdict.READY]


def test_gone_and_replaced(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, Rule.CLOSED, 100)
    (root / "a").unlink()
    assert [row[1] for row in waiting.take(101)] == [Verdict.GONE]
    (root / "a").write_bytes(b"")
    waiting.offer(b"a", None, Rule.CLOSED, 100)
    (root / "a").unlink()
    os.mkfifo(root / "a")
    assert [row[1] for row in waiting.take(101)] == [Verdict.OTHER]
    assert not waiting.offer(b"never there", None, Rule.CLOSED, 100)
    assert len(waiting) == 0


def test_temporary_names_wait_until_they_are_renamed_or_the_end(root: Path) -> None:
    for name in ("x.tmp", "y.part", "z~"):
        (root / name).write_bytes(b"1")
    waiting = tracker(root)
    for name in (b"x.tmp", b"y.part", b"z~"):
        waiting.offer(name, None, Rule.CLOSED, 100)
    assert waiting.take(199) == []
    waiting.hurry(199)
    assert len(waiting.take(200)) == 3


def test_a_remote_file_is_whole_when_seen_unchanged_twice() -> None:
    from dm.station.acquisition.transports.base import FileStamp

    waiting = Tracker(None, TIMES)
    first, second = FileStamp(3, 5), FileStamp(4, 6)
    assert not waiting.offer(b"a", first, Rule.SETTLED, 100)
    assert not waiting.offer(b"a", second, Rule.SETTLED, 105)
    assert not waiting.offer(b"a", second, Rule.SETTLED, 114)
    assert waiting.offer(b"a", second, Rule.SETTLED, 115)
    assert len(waiting) == 0
