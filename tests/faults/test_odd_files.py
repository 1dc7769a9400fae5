"""F-18 to F-24: names, sizes, links, special files, permissions."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from dm.common.paths import decode
from tests.faults.bench import OWNER, ROOT, Bench, fill, settings
from tests.faults.invariant import Task, check, contents
from tests.service.acquisition_fixtures import until

NAMES = [
    b"with space", b" leading", b"trailing ", b"%41", b"a#b", b"a?b", b"a&b=c", b"new\nline", b"tab\tin", b"cr\rin",
    b"'single'", b'"double"', b"$(id)", b"`id`", b"a;b", b"a|b", b"a>b", b"-rf", b"--delete", b"*", b"[x]", b"{a,b}",
    b"back\\slash", b"colon:x", b"@host", b"~", b"...", b".hidden", b"a,b", b"a+b", b"\x01\x1b[31m", b"\x7f",
    b"x" * 250, b"\xff\xfe invalid", b"caf\xe9 latin-1", "e\u0301 NFD".encode(), "\u00e9 NFC".encode(),
    "\U0001f600.h5".encode(), "\u0440\u0443\u0441".encode(), "\u202egnp.exe".encode(), b"con", b"dir\\..\\x",
    b"%2e%2e%2f", b"<script>alert(1)<script>", b"=cmd|' C calc'!A0", b"null\\x00", b"a" + "\u0301".encode() * 60,
]  # fmt: skip


def uploaded(bench: Bench, source: Path, status: str = "done", **keys: object) -> tuple[dict, Task, dict]:
    """Upload to a new experiment; return it, the task and the record at the end."""
    experiment = bench.experiment()
    task = Task("upload", str(bench.begin("upload", experiment, source, **keys)["id"]))
    record = bench.finish("upload", task.id)
    assert record["status"] == status, record
    return experiment, task, record


@pytest.mark.parametrize("transport", ["local", pytest.param("rsync", marks=pytest.mark.long)])
def test_f18_every_name_arrives_byte_exact(bench: Bench, source: Path, transport: str) -> None:
    if transport == "rsync":
        bench.reconfigure(transports={transport: {}})
    root = os.fsencode(source)
    for directory in (b"", b"in %41 dir\n", b"\xe9"):
        os.makedirs(os.path.join(root, directory), exist_ok=True)
        for name in NAMES:
            with open(os.path.join(root, directory, name), "wb") as stream:
                stream.write(b"content of " + directory + name)
    experiment, task, record = uploaded(bench, source, processHiddenFiles=True)
    assert record["nCompletedFiles"] == 3 * len(NAMES)
    found = check(bench, experiment, source, task=task)  # storage, catalog and ledger list the exact names
    for path in found.rows:
        got = bench.rest("storage").get("/files/stat", experimentName=experiment["name"], path=decode(path))
        assert got["experimentFilePath"] == decode(path)


def test_f19_the_longest_names_and_paths(bench: Bench, source: Path) -> None:
    """A name may have 255 bytes. A path longer than the system takes at once is moved, or refused with a reason."""
    (source / ("n" * 255)).write_bytes(b"1")
    (source / ("\u00e9" * 127)).write_bytes(b"2")
    fill(source, 3)
    deep = b"/".join([b"d" * 255] * 14)
    descriptor = os.open(source, os.O_RDONLY)
    for part in deep.split(b"/"):
        os.mkdir(part, dir_fd=descriptor)
        inner = os.open(part, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    names = [b"f" * size for size in (1, 255)]
    try:
        # 14 directories and a name of 255 bytes: 3,839 bytes below the data directory; with a 15th, 4,095
        for name in names:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=descriptor))
        os.mkdir(b"d" * 255, dir_fd=descriptor)
        last = os.open(b"d" * 255, os.O_RDONLY, dir_fd=descriptor)
        os.close(os.open(b"f" * 255, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=last))
        os.close(last)
    finally:
        os.close(descriptor)
    experiment = bench.experiment()
    upload = bench.begin("upload", experiment, source)
    record = bench.finish("upload", upload["id"])
    assert record["nWaitingFiles"] == 0
    states = {len(row["path"]): row["state"] for row in bench.files("upload", upload["id"]) if len(row["path"]) > 1000}
    assert len(states) == 3
    for length, state in states.items():
        assert state == ("done" if len(os.fsencode(source)) + 1 + length <= 4095 else "skipped"), states
    refused = [row["lastError"] for row in bench.files("upload", upload["id"], "skipped")]
    assert refused and all("too long" in why for why in refused), refused
    assert record["nCompletedFiles"] == 5 + sum(state == "done" for state in states.values())
    bench.acquisition.status()
    _remove(os.fsencode(source))


def _remove(root: bytes) -> None:
    """Remove what no path reaches."""
    import shutil

    descriptor = os.open(root, os.O_RDONLY)
    try:
        with os.scandir(descriptor) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
        for name in names:
            shutil.rmtree(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def test_f20_sizes(bench: Bench, source: Path) -> None:
    """0 and 1 byte arrive; 1 TiB of nothing is refused before its first byte, not written to the disk."""
    (source / "empty").touch()
    (source / "one").write_bytes(b"1")
    fill(source, 3)
    size = 1 << 40
    with (source / "sparse").open("wb") as stream:
        stream.truncate(size)
    before = os.statvfs(bench.storage_root)
    assert before.f_bavail * before.f_frsize < size, "this disk has place for the file"
    experiment = bench.experiment()
    upload = bench.begin("upload", experiment, source)
    told = until(lambda: _error(bench, upload["id"], "does not fit"), 60)
    assert "sparse" in told and str(size) in told
    until(lambda: bench.completed("upload", upload["id"]) == 5)
    after = os.statvfs(bench.storage_root)
    assert (before.f_bavail - after.f_bavail) * before.f_frsize < 1 << 30
    (source / "sparse").unlink()  # now it is no longer there to be moved
    record = bench.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"], record["nSkippedFiles"]) == ("done", 5, 1), record
    check(bench, experiment, source, task=Task("upload", upload["id"]))


def _error(bench: Bench, task: str, words: str) -> str:
    message = str(bench.info("upload", task)["errorMessage"])
    return message if words in message else ""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_f20_sizes_beyond_32_bits(bench: Bench, source: Path) -> None:
    sizes = ((1 << 31) - 1, 1 << 31, (1 << 32) + 1, 5 << 30)
    for size in sizes:
        with (source / str(size)).open("wb") as stream:
            stream.truncate(size)
    experiment = bench.experiment()
    upload = bench.begin("upload", experiment, source)
    record = bench.finish("upload", upload["id"], 600)
    assert (record["status"], record["nCompletedFiles"], record["completedBytes"]) == ("done", 4, sum(sizes)), record
    found = check(bench, experiment, source, task=Task("upload", upload["id"]))
    assert {path: row["size"] for path, row in found.rows.items()} == {str(size).encode(): size for size in sizes}


def test_f21_links_are_never_followed(bench: Bench, source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    fill(outside, 2)
    fill(source / "real", 3)
    fill(source, 2)
    links = {
        "to-file": "f0", "to-outside": str(outside / "f0"), "to-shadow": "/etc/shadow", "dangling": "nowhere",
        "to-itself": "to-itself", "up": "..", "to-directory": "real", "to-outside-directory": str(outside),
        "to-root": "/",
    }  # fmt: skip
    for name, target in links.items():
        (source / name).symlink_to(target)
    (source / "real" / "loop").symlink_to("..")
    experiment, task, record = uploaded(bench, source)
    assert record["nCompletedFiles"] == 5
    found = check(bench, experiment, source, task=task)
    skipped = {path for path, row in found.rows.items() if row["state"] == "skipped"}
    assert skipped == {name.encode() for name in links} | {b"real/loop"}
    assert all("link" in found.rows[path]["lastError"] for path in skipped)


@settings(batch_files=5)
def test_f22_a_directory_that_turns_into_a_link_again_and_again(bench: Bench, source: Path, tmp_path: Path) -> None:
    """renameat2(EXCHANGE) swaps a directory of the source for a link that leads out, as fast as it can."""
    outside = tmp_path / "outside"
    fill(source / "swapped", 60, 20_000)
    names = sorted(path.name for path in (source / "swapped").iterdir())
    outside.mkdir()
    for name in names:
        (outside / name).write_bytes(b"secret")
    (source / "link").symlink_to(outside)
    truth = contents(source / "swapped")
    experiment = bench.experiment()
    ended, swaps = threading.Event(), 0

    def swap() -> None:
        nonlocal swaps
        libc = ctypes.CDLL(None, use_errno=True)
        one, two = os.fsencode(source / "swapped"), os.fsencode(source / "link")
        while not ended.is_set():
            assert libc.renameat2(-100, one, -100, two, 2) == 0, os.strerror(ctypes.get_errno())
            swaps += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        daq = bench.begin("daq", experiment, source, processExistingFiles=True)
        until(lambda: swaps > 700)
    finally:
        ended.set()
        thread.join()
    assert not any(path.read_bytes() == b"secret" for path in bench.data(experiment).rglob("*") if path.is_file())
    if (source / "link").is_dir() and not (source / "link").is_symlink():
        ctypes.CDLL(None).renameat2(-100, os.fsencode(source / "swapped"), -100, os.fsencode(source / "link"), 2)
    bench.stop_daq(daq["id"])
    record = bench.finish("daq", daq["id"])
    assert record["status"] in ("done", "failed"), record
    assert all((outside / name).read_bytes() == b"secret" for name in names)
    assert sorted(path.name for path in outside.iterdir()) == names
    # whatever name a file was caught under, what arrived is the true file
    for path, digest in contents(bench.data(experiment)).items():
        assert digest == truth[path.rpartition(b"/")[2]]
    # and now that nobody interferes any more, an upload brings what is missing
    fresh = bench.experiment()
    assert bench.upload(fresh, source)["status"] == "done"
    check(bench, fresh, source)


def test_f23_special_files_are_skipped(bench: Bench, source: Path) -> None:
    fill(source, 5)
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(source)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    special = {b"fifo", b"socket"}
    if ROOT:
        os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        special.add(b"null")
    (source / "data.h5").mkdir()
    (source / "data.h5" / "inner").write_bytes(b"1")
    experiment, task, record = uploaded(bench, source)
    assert record["nCompletedFiles"] == 6
    found = check(bench, experiment, source, task=task)
    skipped = {path: row["lastError"] for path, row in found.rows.items() if row["state"] == "skipped"}
    assert skipped.keys() == special
    assert all("no regular file" in why for why in skipped.values())
    assert bench.data(experiment, "data.h5").is_dir()


def test_f24_owners_and_modes(bench: Bench, source: Path) -> None:
    """Whatever a file was at its source, in storage it is the experiment's; what cannot be read is told."""
    fill(source, 3)
    os.link(source / "f0", source / "hardlink")
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1777), ("open", 0o666), ("program", 0o700)):
        (source / name).write_bytes(name.encode())
        (source / name).chmod(mode)
    (source / "closed").write_bytes(b"nobody may read this")
    (source / "closed").chmod(0)
    (source / "closed-directory").mkdir()
    (source / "closed-directory" / "f").write_bytes(b"1")
    (source / "closed-directory").chmod(0)
    if ROOT:
        (source / "foreign").write_bytes(b"another's")
        (source / "foreign").chmod(0o604)
        os.chown(source / "foreign", OWNER.pw_uid, OWNER.pw_gid)
    experiment, task, record = uploaded(bench, source, "failed")
    (source / "closed-directory").chmod(0o700)
    refused = [b"closed", b"closed-directory/f"]
    found = check(bench, experiment, source, task=task, refused=refused)
    assert record["nProcessingErrors"] == 1
    assert "Permission denied" in found.rows[b"closed"]["lastError"]
    assert found.rows[b"closed-directory"]["state"] == "skipped"
    assert "Permission denied" in found.rows[b"closed-directory"]["lastError"]
    data = bench.data(experiment)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()}
    assert modes["setuid"] == modes["setgid"] == modes["program"] == modes["sticky"] == 0o750
    assert modes["open"] == modes["f0"] == modes["hardlink"] == 0o640
    assert (data / "f0").stat().st_nlink == 1
