"""The argument decoder: plain text, both double-base64 dialects, JSON; and what it refuses."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator

from dm.common.errors import InvalidArgument, InvalidRequest
from dm.common.web.arguments import Binder, decode, encode, parse_body, parse_json, parse_pairs, shorten, unquote
from dm.common.web.routes import USER, Arguments, Route


class Everything(Arguments):
    experiment_name: str
    limit: int = 5
    ratio: float = 1.0
    flag: bool = False
    query_dict: dict[str, Any] | None = None
    key_list: str | list[str] = "DEFAULT"
    ids: list[int] = []  # noqa: RUF012 - pydantic copies defaults
    anything: Any = None
    password: str | None = None
    year: int | None = None

    @field_validator("experiment_name")
    @classmethod
    def _no_slash(cls, value: str) -> str:
        if value == "refused":
            raise ValueError("names cannot be 'refused'")
        if value == "dm":
            raise InvalidArgument("This comes from DM itself.")
        return value


def bind(path=None, query=(), body=None, coded=frozenset({"experimentName", "queryDict", "keyList"})):
    route = Route("GET", "/x/{experimentName}", lambda request, arguments: None, USER, "x", Everything, coded)
    return Binder(route).bind(path if path is not None else {"experimentName": "e1"}, query, body or {})


def vendor(text: str) -> str:
    """The vendor's dialect: MIME base64 inside."""
    return repr(base64.b64encode(base64.encodebytes(text.encode())))


def plain_dialect(text: str) -> str:
    """The dialect of dmax: plain base64 twice."""
    return repr(base64.b64encode(base64.b64encode(text.encode())))


def test_published_samples():
    assert decode("b'ZTMwPQo='") == "{}"
    assert decode("b'ZTMwPQ=='") == "{}"
    assert decode('b"ZTMwPQ=="') == "{}"
    assert decode("b''") == ""


@pytest.mark.parametrize("dialect", [vendor, plain_dialect, encode])
@given(text=st.text(max_size=300))
def test_every_text_survives_each_dialect(dialect, text):
    assert decode(dialect(text)) == text


def test_long_vendor_text_is_wrapped_inside_and_still_read():
    text = json.dumps({"stages": {f"{n:02d}": {"command": "echo " + "x" * 50} for n in range(40)}})
    assert "\n" in base64.b64decode(vendor(text)[2:-1]).decode()
    assert decode(vendor(text)) == text


@pytest.mark.parametrize(
    "text", ["plain", "ZTMwPQ==", "b", "b'", "it's b'x", "bb'ZTMwPQ=='", "", "b'ZTMwPQ==' and more"]
)
def test_text_without_the_dress_is_plain(text):
    assert decode(text) == text


@pytest.mark.parametrize(
    "text",
    ["b'!!!!'", "b'ZTMwPQ'", "b'ZTMwPQ==='", "b'e30='", "b'" + base64.b64encode(b"/w=+").decode() + "'", "b'é'",
     "b'" + base64.b64encode(base64.b64encode(b"\xff\xfe")).decode() + "'"],
)  # fmt: skip
def test_malformed_double_base64_names_the_argument(text):
    with pytest.raises(InvalidRequest, match=r"^Argument 'queryDict' has value .* not valid double base64") as caught:
        decode(text, "queryDict")
    assert len(caught.value.message) < 250


def test_ten_megabytes_of_malformed_base64_make_a_short_error():
    with pytest.raises(InvalidRequest) as caught:
        decode("b'" + "A" * 10_000_001 + "'", "x")
    assert len(caught.value.message) < 250


@given(raw=st.binary(max_size=100))
def test_any_bytes_survive_percent_encoding(raw):
    assert unquote(quote_from_bytes(raw, safe="")).encode("utf-8", "surrogateescape") == raw


