"""What people type about files, and how tables and timelines are made."""

from __future__ import annotations

import datetime
import time

import click
import pytest

from dm.common.errors import InvalidArgument
from dm.common.web.arguments import decode
from dm.common.wire import literal
from dm.station.acquisition.commands.file_options import Since
from dm.station.acquisition.exporting import exported, neutral
from dm.station.acquisition.listing import Query
from dm.station.acquisition.timeline import timeline
from dm.station.acquisition.waits import Waits


@pytest.mark.parametrize(
    "text", ["plain", "b'", "b'x", "a/b'YQ=='", "b'YQ=='", 'b"YQ=="', " b'line\nbreak' ", "b''", "b'YQ=='/b'YQ=='", "é"]
)
def test_a_text_is_read_as_itself_where_double_base64_is_understood(text: str) -> None:
    sent = literal(text)
    assert decode(sent if isinstance(sent, str) else sent.decode()) == text
    assert literal("plain") == "plain" and literal(b"\xff") == b"\xff"


def test_moments() -> None:
    kind = Since()
    assert abs(float(kind.convert("90m", None, None)) - (time.time() - 5400)) < 60
    day = datetime.datetime.fromisoformat("2026-03-05T14:00").timestamp()
    assert kind.convert("2026-03-05T14:00", None, None) == day
    assert kind.convert("1772719200", None, None) == 1772719200.0
    for text in ("yesterday", "", "14:00", "-1h", "99999-01-01"):
        with pytest.raises(click.BadParameter, match="is no time"):
            kind.convert(text, None, None)


def test_patterns_match_paths_and_names() -> None:
    assert Query(pattern="*.h5").names("run1/a.h5") and Query(pattern="a.*").names("run1/a.h5")
    assert Query(pattern="run1/*").names("run1/x/a.h5") and not Query(pattern="x/*").names("run1/x/a.h5")
    assert Query(pattern="[ab]").names("a") and Query(pattern="*").names("new\nline")
    assert not Query(pattern="A").names("a")
    assert Query(since=10).fits({"path": "a", "times": {"ready": 5, "done": 12}})
    assert not Query(since=13).fits({"path": "a", "times": {"ready": 5, "done": 12}})
    assert Query().plain and not Query(pattern="*").plain
    with pytest.raises(InvalidArgument, match="NUL"):
        Query(pattern="a\0")


def test_cells_are_no_formulas() -> None:
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"):
        assert neutral(text) == "'" + text
    assert neutral("a=b") == "a=b" and neutral(-1) == -1 and neutral(None) == "" and neutral("") == ""
    record = {
        "path": "a",
        "state": "done",
        "lastError": "=x",
        "mtimeNs": 1_500_000_000,
        "times": {},
        "notes": ["=a", "b"],
    }
    table = b"".join(exported([record] * 450, "csv")).decode()
    assert table.count("\r\n") == 451 and ",'=x," in table and "'=a; b" in table and "1.500000" in table
    assert b"".join(exported([], "jsonl")) == b""


def test_a_timeline_is_in_order() -> None:
    record = {
        "state": "failed",
        "rule": "closed",
        "times": {"ready": 1.0, "done": 9.0, "moved": None, "other": 3.0},
        "history": [{"time": 4.0, "event": "failed", "text": "no"}, {"time": 9.0, "event": "retried", "text": "again"}],
    }
    events = timeline(record)
    assert [event["event"] for event in events] == ["ready", "failed", "retried", "done"]
    assert events[0]["text"] == "It was found whole (rule closed)." and events[-1]["text"].endswith("final: failed.")
    assert timeline({"state": "ready", "path": "a"}) == []


def test_places_to_wait() -> None:
    waits = Waits(1)
    with waits.place() as first, waits.place() as second:
        assert (first, second, waits.free) == (True, False, 0)
    assert waits.free == 1
