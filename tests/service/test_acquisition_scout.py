"""How a directory is watched where events tell little or nothing, and when it is moved, mounted over or too large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dm.station.acquisition.office import Office
from dm.station.acquisition.watch.inotify import TreeWatch
from dm.station.acquisition.watch.polling import DirectoryTimes
from dm.station.acquisition.watch.scan import Walk
from tests.service.acquisition_fixtures import PRINCIPAL, Site, finish, running_office, tree, until


def start(office: Office, name: str, source: Path, **keys: Any) -> str:
    task = str(office.start("daq", PRINCIPAL, name, str(source), keys)["id"])
    until(lambda: "lastReconcileTime" in office.info("daq", task))
    return task


def completed(office: Office, task: str) -> int:
    return int(office.info("daq", task)["nCompletedFiles"])


def stopped(office: Office, task: str) -> dict[str, Any]:
    office.stop("daq", task, abort=False)
    return finish(office, "daq", task, 90)


# --- polling ------------------------------------------------------------------------------------------------------


def test_only_directories_that_changed_are_read(tmp_path: Path) -> None:
    for directory in ("a/deep", "b"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "f").touch()
    times, read = DirectoryTimes(), []
    root = os.fsencode(tmp_path)

    def opened(directory: bytes, descriptor: int) -> bool:
        changed = times.note(directory, descriptor)
        if changed:
            read.append(directory)
        return changed

    def again() -> set[bytes]:
        read.clear()
        start = times.directories() or [b""]
        times.begin()
        list(Walk(root, lambda path: path not in times, start=start, opened=opened))
        times.end()
        return set(read)

    everything = {b"", b"a", b"a/deep", b"b"}
    assert again() == everything
    assert again() == everything  # too young to be trusted: what comes now could leave the same times
    time.sleep(3.1)
    assert again() == everything
    assert again() == set()
    (tmp_path / "a" / "deep" / "g").touch()
    assert again() == {b"a/deep"}
    (tmp_path / "b" / "new").mkdir()
    assert {b"b", b"b/new"} <= again()
    (tmp_path / "b" / "f").unlink()
    (tmp_path / "b" / "new").rmdir()
    assert again() >= {b"b"}
    assert b"b/new" not in times


def test_polling_finds_what_is_new_between_reconciles(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("polled")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "before").write_bytes(b"1")
    with running_office(site, database, scan_seconds=3600) as office:
        task = start(office, "polled", tmp_path, watchMethod="polling")
        assert office.info("daq", task)["watchMethod"] == "polling"
        (tmp_path / "a").write_bytes(b"1")
        (tmp_path / "old" / "b").write_bytes(b"1")
        (tmp_path / "new" / "deep").mkdir(parents=True)
        for number in range(50):
            (tmp_path / "new" / "deep" / f"f{number}").write_bytes(b"1")
        until(lambda: completed(office, task) == 52)
        (tmp_path / "old").rename(tmp_path / "moved")  # its files have new paths now
        (tmp_path / "moved" / "c").write_bytes(b"1")
        until(lambda: completed(office, task) == 55)
        record = stopped(office, task)
        assert (record["status"], record["nFilesFoundByScan"]) == ("done", 0)
    assert set(tree(tmp_path)) < set(tree(experiment["dataDirectory"]))


def test_a_reconcile_finds_what_polling_and_events_do_not_tell(site: Site, database: str, tmp_path: Path) -> None:
    """Other contents under the same name do not change a directory; a hard link is never closed."""
    experiment = site.experiment("reconciled")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_bytes(b"linked")
    with running_office(site, database, scan_seconds=0.5) as office:
        task = start(office, "reconciled", tmp_path, watchMethod="polling")
        (tmp_path / "a").write_bytes(b"1")
        until(lambda: completed(office, task) == 1)
        (tmp_path / "a").write_bytes(b"22")
        until(lambda: (Path(experiment["dataDirectory"]) / "a").read_bytes() == b"22")
        assert stopped(office, task)["nFilesFoundByScan"] == 1
        events = start(office, "reconciled", tmp_path, watchMethod="events")
        before = office.info("daq", events)["lastReconcileTime"]
        (tmp_path / "told").write_bytes(b"1")
        os.link(outside, tmp_path / "linked")
        until(lambda: completed(office, events) == 2)
        record = stopped(office, events)
        assert record["nFilesFoundByScan"] == 1
        assert record["lastReconcileTime"] > before
        assert record["lastReconcileTimestamp"]
        assert (record["watchMethod"], record["nSettlingFiles"]) == ("events", 0)
    assert tree(experiment["dataDirectory"]) == tree(tmp_path)


# --- the directory itself -------------------------------------------------------------------------------------------


def test_the_data_directory_goes_and_comes_back(site: Site, database: str, tmp_path: Path) -> None:
    experiment = site.experiment("gone")
    source, parent = tmp_path / "parent" / "data", tmp_path / "parent"
    source.mkdir(parents=True)
    with running_office(site, database, scan_seconds=3600) as office:
        task = start(office, "gone", source)
        (source / "a").write_bytes(b"a")
        until(lambda: completed(office, task) == 1)
        source.rename(tmp_path / "away")
        until(lambda: "does not exist" in office.info("daq", task)["errorMessage"])
        source.mkdir()
        (source / "b").write_bytes(b"b")
        until(lambda: completed(office, task) == 2)
        parent.rename(tmp_path / "elsewhere")  # nobody is told when a directory above is renamed
        source.mkdir(parents=True)
        (source / "c").write_bytes(b"c")
        until(lambda: completed(office, task) == 3)
        (source / "d").write_bytes(b"d")
        until(lambda: completed(office, task) == 4)
        assert stopped(office, task)["status"] == "done"
    assert set(tree(experiment["dataDirectory"])) == {b"a", b"b", b"c", b"d"}


def test_a_link_to_the_data_directory_is_turned(site: Site, database: str, tmp_path: Path) -> None:
    """``current -> today``, as many beamlines have it."""
    experiment = site.experiment("turned")
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
    current = tmp_path / "current"
    current.symlink_to("monday")
    with running_office(site, database, scan_seconds=3600) as office:
        task = start(office, "turned", current)
        (tmp_path / "monday" / "a").write_bytes(b"a")
        until(lambda: completed(office, task) == 1)
        (tmp_path / "next").symlink_to("tuesday")
        (tmp_path / "next").rename(current)
        (tmp_path / "tuesday" / "b").write_bytes(b"b")
        until(lambda: completed(office, task) == 2)
        assert stopped(office, task)["status"] == "done"
    assert set(tree(experiment["dataDirectory"])) == {b"a", b"b"}


def test_a_directory_moved_out_of_the_tree_is_forgotten(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "stays").mkdir()
    watch = TreeWatch(os.fsencode(root))

    def everything() -> None:
        watch.begin()
        list(Walk(watch.root, before=watch.add))
        watch.sweep()

    try:
        everything()
        assert len(watch) == 4
        (root / "sub").rename(tmp_path / "outside")
        (root / "stays").rmdir()
        watch.read()
        everything()
        assert len(watch) == 1
        watch.read()
        (tmp_path / "outside" / "a").write_bytes(b"1")
        (root / "b").write_bytes(b"1")
        assert set(watch.read().files) == {b"b"}
    finally:
        watch.close()


# --- limits and mounts, in a world of their own ---------------------------------------------------------------------

_LIMITED = """
import json, os, sys, threading, time
from pathlib import Path
from dm.station.acquisition.rules import choice
from dm.station.acquisition.rules.base import RuleContext
from dm.station.acquisition.scout import Scout
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.store import Store
from dm.station.acquisition.task import Task
from dm.station.acquisition.transports.base import Source
from dm.station.acquisition.transports.local import Local, LocalSettings