def test_pairs():
    assert parse_pairs(b"a=1&b=x+y%20z&c&=d&&e=%ff", "q") == [
        ("a", "1"), ("b", "x y z"), ("c", ""), ("", "d"), ("e", "\udcff")]  # fmt: skip
    with pytest.raises(InvalidRequest, match="more than 1000 arguments"):
        parse_pairs(b"&".join([b"a=1"] * 1001), "The query")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not valid JSON"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1, "a": 2}', "'a' occurs twice"),
        ("[" * 101 + "]" * 101, "deeper than 100"),
        ("[" * 100_000 + "]" * 100_000, "deeper than 100"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "deeper than 100"),
        (b'"\xff"', "not UTF-8"),
        ("1" * 5000, "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_json_is_strict(text, why):
    with pytest.raises(InvalidRequest, match=why) as caught:
        parse_json(text, "Argument 'x'")
    assert caught.value.message.startswith("Argument 'x' is")
    assert len(caught.value.message) < 250


def test_json_that_is_fine():
    assert parse_json("[" * 100 + "]" * 100, "x")
    assert parse_json('{"a": [1, 2.5, null, "\\udcff"]}', "x") == {"a": [1, 2.5, None, "\udcff"]}


def test_body_is_read_by_content_not_by_a_wrong_label():
    assert parse_body(b"", "html") == {}
    assert parse_body(b'{"a": 1}', "application/x-www-form-urlencoded") == {"a": 1}
    assert parse_body(b'{"a": 1}', "html") == {"a": 1}
    assert parse_body(b"a=1&b=2", "") == [("a", "1"), ("b", "2")]
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        parse_body(b"[1]", "application/json")
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_body(b"a=1", "application/json; charset=utf-8")
    with pytest.raises(InvalidRequest, match="not supported"):
        parse_body(b"--x", "multipart/form-data; boundary=x")


def test_path_wins_then_query_then_body():
    found = bind({"experimentName": "path"}, [("experimentName", "q"), ("limit", "7")], {"limit": 9, "ratio": 0.5})
    assert (found.experiment_name, found.limit, found.ratio) == ("path", 7, 0.5)
    found = bind({"experimentName": "path"}, [("experiment_name", "q")], {"experiment_name": "b"})
    assert found.experiment_name == "path"


def test_text_becomes_what_the_field_is():
    found = bind(
        query=[("limit", "7"), ("flag", "1"), ("queryDict", '{"a": 1}'), ("keyList", '["x"]'), ("ids", "[1, 2]")]
    )
    assert (found.limit, found.flag, found.query_dict, found.key_list, found.ids) == (7, True, {"a": 1}, ["x"], [1, 2])
    assert bind(query=[("keyList", '"ALL"')]).key_list == "ALL"
    assert bind(query=[("keyList", "ALL")]).key_list == "ALL"
    assert bind(query=[("keyList", encode('"DEFAULT"'))]).key_list == "DEFAULT"
    assert bind(query=[("queryDict", vendor('{"status": "done"}'))]).query_dict == {"status": "done"}
    assert bind(query=[("anything", '{"a": 1}')]).anything == {"a": 1}
    assert bind(query=[("anything", "word")]).anything == "word"
    assert bind(query=[("ids", "1"), ("ids", "2")]).ids == [1, 2]


def test_blank_text_for_an_optional_number_is_absent():
    assert bind(query=[("year", ""), ("queryDict", ""), ("limit", "")]).year is None


def test_coded_text_is_decoded_only_where_declared():
    assert bind({"experimentName": encode("a/b")}).experiment_name == "a/b"
    assert bind({"experimentName": encode("a")}, coded=frozenset()).experiment_name == encode("a")
    assert bind({"experimentName": "x"}, body={"keyList": encode("a")}).key_list == encode("a")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"path": {}}, "Argument 'experimentName' is missing."),
        ({"query": [("colour", "red")]}, "Argument 'colour' is unknown; known arguments: anything, experimentName"),
        ({"query": [("limit", "many")]}, "Argument 'limit' has value 'many': input should be a valid integer"),
        ({"query": [("limit", "1"), ("limit", "2")]}, "Argument 'limit' is given 2 times; give it once."),
        ({"query": [("queryDict", "{oops")]}, "Argument 'queryDict' is not valid JSON"),
        ({"query": [("ids", '["x"]')]}, "Argument 'ids.0' has value 'x'"),
        ({"path": {"experimentName": "refused"}}, "Argument 'experimentName' has value 'refused': names cannot be"),
        ({"path": {"experimentName": "a\0b"}}, "Argument 'experimentName' contains a NUL character"),
        ({"body": {"experimentName": "e", "flag": "a\0"}}, "Argument 'flag' contains a NUL character"),
        ({"query": [("limit", "x" * 10_000)]}, "Argument 'limit' has value 'xxx"),
        ({"query": [("limit", "a"), ("ratio", "b")]}, "(1 more problems.)"),
    ],
)
def test_refusals_are_one_short_sentence_naming_the_argument(arguments, sentence):
    with pytest.raises(InvalidRequest) as caught:
        bind(**arguments)
    assert sentence in caught.value.message
    assert type(caught.value) is InvalidRequest
    assert len(caught.value.message) < 300
    assert "\n" not in caught.value.message


def test_secrets_are_not_repeated():
    with pytest.raises(InvalidRequest) as caught:
        bind(body={"password": ["hunter2"]})
    assert "hunter2" not in caught.value.message
    assert "'password'" in caught.value.message


def test_an_error_of_dm_in_a_validator_passes_unchanged():
    with pytest.raises(InvalidArgument, match="from DM itself"):
        bind({"experimentName": "dm"})


def test_shorten_is_ascii_and_short():
    assert shorten("a\udcffé\n") == r"'a\udcff\xe9\n'"
    assert len(shorten("x" * 10_000_000)) <= 60
    assert len(shorten({"a": "x" * 1000})) <= 60
