"""What is remembered of the database is never older than this service's last change."""

from __future__ import annotations

import pytest

from dm.station.processing.remembered import Remembered


def test_a_text_is_read_once_until_it_is_changed() -> None:
    known, reads = Remembered(), []

    def read() -> str:
        reads.append("x")
        return f"text {len(reads)}"

    assert [known.get("a", read) for _ in range(3)] == ["text 1"] * 3
    with known.changed("a"):
        pass
    assert known.get("a", read) == "text 2"
    with pytest.raises(OSError, match="away"), known.changed("a"):
        raise OSError("away")  # it may have been changed all the same
    assert known.get("a", read) == "text 3"


def test_what_is_read_while_it_is_changed_is_not_kept() -> None:
    known = Remembered()

    def slow() -> str:
        with known.changed("a"):
            pass
        return "of before"

    assert known.get("a", slow) == "of before"
    assert known.get("a", lambda: "of after") == "of after"


def test_what_is_not_there_is_asked_for_again() -> None:
    known = Remembered()
    assert known.get("a", lambda: None) is None
    assert known.get("a", lambda: "there") == "there"
