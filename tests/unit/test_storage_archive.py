"""The virtual tar and the manifest: layouts and lines without a service."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import pytest

from dm.common.errors import TransferError
from dm.site.storage.archive import Layout, Member, make_header
from dm.site.storage.directories import Owner
from dm.site.storage.manifest import Manifest, read

NAMES = [b"plain", b"a/b/c", b"\xff\x80 raw", "日本/é".encode(), b"x" * 255, b"/".join([b"y" * 200] * 3), b"new\nline"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    members = []
    for number, name in enumerate(NAMES):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([65 + number]) * number * 511)
        os.utime(path, ns=(10**18 + number, 10**18 + number))
        size = path.stat().st_size
        header = len(make_header("top é", "data", name, size, 10**18 + number))
        members.append(Member("data", name, size, 10**18 + number, header))
    return Layout("top é", str(tmp_path), members)


def test_the_layout_is_a_tar_of_exactly_its_length(layout: Layout) -> None:
    whole = b"".join(layout.read(0, layout.length))
    assert len(whole) == layout.length and layout.length % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(whole), encoding="utf-8", errors="surrogateescape") as archive:
        names = [os.fsencode(member.name) for member in archive]
        assert names == ["top é/data/".encode() + name for name in NAMES]
        for number, member in enumerate(archive.getmembers()):
            stream = archive.extractfile(member)
            assert stream is not None and stream.read() == bytes([65 + number]) * number * 511


def test_any_range_is_that_part_of_the_whole(layout: Layout) -> None:
    whole = b"".join(layout.read(0, layout.length))
    chooser = random.Random(7)
    for _ in range(300):
        first = chooser.randrange(layout.length)
        length = chooser.randrange(1, layout.length - first + 1)
        assert b"".join(layout.read(first, length)) == whole[first : first + length]


def test_sizes_beyond_8_gib_have_their_header() -> None:
    header = make_header("top", "data", b"huge", 1 << 40, 0)
    info = tarfile.TarInfo.frombuf(header[-512:], "utf-8", "surrogateescape")
    assert b"size=1099511627776" in header and info.name == "top/data/huge"


def test_a_file_that_changed_is_never_passed_off(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "data/a/b/c").write_bytes(b"changed")
    with pytest.raises(TransferError, match="not what was published"):
        b"".join(layout.read(0, layout.length))


def test_the_manifest_counts_committed_batches_only(tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    manifest = Manifest(str(tmp_path), Owner())

    def line(batch: str, path: str, version: int = 1) -> dict[str, object]:
        return {"event": "file", "batch": batch, "path": path, "version": version}

    assert list(read(str(tmp_path))) == []
    manifest.append([line("open", "x"), line("a", "one"), line("a", "raw-\udcff"), line("a", "failed")])
    manifest.append([line("a", "one", 2)])
    path = next((tmp_path / "system/manifest").iterdir())
    with path.open("ab") as stream:
        stream.write(b'{"event":"committed","batch":"op')
    manifest.append([{"event": "committed", "batch": "a", "failed": ["failed"]}])
    assert [(entry["path"], entry["version"]) for entry in read(str(tmp_path))] == [("one", 2), ("raw-\udcff", 1)]
    assert path.stat().st_mode & 0o777 == 0o640 and path.read_bytes().isascii()
    # replayed after its end, of which the database had not heard; the file that failed then is there now
    manifest.append([line("a", "one", 2), line("a", "raw-\udcff"), line("a", "failed")])
    manifest.append([{"event": "committed", "batch": "a", "failed": []}])
    assert [entry["path"] for entry in read(str(tmp_path))] == ["one", "raw-\udcff", "failed"]
