"""F-10 to F-17 and F-25: bursts while the watcher stands still, writers of all kinds, clocks that jump."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.bench import Bench, fill
from tests.faults.injection import compiled
from tests.faults.invariant import Task, check, contents
from tests.service.acquisition_fixtures import until

QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

# The wall clock of a process, as far ahead as the first number of a file says; the monotonic clock stays true.
_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static int (*real)(clockid_t, struct timespec *);
static const volatile long *ahead;
__attribute__((constructor)) static void begin(void) {
    real = dlsym(RTLD_NEXT, "clock_gettime");
    int file = open(getenv("TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
    ahead = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *ahead;
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *into) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (into) *into = found.tv_sec;
    return found.tv_sec;
}
"""

_DIRECTORIES = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
root, directories, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def make(number):
    place = os.path.join(root, f"d{number % 40}", f"e{number}")
    os.makedirs(place)
    for name in range(files):
        with open(os.path.join(place, f"f{name}"), "wb") as file:
            file.write(b"%d-%d" % (number, name))
with ThreadPoolExecutor(8) as pool:
    list(pool.map(make, range(directories)))
"""


def ended(bench: Bench, daq: str, files: int, seconds: float = 100) -> None:
    """Wait until so many files are done, then stop the DAQ, which must find nothing more."""
    until(lambda: bench.completed("daq", daq) >= files, seconds, f"{files} files")
    bench.stop_daq(daq)
    record = bench.finish("daq", daq, seconds)
    assert (record["status"], record["nCompletedFiles"], record["countFiles"]) == ("done", files, files), record


def burst(bench: Bench, source: Path, files: int, seconds: float) -> None:
    """Write files, more than the kernel's queue takes, while the service is stopped."""
    bench.reconfigure(scan_seconds=3600)
    experiment = bench.experiment()
    daq = str(bench.begin("daq", experiment, source)["id"])
    until(lambda: "lastReconcileTime" in bench.info("daq", daq))
    (source / "churn").write_bytes(b"")  # what lay there before the start would not be taken
    with bench.acquisition.frozen():
        frozen_at = time.monotonic()
        fill(source, files, 40)
        for _ in range(max(0, QUEUE // 2 + 10 - files)):  # two events each, as a file has: the queue runs over
            os.rename(source / "churn", source / "churn2")
            os.rename(source / "churn2", source / "churn")
        time.sleep(max(0.0, seconds - (time.monotonic() - frozen_at)))
    ended(bench, daq, files + 1, 400)
    check(bench, experiment, source, task=Task("daq", daq))


def test_f15_a_burst_while_the_watcher_is_stopped(bench: Bench, source: Path) -> None:
    burst(bench, source, 300, 0.5)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_f15_20000_files_while_the_watcher_is_stopped_10_seconds(bench: Bench, source: Path) -> None:
    burst(bench, source, 20_000, 10)


def made_at_once(bench: Bench, source: Path, directories: int, files: int) -> None:
    """Make and fill directories from several threads of another process."""
    bench.reconfigure(scan_seconds=3600)
    experiment = bench.experiment()
    daq = str(bench.begin("daq", experiment, source)["id"])
    until(lambda: "lastReconcileTime" in bench.info("daq", daq))
    subprocess.run([sys.executable, "-c", _DIRECTORIES, str(source), str(directories), str(files)], check=True)
    ended(bench, daq, directories * files, 400)
    check(bench, experiment, source, task=Task("daq", daq))


def test_f16_directories_made_and_filled_at_once(bench: Bench, source: Path) -> None:
    made_at_once(bench, source, 200, 2)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_f16_1000_directories_with_ten_files_each(bench: Bench, source: Path) -> None:
    made_at_once(bench, source, 1000, 10)


def there_before(bench: Bench, source: Path, files: int) -> None:
    """Files lie there before; the service restarts; only what comes afterwards is new, and it is not overlooked."""
    for number in range(files // 1000 + 1):
        (source / f"d{number}").mkdir()
    for number in range(files):
        (source / f"d{number // 1000}" / f"f{number}").touch()
    experiment = bench.experiment()
    daq = str(bench.begin("daq", experiment, source)["id"])
    (source / "first").write_bytes(b"1")
    until(lambda: bench.completed("daq", daq) == 1)
    bench.acquisition.kill()
    (source / "meanwhile").write_bytes(b"2")
    bench.acquisition.start()
    (source / "after").write_bytes(b"3")
    ended(bench, daq, 3)
    assert set(contents(bench.data(experiment))) == {b"first", b"meanwhile", b"after"}
    upload = bench.finish("upload", str(bench.begin("upload", experiment, source)["id"]), 600)
    assert (upload["status"], upload["nCompletedFiles"]) == ("done", files)  # all others, each once
    check(bench, experiment, source, task=Task("upload", upload["id"]))


def test_f17_files_that_were_there_before(bench: Bench, source: Path) -> None:
    there_before(bench, source, 500)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_f17_100000_files_that_were_there_before(bench: Bench, source: Path) -> None:
    there_before(bench, source, 100_000)


@contextmanager
def appending(path: Path, every: float, piece: int) -> Iterator[None]:
    """Append to a file that stays open, until the block ends."""
    over = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            while not over.wait(every):
                file.write(os.urandom(piece))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join()


def still_being_written(bench: Bench, source: Path, seconds: float, piece: int) -> None:
    """A piece every 20 ms; a walk finds the file long before it is closed."""
    bench.reconfigure(scan_seconds=0.3)
    experiment = bench.experiment()
    daq = str(bench.begin("daq", experiment, source)["id"])
    with appending(source / "long.dat", 0.02, piece):
        (source / "other").write_bytes(b"1")
        until(lambda: bench.completed("daq", daq) == 1)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert not bench.data(experiment, "long.dat").exists()
            time.sleep(0.1)
        assert bench.info("daq", daq)["nSettlingFiles"] == 1
    ended(bench, daq, 2)
    check(bench, experiment, source, task=Task("daq", daq))


def test_f10_a_file_still_being_written(bench: Bench, source: Path) -> None:
    still_being_written(bench, source, 1.5, 1 << 14)


@pytest.mark.long
def test_f10_a_file_still_being_written_for_30_seconds(bench: Bench, source: Path) -> None:
    still_being_written(bench, source, 30, 1 << 20)


def test_f11_files_rewritten_in_place_while_they_are_copied(bench: Bench, source: Path) -> None:
    """Large enough that the rewriting meets the copying; what is stored in the end is the last edition."""
    experiment = bench.experiment()
    daq = str(bench.begin("daq", experiment, source)["id"])
    size = 8 << 20
    for edition in range(6):
        for number in range(3):
            path = source / f"f{number}"
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(bytes([edition]) * size)
        time.sleep(0.15)
    bench.stop_daq(daq)
    record = bench.finish("daq", daq)
    assert (record["status"], record["nCompletedFiles"], record["countFiles"]) == ("done", 3, 3), record
    versions = {row["path"].encode(): int(row["version"]) for row in bench.files("daq", daq)}
    check(bench, experiment, source, task=Task("daq", daq), versions=versions, resent=2)


@pytest.mark.parametrize("method", ["events", "polling"])
def test_f14_temporary_names_that_are_renamed(bench: Bench, source: Path, method: str) -> None:
    experiment = bench.experiment()
    daq = str(bench.begin("daq", experiment, source, watchMethod=method)["id"])
    until(lambda: "lastReconcileTime" in bench.info("daq", daq))
    for number in range(200):
        with (source / f"f{number}.tmp").open("wb") as file:
            file.write(b"%d" % number)
        (source / f"f{number}.tmp").rename(source / f"f{number}")
    assert bench.info("daq", daq)["watchMethod"] == method
    ended(bench, daq, 200)
    found = check(bench, experiment, source, task=Task("daq", daq))
    assert set(found.rows) == {b"f%d" % number for number in range(200)}


def test_f25_clocks_that_jump(bench: Bench, source: Path, tmp_path: Path) -> None:
    """The clock of the acquisition service goes back and forth while files come in."""
    clock = tmp_path / "clock"

    def ahead(seconds: int) -> None:
        with clock.open("r+b" if clock.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))

    ahead(0)
    experiment = bench.experiment()
    bench.acquisition.stop()
    bench.acquisition.start(
        environment={"LD_PRELOAD": str(compiled(_CLOCK, tmp_path, "clock")), "TEST_CLOCK": str(clock)}
    )
    try:
        daq = str(bench.begin("daq", experiment, source)["id"])
        count = 0
        for jump in (3600, -1800, 86_400, 0):
            ahead(jump)
            for number in range(20):
                path = source / f"f{jump}-{number}"
                path.write_bytes(b"%d" % jump)
                if number % 3 == 1:  # times of files lie as they please
                    os.utime(path, (0, 0) if number % 2 else (4_000_000_000, 4_000_000_000))
            count += 20
            until(lambda wanted=count: bench.completed("daq", daq) == wanted, 60, f"{count} files")
        # So far back, its peers' certificates are not valid yet: it waits, and loses nothing.
        ahead(-864_000)
        fill(source, 20, prefix="past")
        time.sleep(1)
        ahead(0)
        ended(bench, daq, count + 20)
        check(bench, experiment, source, task=Task("daq", daq))
    finally:
        bench.acquisition.stop()
        bench.acquisition.start()
