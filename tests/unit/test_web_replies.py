"""Replies as bytes: JSON of every kind of result, and streams that keep their promise."""

from __future__ import annotations

import datetime
import json
from collections import OrderedDict
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from dm.common.errors import ObjectNotFound
from dm.common.records import DmObject
from dm.common.web.replies import Reply, disposition, error_reply, exactly, json_reply, to_json
from dm.common.web.routes import Stream
from dm.common.web.throttle import TooManyLogins


class Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    file_path: str


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, {"a": 1}),
        ([1, "x", None, True], [1, "x", None, True]),
        (DmObject({"b": 1, "a": 2}), {"b": 1, "a": 2}),
        ([DmObject({"x": DmObject({"y": 1})})], [{"x": {"y": 1}}]),
        (Model(file_path="/x"), {"filePath": "/x"}),
        (OrderedDict(a=1), {"a": 1}),
        ((1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (b"a\xff", "a\udcff"),
        (Path("/a/b"), "/a/b"),
        (datetime.datetime(2026, 2, 13, 1, 2, 3), "2026-02-13T01:02:03"),
        ((number for number in range(3)), [0, 1, 2]),
        ({"a": float("nan"), "b": [float("inf"), 1.5], "c": DmObject({"d": float("-inf")})},
         {"a": None, "b": [None, 1.5], "c": {"d": None}}),
        ("é\udcff", "é\udcff"),
        (2**63, 2**63),
    ],
)  # fmt: skip
def test_json(value, expected):
    data = to_json(value)
    data.decode("ascii")
    assert json.loads(data) == expected


def test_key_order_is_kept():
    assert to_json(DmObject({"z": 1, "a": 2})) == b'{"z":1,"a":2}'


def test_an_unknown_kind_is_a_defect():
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        to_json({"a": object()})


def test_nothing_is_an_empty_object():
    assert json_reply(None).body == b"{}"


def test_errors():
    reply = error_reply(ObjectNotFound("Experiment 'x' does not exist."), "r1")
    assert (reply.status, reply.headers["Dm-Status-Code"]) == (404, "14")
    assert json.loads(reply.body) == {
        "errorCode": 14,
        "errorClass": "ObjectNotFound",
        "errorMessage": "Experiment 'x' does not exist.",
        "requestId": "r1",
    }
    late = error_reply(TooManyLogins(12.3), "r2")
    assert (late.status, late.headers["Retry-After"]) == (429, "12")
    assert json.loads(late.body)["errorClass"] == "ServiceLimit"


def stream(chunks: list[bytes], length: int) -> Stream:
    return Stream(lambda first, count: iter(chunks), length, "x", "e")


def test_a_stream_gives_exactly_its_length():
    assert b"".join(exactly(stream([b"abc", b"defg"], 7), 0, 7)) == b"abcdefg"
    assert b"".join(exactly(stream([b"abc", b"defg", b"more"], 5), 0, 5)) == b"abcde"
    assert b"".join(exactly(stream([], 0), 0, 0)) == b""
    with pytest.raises(EOFError, match="2 bytes before"):
        b"".join(exactly(stream([b"abc"], 5), 0, 5))


def test_a_stream_is_closed_when_dropped():
    closed = []

    def read(first, length):
        try:
            while True:
                yield b"x"
        finally:
            closed.append(True)

    chunks = exactly(Stream(read, 100, "x", "e"), 0, 100)
    next(chunks)
    chunks.close()
    assert closed == [True]


def test_disposition_is_always_a_safe_header():
    for name in ["x", 'a"b\\c', "\r\nSet-Cookie: x", "日本", "\udcff\udcfe", "", "a;b", "%41"]:
        text = disposition(name)
        assert text.isascii()
        assert text.isprintable()
        assert text.startswith('attachment; filename="')


def test_length_of_bytes_is_known():
    assert Reply(200, {}, b"abc").length == 3
