"""Which names a DAQ or upload takes."""

from __future__ import annotations

import pytest

from dm.station.acquisition.selection import Selection, words


def test_everything_but_hidden_names_by_default() -> None:
    chosen = Selection.parse()
    assert chosen.takes(b"a.h5")
    assert chosen.takes("sub/ü ñ.h5".encode())
    assert chosen.takes(b"bad\xff\xfe.h5")
    assert not chosen.takes(b".a.h5")
    assert not chosen.takes(b"sub/.git/config")
    assert not chosen.enters(b".git")
    assert chosen.enters(b"sub")


def test_hidden_names_when_asked_for() -> None:
    chosen = Selection.parse(process_hidden_files=True)
    assert chosen.takes(b".a.h5")
    assert chosen.takes(b".git/config")
    assert chosen.enters(b".git")


@pytest.mark.parametrize(
    ("pattern", "path", "taken"),
    [
        ("*.h5", b"a.h5", True),
        ("*.h5", b"sub/a.h5", True),
        ("scan_*.h5", b"sub/scan_1.h5", True),
        ("sub/*.h5", b"sub/a.h5", True),
        ("./sub/*.h5", b"sub/a.h5", True),
        ("sub/*.h5", b"other/a.h5", False),
        ("*.h5, *.tif", b"a.tif", True),
        ("*.h5", b"a.h5.bak", False),
        ("scan_??.h5", b"scan_12.h5", True),
        ("scan_[0-3].h5", b"scan_4.h5", False),
        ("*.h5", b"line\nbreak.h5", True),
        ("*", b"\xff\xfe", True),
    ],
)
def test_wildcards(pattern: str, path: bytes, taken: bool) -> None:
    assert Selection.parse(file_path_pattern=pattern).takes(path) is taken
    assert Selection.parse(skip_file_path_pattern=pattern).takes(path) is not taken


def test_extensions_disregard_case_dot_and_star() -> None:
    chosen = Selection.parse(include_file_extensions="h5, .TIF,*.edf", exclude_file_extensions="bak.h5")
    assert chosen.takes(b"a.h5")
    assert chosen.takes(b"a.H5")
    assert chosen.takes(b"a.tif")
    assert chosen.takes(b"a.edf")
    assert not chosen.takes(b"a.bak.h5")
    assert not chosen.takes(b"h5")


def test_a_single_file() -> None:
    chosen = Selection.parse(only=b"sub/.q/map.h5")
    assert chosen.takes(b"sub/.q/map.h5")
    assert not chosen.takes(b"sub/other.h5")
    assert chosen.enters(b"sub")
    assert not chosen.enters(b"su")


def test_words() -> None:
    assert words(" a, b ,,c") == ("a", "b", "c")
    assert words("") == ()
