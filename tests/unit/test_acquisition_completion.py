"""When a file counts as whole. Time is handed in, so nothing waits."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

import pytest

from dm.station.acquisition.completion import Rule, SettleTimes, Tracker, Verdict, look
from dm.station.acquisition.rules.base import Judgement, RuleContext, Seen
from dm.station.acquisition.rules.settle import Closed, ClosedSettings
from dm.station.acquisition.writers import unwritten

TIMES = SettleTimes(closed=1, scanned=10, temporary=100, proven=1)
QUICK = SettleTimes(closed=1, scanned=10, temporary=100, proven=0.1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"one")
    return tmp_path


def tracker(root: Path, times: SettleTimes = TIMES, local: bool = False) -> Tracker:
    context = RuleContext(os.fsencode(root), times, local=local)
    return Tracker(os.fsencode(root), Closed(ClosedSettings(), context))


def test_a_closed_file_is_whole_after_the_short_time(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, 100, closed=True)
    assert waiting.next_due() == 101
    assert waiting.take(100.9) == []
    [decided] = waiting.take(101)
    assert (decided.path, decided.verdict, decided.rule) == (b"a", Verdict.READY, Rule.CLOSED)
    assert decided.stamp == look(os.fsencode(root / "a"))[0]
    assert len(waiting) == 0


def test_a_found_file_is_whole_after_the_long_time(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, 100)
    waiting.offer(b"a", None, 109)  # seen again unchanged: the wait does not start anew
    assert waiting.take(109) == []
    assert [row.verdict for row in waiting.take(110)] == [Verdict.READY]


def test_a_close_shortens_the_wait_of_a_found_file(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, 100)
    waiting.offer(b"a", None, 101, closed=True)
    assert [row.rule for row in waiting.take(102)] == [Rule.CLOSED]


def test_a_change_starts_the_long_wait(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, 100, closed=True)
    (root / "a").write_bytes(b"more bytes")
    assert waiting.take(101) == []
    assert waiting.take(110) == []
    assert [(row.verdict, row.rule) for row in waiting.take(111)] == [(Verdict.READY, Rule.SETTLED)]


def test_same_size_but_other_time_is_a_change(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, 100, closed=True)
    os.utime(root / "a", ns=(1, 1))
    assert waiting.take(101) == []


def test_times_in_the_future_or_long_ago_do_not_matter(root: Path) -> None:
    waiting = tracker(root)
    for mtime in (0, 1, 2**62):
        os.utime(root / "a", ns=(mtime, mtime))
        waiting.offer(b"a", None, 100, closed=True)
        assert [row.verdict for row in waiting.take(101)] == [Verdict.READY]


def test_gone_and_replaced(root: Path) -> None:
    waiting = tracker(root)
    waiting.offer(b"a", None, 100, closed=True)
    (root / "a").unlink()
    assert [row.verdict for row in waiting.take(101)] == [Verdict.GONE]
    (root / "a").write_bytes(b"")
    waiting.offer(b"a", None, 100, closed=True)
    (root / "a").unlink()
    os.mkfifo(root / "a")
    assert [row.verdict for row in waiting.take(101)] == [Verdict.OTHER]
    assert not waiting.offer(b"never there", None, 100, closed=True)
    assert len(waiting) == 0


def test_temporary_names_wait_until_they_are_renamed_or_the_end(root: Path) -> None:
    for name in ("x.tmp", "y.part", "z~"):
        (root / name).write_bytes(b"1")
    waiting = tracker(root)
    for name in (b"x.tmp", b"y.part", b"z~"):
        waiting.offer(name, None, 100, closed=True)
    assert waiting.take(199) == []
    waiting.hurry(199)
    assert len(waiting.take(200)) == 3


def test_a_remote_file_is_whole_when_seen_unchanged_twice() -> None:
    from dm.station.acquisition.transports.base import FileStamp

    waiting = Tracker(None, Closed(ClosedSettings(), RuleContext(None, TIMES)))
    first, second = FileStamp(3, 5), FileStamp(4, 6)
    assert not waiting.offer(b"a", first, 100)
    assert not waiting.offer(b"a", second, 105)
    assert not waiting.offer(b"a", second, 114)
    decided = waiting.offer(b"a", second, 115)
    assert decided is not None
    assert (decided.verdict, decided.stamp) == (Verdict.READY, second)
    assert len(waiting) == 0


def test_a_closed_file_without_writers_is_whole_at_once(root: Path) -> None:
    waiting = tracker(root, QUICK)
    waiting.offer(b"a", None, 100, closed=True)
    assert waiting.next_due() == 100.1
    assert [(row.verdict, row.rule) for row in waiting.take(100.1)] == [(Verdict.READY, Rule.CLOSED)]


def test_a_file_that_another_writer_has_open_waits_as_long_as_ever(root: Path) -> None:
    waiting = tracker(root, QUICK)
    with (root / "a").open("ab"):
        waiting.offer(b"a", None, 100, closed=True)
        assert waiting.take(100.1) == []
        assert waiting.next_due() == 101
        assert waiting.take(101) == []
    assert [(row.verdict, row.rule) for row in waiting.take(111)] == [(Verdict.READY, Rule.CLOSED)]


def test_a_writer_that_leaves_while_the_file_waits(root: Path) -> None:
    waiting = tracker(root, QUICK)
    with (root / "a").open("ab"):
        waiting.offer(b"a", None, 100, closed=True)
        assert waiting.take(100.1) == []
    assert [(row.verdict, row.rule) for row in waiting.take(101)] == [(Verdict.READY, Rule.CLOSED)]


def test_a_mapping_that_may_be_written_is_a_writer(root: Path) -> None:
    waiting = tracker(root, QUICK)
    with (root / "a").open("r+b") as stream:
        mapped = mmap.mmap(stream.fileno(), 0)
    waiting.offer(b"a", None, 100, closed=True)
    assert waiting.take(100.1) == []
    mapped.close()
    assert len(waiting.take(101)) == 1


def test_a_reader_is_no_writer(root: Path) -> None:
    with (root / "a").open("rb"):
        waiting = tracker(root, QUICK)
        waiting.offer(b"a", None, 100, closed=True)
        assert len(waiting.take(100.1)) == 1


def test_a_file_appended_to_soon_after_its_close_waits(root: Path) -> None:
    waiting = tracker(root, QUICK)
    waiting.offer(b"a", None, 100, closed=True)
    with (root / "a").open("ab") as stream:
        stream.write(b"more")
    waiting.offer(b"a", None, 100.05, closed=True)  # its second close
    assert waiting.take(100.1) == []
    [decided] = waiting.take(100.2)
    assert decided.verdict is Verdict.READY
    assert decided.stamp is not None
    assert decided.stamp.size == 7


def test_a_file_renamed_away_at_once_was_never_there(root: Path) -> None:
    waiting = tracker(root, QUICK)
    waiting.offer(b"a", None, 100, closed=True)
    (root / "a").rename(root / "b")
    waiting.offer(b"b", None, 100.01, closed=True)
    assert [(row.path, row.verdict) for row in waiting.take(100.2)] == [(b"a", Verdict.GONE), (b"b", Verdict.READY)]


def test_temporary_names_and_found_files_gain_nothing(root: Path) -> None:
    (root / "x.tmp").write_bytes(b"1")
    waiting = tracker(root, QUICK)
    waiting.offer(b"x.tmp", None, 100, closed=True)
    waiting.offer(b"a", None, 100)
    assert waiting.next_due() == 110


def test_writers_that_come_back_are_given_time(root: Path) -> None:
    names = [f"{number}.h5" for number in range(5)]
    for name in [*names, "other.tif"]:
        (root / name).write_bytes(b"1")
    waiting = tracker(root, QUICK)
    for name in names[:3]:
        waiting.offer(os.fsencode(name), None, 100, closed=True, again=True)
        assert waiting.next_due() == 101
        assert len(waiting.take(101)) == 1
    waiting.offer(b"3.h5", None, 200, closed=True)  # three of its kind had writers that came back
    assert waiting.next_due() == 201
    waiting.take(201)
    waiting.offer(b"other.tif", None, 300, closed=True)
    assert waiting.next_due() == 300.1


def test_one_file_rewritten_for_ever_says_nothing_of_its_kind(root: Path) -> None:
    for name in ("latest.tif", "frame.tif"):
        (root / name).write_bytes(b"1")
    waiting = tracker(root, QUICK)
    for _ in range(9):
        waiting.offer(b"latest.tif", None, 100, closed=True, again=True)
    waiting.take(101)
    waiting.offer(b"frame.tif", None, 200, closed=True)
    assert waiting.next_due() == 200.1


def test_who_opens_a_file_while_it_is_proven_is_not_disturbed_and_does_not_disturb(root: Path) -> None:
    path = root / "a"
    stamp = look(os.fsencode(path))[0]
    assert stamp is not None
    over = threading.Event()
    opened = []

    def open_and_close() -> None:
        while not over.is_set():
            with path.open("r+b"):
                opened.append(1)

    threads = [threading.Thread(target=open_and_close) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        seen = {unwritten(os.fsencode(path), stamp) for _ in range(2000)}
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert seen <= {True, False}
    assert opened
    assert unwritten(os.fsencode(path), stamp) is True


def test_what_cannot_be_proven(root: Path) -> None:
    stamp = look(os.fsencode(root / "a"))[0]
    assert stamp is not None
    assert unwritten(os.fsencode(root / "gone"), stamp) is None
    os.mkfifo(root / "fifo")
    assert unwritten(os.fsencode(root / "fifo"), stamp) is None
    (root / "link").symlink_to(root / "a")
    assert unwritten(os.fsencode(root / "link"), stamp) is None
    (root / "a").write_bytes(b"changed since")
    assert unwritten(os.fsencode(root / "a"), stamp) is False


def test_a_found_file_without_writers_waits_no_longer_than_a_closed_one(root: Path) -> None:
    waiting = tracker(root, local=True)
    waiting.offer(b"a", None, 100)
    assert waiting.take(100.9) == []
    assert [(row.verdict, row.rule) for row in waiting.take(101)] == [(Verdict.READY, Rule.SETTLED)]


def test_a_found_file_that_is_open_or_changes_waits_long(root: Path) -> None:
    waiting = tracker(root, local=True)
    with (root / "a").open("ab") as stream:
        waiting.offer(b"a", None, 100)
        assert waiting.take(101) == []
        assert waiting.take(110) == []  # somebody has it open for writing
        stream.write(b"more")
    assert waiting.take(120) == []  # it changed
    assert [row.verdict for row in waiting.take(121)] == [Verdict.READY]


def test_a_found_file_is_whole_soon_only_where_all_writers_are_seen(root: Path) -> None:
    waiting = tracker(root, local=False)
    waiting.offer(b"a", None, 100)
    assert waiting.take(101) == []
    assert len(waiting.take(110)) == 1


class _Answered(Closed):
    """A rule whose answer for one file arrives while another is being judged."""

    others: tuple[bytes, ...] = ()
    asked: int = 0

    def judge(self, seen: Seen, now: float) -> Judgement:
        self.asked += 1
        assert self.asked < 100, "it never comes to an end"
        for path in self.others:
            self.context.poke(path)
        return super().judge(seen, now) if seen.path == b"a" else Judgement("", 5.0)


def test_answers_that_arrive_meanwhile_wait_for_the_next_turn(root: Path) -> None:
    """Taking went on and on once, as if what has been answered meant that something else is due."""
    (root / "b").write_bytes(b"two")
    rule = _Answered(ClosedSettings(), RuleContext(os.fsencode(root), TIMES))
    waiting = Tracker(os.fsencode(root), rule)
    for name in (b"a", b"b"):
        waiting.offer(name, None, 100, closed=True)
    rule.others = (b"b",)
    assert [row.path for row in waiting.take(101)] == [b"a"]
    assert waiting.next_due() == 0.0
    rule.others = ()
    assert waiting.take(101) == []
    assert waiting.next_due() == 106
