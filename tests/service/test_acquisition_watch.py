"""Events and walks of real directories."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.station.acquisition.watch.filesystem import MountTable, filesystem_of, method_of, method_of_type
from dm.station.acquisition.watch.inotify import TreeWatch
from dm.station.acquisition.watch.scan import Walk


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[TreeWatch]:
    found = TreeWatch(os.fsencode(tmp_path))
    yield found
    found.close()


def walk(watch: TreeWatch, *start: bytes) -> dict[bytes, str]:
    """Watch and walk directories, as the watching thread does."""
    return {entry.path: entry.kind for entry in Walk(watch.root, before=watch.add, start=start or (b"",))}


def test_closed_and_moved_files_are_told_once(watch: TreeWatch, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_bytes(b"x")
    walk(watch)
    with (tmp_path / "open").open("wb") as unfinished:
        (tmp_path / "a").write_bytes(b"1")
        (tmp_path / "a").write_bytes(b"2")
        (tmp_path / "x.tmp").write_bytes(b"3")
        (tmp_path / "x.tmp").rename(tmp_path / "x")
        outside.rename(tmp_path / "in")
        changes = watch.read()
        assert set(changes.files) == {b"a", b"x.tmp", b"x", b"in"}
        assert not changes.overflow
        unfinished.write(b"4")
    assert set(watch.read().files) == {b"open"}


def test_any_name(watch: TreeWatch, tmp_path: Path) -> None:
    walk(watch)
    names = [b"a b", b"%41", b"new\nline", b"\xff\xfe", "ü".encode(), b"-rf", b"*", b"x" * 255, b" "]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"1")
    assert set(watch.read().files) == set(names)
    assert set(walk(watch)) == set(names)


def test_a_thousand_new_directories(watch: TreeWatch, tmp_path: Path) -> None:
    """Files made in a directory before it could be watched are found by walking it afterwards."""
    walk(watch)
    expected: set[bytes] = set()
    found: set[bytes] = set()

    def catch_up() -> None:
        changes = watch.read()
        found.update(changes.files)
        if changes.directories:
            found.update(walk(watch, *changes.directories))

    for number in range(1000):
        directory = tmp_path / f"d{number % 40}" / f"e{number}"
        directory.mkdir(parents=True)
        for name in "abc":
            (directory / name).write_bytes(b"1")
            expected.add(os.fsencode((directory / name).relative_to(tmp_path)))
        if number % 7 == 0:
            catch_up()
    deadline = time.monotonic() + 20
    while found != expected and time.monotonic() < deadline:
        catch_up()
    assert found == expected


def test_a_full_kernel_queue_is_told(watch: TreeWatch, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    walk(watch)
    # One event per rename into the directory; the reader sleeps meanwhile.
    (tmp_path / "0").write_bytes(b"")
    for number in range(limit + 10):
        os.rename(tmp_path / str(number), tmp_path / str(number + 1))
    assert watch.read().overflow
    assert set(walk(watch)) == {str(limit + 10).encode()}


def test_a_renamed_directory_keeps_being_watched(watch: TreeWatch, tmp_path: Path) -> None:
    (tmp_path / "old" / "deep").mkdir(parents=True)
    walk(watch)
    (tmp_path / "old").rename(tmp_path / "new")
    changes = watch.read()
    assert set(changes.directories) == {b"new"}
    walk(watch, *changes.directories)
    (tmp_path / "new" / "deep" / "a").write_bytes(b"1")
    assert set(watch.read().files) == {b"new/deep/a"}


def test_a_vanished_root_is_told(watch: TreeWatch, tmp_path: Path) -> None:
    walk(watch)
    tmp_path.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    assert watch.read().root_gone
    gone = Walk(watch.root)
    assert list(gone) == []
    assert "does not exist any more" in gone.problems[b""]


def test_links_and_special_files_are_told_apart_and_never_followed(watch: TreeWatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "outside").symlink_to("/etc")
    (tmp_path / "dir.h5").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(tmp_path)  # the path of a socket is limited to 107 bytes
        listener.bind("socket")
        os.chdir("/")
        kinds = walk(watch)
    assert kinds == {
        b"file": "file",
        b"to-file": "link",
        b"dangling": "link",
        b"loop": "link",
        b"outside": "link",
        b"fifo": "other",
        b"socket": "other",
    }


def test_a_directory_that_became_a_link_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "secret").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")
    assert list(Walk(os.fsencode(tmp_path), start=(b"link",))) == []


def test_an_unreadable_directory_is_a_problem_not_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    long = Walk(os.fsencode(tmp_path), start=(b"", b"x" * 300))
    assert [entry.path for entry in long] == [b"a"]
    assert "name too long" in long.problems[b"x" * 300]


def test_which_file_systems_have_events(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:5 / {tmp_path} rw - xfs /dev/sdb rw\n"
        f"3 1 0:6 / {tmp_path}/a\\040b rw - nfs4 server:/x rw\n"
    )
    place = os.fsencode(tmp_path)
    assert filesystem_of(place, str(info)) == "xfs"
    assert filesystem_of(place + b"/a b/c", str(info)) == "nfs4"
    assert filesystem_of(b"/", str(info)) == "ext4"
    assert filesystem_of(place, str(tmp_path / "none")) == ""
    assert method_of(place, str(info)) == ("both", "nfs4")  # something remote is mounted inside
    assert method_of(place + b"/a b", str(info)) == ("polling", "nfs4")
    assert method_of(b"/dev", str(info)) == ("events", "ext4")
    assert method_of(place, str(tmp_path / "none")) == ("both", "unknown")


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("ext4", "events"),
        ("xfs", "events"),
        ("tmpfs", "events"),
        ("overlay", "events"),
        ("fuseblk", "events"),
        ("nfs", "polling"),
        ("nfs4", "polling"),
        ("gpfs", "polling"),
        ("lustre", "polling"),
        ("cifs", "polling"),
        ("9p", "polling"),
        ("fuse.sshfs", "polling"),
        ("fuse.mergerfs", "both"),
        ("fuse", "both"),
        ("newfs", "both"),
        ("", "both"),
    ],
)
def test_what_is_done_for_each_type_of_file_system(kind: str, method: str) -> None:
    assert method_of_type(kind) == method


def test_nothing_was_mounted_since_the_last_look() -> None:
    table = MountTable()
    table.changed()
    assert not table.changed()
    table.close()
