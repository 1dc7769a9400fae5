"""Paths: any bytes there and back, nothing out of its root, the right blame."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from dm.common import paths
from dm.common.errors import InvalidArgument, ObjectNotFound, ServiceUnavailable


@pytest.mark.parametrize("raw", [b"a", bytes(range(1, 47)) + bytes(range(48, 256)), "日本/é".encode(), b"\xed\xa0\x80"])
def test_bytes_come_back(raw):
    assert paths.encode(paths.decode(raw)) == raw
    paths.display(raw).encode()


def test_text_does_not_depend_on_the_locale(monkeypatch):
    monkeypatch.setattr(os, "fsencode", None)
    monkeypatch.setattr(os, "fsdecode", None)
    assert paths.encode("é\udcff") == b"\xc3\xa9\xff"
    assert paths.decode(b"\xc3\xa9\xff") == "é\udcff"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("a", b"a"), ("./a//b/", b"a/b"), (b"a/./b", b"a/b"), ("..a/b..", b"..a/b.."), ("\udcff", b"\xff")],
)
def test_relative(given, wanted):
    assert paths.relative(given) == wanted


@pytest.mark.parametrize(
    "given",
    ["", ".", "/", "/a", "..", "a/../b", "a/..", "a\0b", "a" * 256, "a/" * 3000, "\ud800", b"/a", "x" * 100_000],
)
def test_refused_in_a_short_sentence(given):
    with pytest.raises(InvalidArgument) as refusal:
        paths.relative(given)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("path", [b"../secret", b"d/../../secret", b"..", b"d/.."])
def test_nothing_above_a_root_is_opened(tmp_path, path):
    """Whoever gives a path has checked it; if not, this is the last line."""
    (tmp_path / "root" / "d").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(InvalidArgument, match=r"leaves"), paths.opened_parent(tmp_path / "root", path):
        pass


def test_longest():
    longest = "/".join(["n" * 255] * 16)[:4095].rstrip("/")
    assert len(paths.relative(longest)) == len(longest)


def test_links_are_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "file").write_text("x")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "d" / "loop").symlink_to("file")
    os.mkfifo(root / "fifo")
    with paths.opened_file(root, b"d/file") as descriptor:
        assert os.read(descriptor, 5) == b"x"
    for path in (b"link/secret", b"d/loop", b"d/file/x", b"fifo", b"d"):
        with pytest.raises(InvalidArgument), paths.opened_file(root, path):
            pass
    for path in (b"none", b"none/x", b"d/none"):
        with pytest.raises(ObjectNotFound, match="does not exist"), paths.opened_file(root, path):
            pass


def test_directories_are_made_with_their_mode(tmp_path):
    (tmp_path / "there").mkdir(mode=0o700)
    mask = os.umask(0o077)
    try:
        with paths.opened_parent(tmp_path, b"there/new/newer/name", 0o755) as (descriptor, name):
            assert name == b"name"
            assert os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path / "there/new/newer")
    finally:
        os.umask(mask)
    modes = [stat.S_IMODE((tmp_path / path).stat().st_mode) for path in ("there", "there/new", "there/new/newer")]
    assert modes == [0o700, 0o755, 0o755]


@pytest.mark.parametrize(("number", "kind"), [(errno.EMFILE, ServiceUnavailable), (errno.EIO, ServiceUnavailable),
                                              (errno.EACCES, InvalidArgument)])  # fmt: skip
def test_the_right_blame(tmp_path, monkeypatch, number, kind):
    (tmp_path / "d").mkdir()
    really = os.open

    def failing(path, flags, *arguments, **options):
        if "dir_fd" in options:
            raise OSError(number, os.strerror(number))
        return really(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", failing)
    before = len(os.listdir("/proc/self/fd"))
    for path in (b"d/x", b"x"):
        with pytest.raises(kind), paths.opened_file(tmp_path, path):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