def scout_of(root):
    settings = AcquisitionSettings(
        certificate="c", key="k", database_url="mongodb://localhost/none", scan_seconds=3600, polling_seconds=0.1
    )
    document = {
        "_id": "t", "kind": "daq", "request": json.dumps({"dataDirectory": root, "taskInfo": {}}), "experiment": "{}",
        "grant": {"id": "", "secret": ""}, "status": "running", "startTime": time.time(), "place": "p",
    }
    task = Task(document, None, Source(root, os.fsencode(root)), Local(LocalSettings()), [])
    found = Scout(task, settings, choice.build("closed", {}, {}, RuleContext(os.fsencode(root))))
    found.open()
    return found

def see(scout, wanted, seconds=20):
    "Return what is seen until all that is wanted is, or the time is over."
    seen, end = set(), time.monotonic() + seconds
    while not wanted <= seen and time.monotonic() < end:
        now = time.monotonic()
        seen |= {os.fsdecode(path) for path in scout.events(now).closed}
        seen |= {os.fsdecode(entry.path) for entry in scout.step(now)}
        time.sleep(0.02)
    return sorted(seen)

def settle(scout):
    walks = scout.walks
    scout.start_over(time.monotonic())
    while scout.walks == walks:
        scout.step(time.monotonic())
"""

_WATCHES = """
root = Path(sys.argv[1])
for number in range(20):
    (root / f"d{number}").mkdir()
