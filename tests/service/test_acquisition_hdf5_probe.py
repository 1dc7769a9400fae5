"""Opening HDF5 files in a process that may die: what is whole, what is not, and what a bad file cannot do."""

from __future__ import annotations

import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from dm.station.acquisition.completion import Tracker
from dm.station.acquisition.rules import choice
from dm.station.acquisition.rules.base import RuleContext, SettleTimes
from dm.station.acquisition.rules.hdf5_probe import Probe, locked, problem
from tests.service.acquisition_fixtures import until


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.h5"
    with h5py.File(path, "w") as file:
        file["entry/data"] = range(1000)
    return path


@pytest.fixture
def probe() -> Iterator[Probe]:
    found = Probe.acquire()
    yield found
    found.release()


def asked(probe: Probe, path: Path | str, seconds: float = 20) -> str:
    """Return what the probe says of a file."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    probe.check(str(path), [], seconds, answers.put)
    return answers.get(timeout=60)


def child(probe: Probe) -> int:
    process = probe._helper._process
    assert process is not None
    return process.pid


def test_what_is_whole(whole: Path, tmp_path: Path) -> None:
    assert problem(str(whole), []) == ""
    assert problem(str(whole), ["/entry/data", "entry"]) == ""
    assert problem(str(whole), ["/entry/other"]) == "/entry/other is missing in it"
    content = whole.read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(content[:-1])
    assert "truncated" in problem(str(cut), [])
    assert problem(str(tmp_path / "gone"), []) == "it cannot be opened: No such file or directory"
    (tmp_path / "link").symlink_to(whole)
    assert "cannot be opened" in problem(str(tmp_path / "link"), [])
    os.mkfifo(tmp_path / "fifo")
    assert problem(str(tmp_path / "fifo"), []) == "it is no regular file"


def test_a_lock_of_the_writer_is_seen_and_not_disturbed(whole: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, fcntl.LOCK_EX); print('x', flush=True)"
    code += "; input()"
    writer = subprocess.Popen([sys.executable, "-c", code, whole], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == b"x\n"
        assert locked(os.stat(whole))
        assert problem(str(whole), []) == "its writer holds a lock on it"
    finally:
        writer.communicate(b"\n", timeout=20)
    assert not locked(os.stat(whole))
    with whole.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert problem(str(whole), []) == ""  # another reader is no writer
    assert not locked(os.stat(whole), "/nowhere")


def test_any_file_name(probe: Probe, whole: Path, tmp_path: Path) -> None:
    for name in (b"new\nline.h5", b"bad\xff.h5", "ü 日本.h5".encode(), b"-f.h5", b'quote".h5'):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.link(whole, path)
        assert asked(probe, path.decode("utf-8", "surrogateescape")) == ""


def test_a_process_that_dies_is_replaced(probe: Probe, whole: Path) -> None:
    assert asked(probe, whole) == ""
    before = child(probe)
    os.kill(before, signal.SIGKILL)
    assert asked(probe, whole) == ""
    assert child(probe) != before


def test_a_file_that_hangs_is_told_and_the_next_one_is_read(probe: Probe, whole: Path) -> None:
    assert asked(probe, whole) == ""
    os.kill(child(probe), signal.SIGSTOP)
    assert asked(probe, whole, 0.2) == "opening it took longer than 0.2 s"
    assert asked(probe, whole) == ""


def test_the_last_one_to_go_ends_process_and_thread(whole: Path) -> None:
    first, second = Probe.acquire(), Probe.acquire()
    assert first is second
    assert asked(first, whole) == ""
    process = first._helper._process
    assert process is not None
    first.release()
    assert asked(second, whole) == ""
    second.release()
    assert process.poll() is not None
    assert "hdf5-probe" not in {thread.name for thread in threading.enumerate()}


def test_leaving_does_not_wait_for_a_file_that_hangs(whole: Path) -> None:
    probe = Probe.acquire()
    assert asked(probe, whole) == ""
    os.kill(child(probe), signal.SIGSTOP)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    for _ in range(3):
        probe.check(str(whole), [], 3600, answers.put)
    probe.release()
    assert "hdf5-probe" not in {thread.name for thread in threading.enumerate()}


def test_a_file_that_is_rewritten_is_opened_again_at_once(tmp_path: Path) -> None:
    """However long the pause between tries has become, a change ends it."""
    root = os.fsencode(tmp_path)
    context = RuleContext(root, SettleTimes(closed=1, scanned=1, proven=0))
    waiting = Tracker(root, choice.build("hdf5", {}, {}, context))
    path = tmp_path / "a.h5"
    path.write_bytes(b"nothing yet")
    now = 100.0
    waiting.offer(b"a.h5", None, now, closed=True)

    def refused(why: str) -> bool:
        assert waiting.take(now) == []
        found = waiting.waiting_for(b"a.h5")
        return found is not None and why in found.why

    for _ in range(6):
        until(lambda: refused("no HDF5 signature") and waiting.next_due() not in (None, 0.0))
        due = waiting.next_due()
        assert due is not None
        assert due - now <= 60
        now = due
    assert due - 100 > 30
    with h5py.File(path, "w") as file:
        file["data"] = 1
    now = 1000.0
    waiting.offer(b"a.h5", None, now, closed=True)
    [decided] = until(lambda: waiting.take(now))
    assert decided.rule == "hdf5"
    waiting.rule.close()
