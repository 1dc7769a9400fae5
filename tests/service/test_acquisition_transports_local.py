"""The local transport on real file systems: what it copies, what it refuses, what it leaves behind."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from dm.common.errors import InvalidArgument, TransferError
from dm.station.acquisition.transports import copying
from dm.station.acquisition.transports.base import FileOutcome, Source, TransferBatch, TransferFile
from dm.station.acquisition.transports.local import Local, LocalSettings
from tests.service.acquisition_hosts import may_mount, small_disk

NAMES = [
    b"plain.h5", b" lead", b"trail ", b"%41", b"#", b"?", b"new\nline", b"'q\"", b"$(id)", b";", b"-rf", b"*", b"[x]",
    b"back\\slash", b"a:b", b"\xff\xfe", "é".encode(), "e\u0301".encode(), "日本😀".encode(), b"n" * 255,
]  # fmt: skip


@pytest.fixture
def transport() -> Iterator[Local]:
    local = Local(LocalSettings(workers=4))
    yield local
    local.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "staging").mkdir(mode=0o700)
    return tmp_path


def batch(root: Path, *paths: bytes, staging: Path | None = None) -> TransferBatch:
    files = [TransferFile(path, 0, 0, f"{number:06d}") for number, path in enumerate(paths)]
    source = Source(str(root / "data"), os.fsencode(root / "data"))
    return TransferBatch("b1", source, files, os.fsencode(staging or root / "staging"))


def write(root: Path, path: bytes, content: bytes) -> None:
    target = os.path.join(os.fsencode(root / "data"), path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as stream:
        stream.write(content)


def only(outcomes: list[FileOutcome]) -> FileOutcome:
    assert len(outcomes) == 1
    return outcomes[0]


def staged(root: Path) -> list[str]:
    return sorted(os.listdir(root / "staging"))


def test_names_and_digests(transport: Local, root: Path) -> None:
    paths = [b"deep/er/" + name for name in NAMES] + NAMES
    for path in paths:
        write(root, path, b"content of " + path)
    for outcome, path in zip(transport.move(batch(root, *paths)), paths, strict=True):
        content = b"content of " + path
        assert outcome.ok, outcome.error
        assert (root / "staging" / outcome.staged_name).read_bytes() == content
        assert outcome.digests == {"xxh3_128": xxhash.xxh3_128_hexdigest(content)}
        assert outcome.md5 == hashlib.md5(content).hexdigest()
        assert stat.S_IMODE((root / "staging" / outcome.staged_name).stat().st_mode) == 0o600


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 1, copying.PARALLEL_FROM + 12345])
def test_sizes(transport: Local, root: Path, size: int) -> None:
    content = os.urandom(min(size, 1 << 20)) * (size // (1 << 20) + 1)
    content = content[:size]
    write(root, b"f", content)
    outcome = only(transport.move(batch(root, b"f")))
    assert outcome.ok and outcome.size == size
    assert (root / "staging" / "000000").read_bytes() == content
    assert outcome.md5 == hashlib.md5(content).hexdigest()
    assert outcome.digests["xxh3_128"] == xxhash.xxh3_128_hexdigest(content)


def test_longest_path(transport: Local, root: Path) -> None:
    parts = [b"d" * 250] * 16
    path = b"/".join([*parts, b"f" * (4095 - 16 * 251)])
    assert len(path) == 4095
    descriptor = os.open(root / "data", os.O_RDONLY)
    for part in parts:
        os.mkdir(part, dir_fd=descriptor)
        inner = os.open(part, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open(path.split(b"/")[-1], os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
    os.close(descriptor)
    assert only(transport.move(batch(root, path))).ok


@pytest.mark.parametrize("target", ["inside", "/etc/passwd", "nowhere", "loop"])
def test_links_are_refused(transport: Local, root: Path, target: str) -> None:
    write(root, b"inside", b"x")
    os.symlink(target, root / "data" / "loop")
    outcome = only(transport.move(batch(root, b"loop")))
    assert "link" in outcome.error and not outcome.transient and not outcome.vanished
    assert staged(root) == []


def test_linked_directory_is_refused(transport: Local, root: Path) -> None:
    (root / "secret").mkdir()
    (root / "secret" / "key").write_bytes(b"secret")
    os.symlink(root / "secret", root / "data" / "sub")
    outcome = only(transport.move(batch(root, b"sub/key")))
    assert "link" in outcome.error and not outcome.transient
    assert staged(root) == []


def test_fifo_and_directory_are_refused_at_once(transport: Local, root: Path) -> None:
    os.mkfifo(root / "data" / "pipe")
    (root / "data" / "looks.h5").mkdir()
    for outcome in transport.move(batch(root, b"pipe", b"looks.h5")):
        assert "not a regular file" in outcome.error and not outcome.transient
    assert staged(root) == []


def test_vanished(transport: Local, root: Path) -> None:
    write(root, b"kept", b"x")
    kept, gone, deep = transport.move(batch(root, b"kept", b"gone", b"no/such/dir"))
    assert kept.ok
    assert gone.vanished and deep.vanished and "gone" in gone.error
    assert staged(root) == ["000000"]


def test_data_directory_away_is_no_verdict_on_its_files(transport: Local, root: Path) -> None:
    os.rename(root / "data", root / "moved")
    with pytest.raises(TransferError, match="does not exist"):
        transport.move(batch(root, b"f"))


def test_staging_gone_or_a_link(transport: Local, root: Path) -> None:
    write(root, b"f", b"x")
    with pytest.raises(TransferError, match="cannot be opened"):
        transport.move(batch(root, b"f", staging=root / "none"))
    os.symlink(root / "staging", root / "link")
    with pytest.raises(TransferError, match="cannot be opened"):
        transport.move(batch(root, b"f", staging=root / "link"))
    assert staged(root) == []


def test_a_file_planted_in_staging_is_replaced_not_followed(transport: Local, root: Path) -> None:
    write(root, b"f", b"new")
    (root / "victim").write_bytes(b"untouched")
    os.symlink(root / "victim", root / "staging" / "000000")
    assert only(transport.move(batch(root, b"f"))).ok
    assert (root / "victim").read_bytes() == b"untouched"
    assert (root / "staging" / "000000").read_bytes() == b"new"


def test_growing_file_ends_and_is_no_success(transport: Local, root: Path) -> None:
    """A writer as fast as the reader must not keep it busy for ever, and a short copy is never good."""
    write(root, b"f", b"x" * (8 << 20))
    stop = threading.Event()

    def grow() -> None:
        with open(root / "data" / "f", "ab", buffering=0) as stream:
            for _ in range(4000):
                if stop.is_set():
                    return
                stream.write(b"y" * 4096)

    seen: list[FileOutcome] = []
    writer = threading.Thread(target=grow)
    writer.start()
    try:
        while writer.is_alive() and not any(outcome.error for outcome in seen):
            seen.append(only(transport.move(batch(root, b"f"))))
    finally:
        stop.set()
        writer.join()
    bad = [outcome for outcome in seen if not outcome.ok]
    assert bad and all("changed" in outcome.error and outcome.transient for outcome in bad)
    assert only(transport.move(batch(root, b"f"))).ok


def test_sparse_file_too_large_is_refused_before_writing(transport: Local, root: Path) -> None:
    with open(root / "data" / "sparse", "wb") as stream:
        stream.truncate(1 << 43)
    outcome = only(transport.move(batch(root, b"sparse")))
    assert "does not fit on the file system at" in outcome.error and outcome.transient
    assert str(1 << 43) in outcome.error
    assert staged(root) == []


def test_full_disk_fails_the_file_and_leaves_nothing(transport: Local, root: Path) -> None:
    write(root, b"f", b"x" * (2 << 20))
    with pytest.raises(copying.CopyError, match=r"No space left on device \(ENOSPC\)") as caught:
        descriptor, full = os.open(root / "data" / "f", os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)
        try:
            copying.copy_digesting(descriptor, full, 2 << 20, shown="f", where=b"/dev/full")
        finally:
            os.close(descriptor)
            os.close(full)
    assert caught.value.transient and "/dev" in str(caught.value)


def test_a_full_file_system_until_there_is_room(transport: Local, root: Path, request: pytest.FixtureRequest) -> None:
    """F-06 on a real small file system: refused before the first byte, or in the middle when others take the room."""
    if not may_mount(request):
        return
    for name, size in ((b"big", 3 << 20), (b"half", 1 << 20), (b"small", 10)):
        write(root, name, os.urandom(size))
    paths = [b"big", b"half", b"half", b"half", b"small"]
    with small_disk(root / "staging", megabytes=2) as grow:
        big, *rest = transport.move(batch(root, *paths))
        assert "does not fit" in big.error and str(root / "staging") in big.error and big.transient
        assert not all(outcome.ok for outcome in rest)
        for outcome in rest:
            assert outcome.ok or (outcome.transient and str(root / "staging") in outcome.error)
        assert staged(root) == sorted(outcome.staged_name for outcome in rest if outcome.ok)
        grow(16)
        assert all(outcome.ok for outcome in transport.move(batch(root, *paths)))
        assert (root / "staging" / "000000").read_bytes() == (root / "data" / "big").read_bytes()


def test_failing_write_removes_the_partial_file_and_goes_on(root: Path) -> None:
    """A limit on file size is a write error that every account can have; the small file beside it arrives."""
    write(root, b"big", os.urandom(3 << 20))
    write(root, b"small", b"x")
    program = (
        "import os, resource, sys\n"
        "from dm.station.acquisition.transports.base import Source, TransferBatch, TransferFile\n"
        "from dm.station.acquisition.transports.local import Local, LocalSettings\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "root = os.fsencode(sys.argv[1])\n"
        "files = [TransferFile(b'big', 0, 0, '000000'), TransferFile(b'small', 0, 0, '000001')]\n"
        "local = Local(LocalSettings())\n"
        "batch = TransferBatch('b', Source('d', root + b'/data'), files, root + b'/staging')\n"
        "big, small = local.move(batch)\n"
        "assert small.ok, small.error\n"
        "assert not big.ok and big.transient and 'File too large (EFBIG)' in big.error, big.error\n"
        "assert 'file system at' in big.error\n"
        "local.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert staged(root) == ["000001"]


def test_read_error_is_one_files_error(root: Path) -> None:
    """Reading beyond the mapped memory of a process is a real EIO from the kernel."""
    descriptor = os.open(f"/proc/{os.getpid()}/mem", os.O_RDONLY)
    try:
        with pytest.raises(copying.CopyError, match=r"'f' cannot be read: Input/output error \(EIO\)") as caught:
            copying.copy_digesting(descriptor, None, 4096, shown="f", where=b"/")
    finally:
        os.close(descriptor)
    assert not caught.value.transient and caught.value.__cause__.errno == errno.EIO  # type: ignore[union-attr]


def test_stop_ends_a_batch_soon(transport: Local, root: Path) -> None:
    for name in (b"a", b"b"):
        write(root, name, b"x" * (4 << 20))
    stopped = batch(root, b"a", b"b")
    stopped.stop.set()
    for outcome in transport.move(stopped):
        assert outcome.transient and "service stops" in outcome.error
    assert staged(root) == []


def test_directory_swapped_for_a_link_never_escapes(transport: Local, root: Path) -> None:
    """F-22: whatever the timing, only bytes from beneath the data directory arrive."""
    write(root, b"sub/f", b"inside")
    (root / "data" / "real").symlink_to(root / "outside")
    (root / "outside").mkdir()
    (root / "outside" / "f").write_bytes(b"OUTSIDE")
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(root / "data" / "sub"), os.fsencode(root / "data" / "real")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            assert libc.renameat2(-100, first, -100, second, 2) == 0

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        contents = set()
        for _ in range(500):
            if only(transport.move(batch(root, b"sub/f"))).ok:
                contents.add((root / "staging" / "000000").read_bytes())
    finally:
        stop.set()
        swapper.join()
    assert contents <= {b"inside"}


def test_check_names_the_directory(transport: Local, root: Path) -> None:
    transport.check(Source("here", os.fsencode(root / "data")))
    write(root, b"file", b"x")
    with pytest.raises(InvalidArgument, match="'gone' does not exist"):
        transport.check(Source("gone", os.fsencode(root / "gone")))
    with pytest.raises(InvalidArgument, match="'f' is not a directory"):
        transport.check(Source("f", os.fsencode(root / "data" / "file")))


def test_mode_and_stamp_are_reported(transport: Local, root: Path) -> None:
    write(root, b"f", b"x")
    os.chmod(root / "data" / "f", 0o4755)
    os.utime(root / "data" / "f", ns=(1, 1234567890123456789))
    outcome = only(transport.move(batch(root, b"f")))
    assert outcome.mode == 0o4755
    assert outcome.before is not None and outcome.before.mtime_ns == 1234567890123456789
    assert stat.S_IMODE((root / "staging" / "000000").stat().st_mode) == 0o600