limit = Path("/proc/sys/user/max_inotify_watches")
usual = limit.read_text()
limit.write_text("8")
scout = scout_of(str(root))
settle(scout)
before = scout.report()
for number in range(20):
    (root / f"d{number}" / "f").write_bytes(b"1")
seen = see(scout, {f"d{number}/f" for number in range(20)})
limit.write_text(usual)
settle(scout)
print(json.dumps([before, seen, scout.report()]))
scout.close()
"""

_INSTANCES = """
Path("/proc/sys/user/max_inotify_instances").write_text("0")
root = Path(sys.argv[1])
scout = scout_of(str(root))
settle(scout)
(root / "f").write_bytes(b"1")
print(json.dumps([scout.report(), see(scout, {"f"})]))
scout.close()
"""

_MOUNTED = """
import subprocess
root = Path(sys.argv[1])
(root / "sub").mkdir()
scout = scout_of(str(root))
settle(scout)
before = scout.report()["watchMethod"]
subprocess.run(["mount", "-t", "tmpfs", "none", str(root / "sub")], check=True)
(root / "sub" / "inner").mkdir()
(root / "sub" / "inner" / "f").write_bytes(b"1")
first = see(scout, {"sub/inner/f"})
(root / "sub" / "inner" / "g").write_bytes(b"1")
second = see(scout, {"sub/inner/g"})
subprocess.run(["umount", "--lazy", str(root / "sub")], check=True)
(root / "sub" / "h").write_bytes(b"1")
third = see(scout, {"sub/h"})
print(json.dumps([before, first, second, third]))
scout.close()
"""


def elsewhere(code: str, root: Path) -> Any:
    """Run code with limits and mounts of its own, as nobody else's are to change."""
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", _LIMITED + code, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_limit_of_watches_is_reached_and_raised(tmp_path: Path) -> None:
    before, seen, after = elsewhere(_WATCHES, tmp_path)
    assert before["watchMethod"] == "both"
    assert "fs.inotify.max_user_watches" in before["watchNote"]
    assert seen == sorted(f"d{number}/f" for number in range(20))
    assert after["watchMethod"] == "events"
    assert "watchNote" not in after


def test_no_events_at_all(tmp_path: Path) -> None:
    report, seen = elsewhere(_INSTANCES, tmp_path)
    assert report["watchMethod"] == "polling"
    assert "fs.inotify.max_user_instances" in report["watchNote"]
    assert seen == ["f"]


def test_a_file_system_mounted_inside(tmp_path: Path) -> None:
    before, first, second, third = elsewhere(_MOUNTED, tmp_path)
    assert before == "events"
    assert "sub/inner/f" in first
    assert second == ["sub/inner/g"]
    assert "sub/h" in third
