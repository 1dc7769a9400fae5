"""Where artefact patterns lead."""

from __future__ import annotations

import pytest

from dm.common.errors import ProcessingError
from dm.station.processing.artefact_files import patterns


@pytest.mark.parametrize(
    ("text", "directory", "root", "parts"),
    [
        ("out.h5", "/place/job", b"/place/job", (b"out.h5",)),
        ("./a/*.h5", "/place/job/", b"/place/job", (b"a", b"*.h5")),
        ("**/x", "/w", b"/w", (b"**", b"x")),
        ("/place/job/a/b*", "/place/job", b"/place/job", (b"a", b"b*")),
        ("/place/jobs/a/b*", "/place/job", b"/place/jobs/a", (b"b*",)),
        ("/data/*/r.h5", None, b"/data", (b"*", b"r.h5")),
        ("/r.h5", None, b"/", (b"r.h5",)),
        ("\udcff", "/w", b"/w", (b"\xff",)),
    ],
)
def test_patterns(text: str, directory: str | None, root: bytes, parts: tuple[bytes, ...]) -> None:
    (found,) = patterns([text], directory)
    assert (found.root, found.parts) == (root, parts)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("../x", r"\.\."),
        ("a/../../x", r"\.\."),
        ("/w/../etc/passwd", r"\.\."),
        ("", "empty"),
        ("/", "empty"),
        ("a\0b", "NUL"),
    ],
)
def test_patterns_that_cannot_be(text: str, reason: str) -> None:
    with pytest.raises(ProcessingError, match=reason):
        patterns([text], "/w")


def test_a_relative_pattern_needs_a_working_directory() -> None:
    with pytest.raises(ProcessingError, match="workingDir"):
        patterns(["x"], None)
