"""Source files are removed with proof only."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import xxhash

from dm.station.acquisition.removal import Fate, Proof, hidden_name, remove
from dm.station.acquisition.transports.base import FileStamp
from dm.station.acquisition.transports.copying import stamp
from tests.service.plugin_fixtures import NAMES


def proof(content: bytes, seen: FileStamp | None = None, stored: bytes | None = None) -> Proof:
    return Proof(len(content), {"xxh3_128": xxhash.xxh3_128_hexdigest(content)}, seen, stored)


def take(root: Path, name: bytes, content: bytes, *, delete: bool = True, **more: object) -> tuple[Fate, str]:
    return remove(os.fsencode(root), name, proof(content, **more), delete=delete)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    return tmp_path


def test_every_name_goes(root: Path) -> None:
    for name in NAMES:
        path = b"sub/" + name
        Path(os.fsdecode(os.fsencode(root) + b"/" + path)).write_bytes(name)
        assert take(root, path, name, delete=False) == (Fate.REMOVABLE, "")
        assert take(root, path, name) == (Fate.REMOVED, "")
        assert take(root, path, name) == (Fate.GONE, "")
    assert list((root / "sub").iterdir()) == []
    assert take(root, b"no/such/file", b"1") == (Fate.GONE, "")


def test_what_is_kept(root: Path) -> None:
    file = root / "f"
    file.write_bytes(b"one")
    seen = stamp(file.stat())
    file.write_bytes(b"two")
    os.utime(file, ns=(seen.mtime_ns, seen.mtime_ns))  # its size and time are as they were: only ctime tells
    assert take(root, b"f", b"one", seen=seen) == (Fate.KEPT, "its digest is not the stored one")
    assert take(root, b"f", b"four") == (Fate.KEPT, "it has changed since it was stored")
    assert take(root, b"f", b"two", stored=os.fsencode(file)) == (Fate.KEPT, "it is the very file that storage keeps")
    assert remove(os.fsencode(root), b"f", Proof(3, {})) == (Fate.KEPT, "storage named no digest to compare")
    (root / "link").symlink_to("f")
    assert take(root, b"link", b"two") == (Fate.KEPT, "it is a link")
    (root / "way").symlink_to("sub")
    (root / "sub" / "f").write_bytes(b"two")
    fate, why = take(root, b"way/f", b"two")
    assert fate is Fate.KEPT and "link" in why
    os.mkfifo(root / "fifo")
    assert take(root, b"fifo", b"")[0] is Fate.KEPT
    (root / "directory").mkdir()
    assert take(root, b"directory", b"")[0] is Fate.KEPT
    assert {path.name for path in root.iterdir()} == {"f", "link", "way", "sub", "fifo", "directory"}


def test_a_file_that_is_being_written_is_kept(root: Path) -> None:
    file = root / "f"
    file.write_bytes(b"whole")
    with file.open("ab"):
        assert take(root, b"f", b"whole") == (Fate.KEPT, "a program has it open for writing")
    assert file.read_bytes() == b"whole"
    with file.open("rb"):
        assert take(root, b"f", b"whole")[0] is Fate.REMOVED


def test_what_a_crash_left_is_taken_up(root: Path) -> None:
    hidden = root / os.fsdecode(hidden_name(b"f"))
    hidden.write_bytes(b"content")  # renamed, then killed
    assert take(root, b"f", b"content") == (Fate.REMOVED, "")
    hidden.write_bytes(b"content")
    (root / "f").hardlink_to(hidden)  # killed while it got its name back
    assert take(root, b"f", b"content") == (Fate.REMOVED, "")
    hidden.write_bytes(b"what storage may not have")
    (root / "f").write_bytes(b"content")
    assert take(root, b"f", b"content") == (Fate.REMOVED, "")
    assert {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()} == {
        "f.dm-kept-1": b"what storage may not have"
    }


@pytest.mark.parametrize("rounds", [12, pytest.param(150, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_a_file_rewritten_just_before_is_never_lost(root: Path, rounds: int) -> None:
    """A writer races us for each file, in both ways there are; what was not proven is still there afterwards."""
    old, new = b"old bytes, as storage has them", b"NEW bytes, which it has not...."[:30]
    assert len(old) == len(new)
    names = [root / f"f{number}" for number in range(40)]
    turn = threading.Barrier(2)

    def rewrite() -> None:
        for start in range(rounds):
            turn.wait(30)
            time.sleep(0.002 * (start % 3))  # now one of the two is ahead, now the other
            for number, name in enumerate(names):
                if number % 2:
                    name.with_suffix(".tmp").write_bytes(new)
                    name.with_suffix(".tmp").rename(name)
                else:  # as a program does that opens what is there, or makes it
                    with open(os.open(name, os.O_WRONLY | os.O_CREAT), "wb") as file:
                        file.write(new)
            turn.wait(30)

    writer = threading.Thread(target=rewrite)
    fates = []
    writer.start()
    try:
        for _ in range(rounds):
            for name in names:
                name.write_bytes(old)
            seen = [stamp(name.stat()) for name in names]
            time.sleep(0.11)
            turn.wait(30)
            fates += [take(root, os.fsencode(n.name), old, seen=shape)[0] for n, shape in zip(names, seen, strict=True)]
            turn.wait(30)
            left = {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}
            assert left == {name.name: new for name in names}
    except BaseException:
        turn.abort()
        raise
    finally:
        writer.join(30)
    assert {Fate.KEPT, Fate.REMOVED} <= set(fates)


def test_who_waits_for_the_file_does_not_end_us(root: Path) -> None:
    """A lease that another process breaks is announced by a signal, which must not be a deadly one."""
    (root / "f").write_bytes(b"1" * (64 << 20))
    script = (
        "import sys; from tests.service.test_acquisition_removal import *\n"
        "import threading, time\n"
        "from dm.station.acquisition.removal import _lease\n"
        "descriptor = os.open(sys.argv[1], os.O_RDONLY)\n"
        "assert _lease(descriptor)\n"
        "print('held', flush=True); sys.stdin.readline(); os.close(descriptor); print('alive')\n"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", script, str(root / "f")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert held.stdin is not None and held.stdout is not None
    assert held.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError):
        os.open(root / "f", os.O_WRONLY | os.O_NONBLOCK)
    output, _ = held.communicate("\n", timeout=30)
    assert output == "alive\n" and held.returncode == 0
