"""Structured output of stages: what becomes a value, and hostile content that must not become anything."""

from __future__ import annotations

import json

import pytest

from dm.common.errors import ProcessingError
from dm.station.processing import structured


def test_members_become_values() -> None:
    given = {
        "text": "a b; $(touch x)",
        "number": 5,
        "real": 0.5,
        "truth": True,
        "none": None,
        "list": [1, "a"],
        "object": {"a": {"b": None}},
        "huge": 1 << 70,
        "PATH": "/evil",
        "LD_PRELOAD": "/evil.so",
        "a b": "kept as a key of the job",
        "ünï": "日本",
    }
    assert structured.values(json.dumps(given).encode()) == {
        **{name: value for name, value in given.items() if name != "none"},
        "list": '[1, "a"]',
        "object": '{"a": {"b": null}}',
        "huge": str(1 << 70),
    }
    assert structured.values(b'\xef\xbb\xbf {"a": 1}\n') == {"a": 1}


@pytest.mark.parametrize("data", [b"", b" \n", b"{}"])
def test_no_output_is_no_values(data: bytes) -> None:
    assert structured.values(data) == {}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[1]", "a JSON list, not an object"),
        (b"5", "a JSON number"),
        (b'"a"', "a JSON text"),
        (b"null", "a JSON null"),
        (b"result 5", "not JSON: line 1"),
        (b'{"a": 1}{"a": 2}', "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": [-Infinity]}', "holds -Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "huge number"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"x": {"a": 1, "a": 2}}', "'a' twice"),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "deeper than 50"),
        (b'{"a": ' + b"[" * 500_000, "too deeply"),
        (b'{"a":' * 150_000, "too deeply"),
        (json.dumps({f"k{number}": number for number in range(60_000)}).encode(), "60000 members"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "larger than"),
        (b'{"": 1}', "empty"),
        (b'{"a\\nb": 1}', "not printable"),
        (b'{"' + b"a" * 300 + b'": 1}', "too long"),
        (b'{"id": 1}', "'id' is reserved"),
        (b'{"workflow": {}}', "'workflow' is reserved"),
        (b'{"errorCode": 5}', "'errorCode' is reserved"),
        (b'{"a": "x\\u0000y"}', "NUL"),
        (b'{"a": "\\ud800"}', "not valid text"),
    ],
)
def test_hostile_output_is_refused_in_one_sentence(data: bytes, reason: str) -> None:
    with pytest.raises(ProcessingError, match=reason) as refused:
        structured.values(data)
    assert len(refused.value.message) < 300 and "\n" not in refused.value.message
