"""Path segments, queries, addresses and what a response means."""

import json
from urllib.parse import parse_qs, unquote_to_bytes

import httpx
import pytest

from dm.common import wire
from dm.common.errors import (
    AuthenticationError,
    CommunicationError,
    ConfigurationError,
    DmException,
    InvalidArgument,
    InvalidRequest,
    ObjectNotFound,
    ServiceLimit,
    ServiceUnavailable,
)
from dm.common.records import DmObject


@pytest.mark.parametrize(
    "name",
    ["run 7", "a/b", "..", ".", "ä日", "100%", "a?b#c", b"\xff\xfe", "x\udcff", "'quoted'", "%2F", 158394],
    ids=repr,
)
def test_a_segment_carries_any_bytes_through_a_url(name):
    raw = name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape")
    url = httpx.URL(f"https://localhost/dm/x/{wire.segment(name)}/y")
    parts = url.raw_path.split(b"/")
    assert len(parts) == 5, "one segment stays one segment"
    assert unquote_to_bytes(parts[3]) == raw


def test_an_empty_segment_is_refused():
    with pytest.raises(InvalidArgument, match="empty"):
        wire.segment("")


def test_query_values():
    text = wire.query_text(
        {
            "flag": True,
            "off": False,
            "none": None,
            "n": 3,
            "list": ["a"],
            "record": DmObject(a=1),
            "raw": b"\xff&=",
            "s": "a b+c",
        }
    )
    found = {name: values[0] for name, values in parse_qs(text, errors="surrogateescape").items()}
    assert found == {
        "flag": "true",
        "off": "false",
        "n": "3",
        "list": '["a"]',
        "record": '{"a": 1}',
        "raw": "\udcff&=",
        "s": "a b+c",
    }


def test_json_carries_records_paths_and_undecodable_names(tmp_path):
    text = wire.json_text({"record": DmObject(x=1), "path": tmp_path, "name": "\udcff"})
    assert json.loads(text) == {"record": {"x": 1}, "path": str(tmp_path), "name": "\udcff"}


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}, b"bytes"])
def test_what_json_cannot_carry_is_named(value):
    with pytest.raises(InvalidArgument, match="cannot be sent as JSON"):
        wire.json_text({"value": value})


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://host:1", "https://host:1/dm"),
        ("https://host:1/", "https://host:1/dm"),
        ("https://host:1/dm", "https://host:1/dm"),
        ("https://host:1/dm/", "https://host:1/dm"),
        ("https://host/proxy/", "https://host/proxy/dm"),
    ],
)
def test_addresses_work_with_and_without_dm(given, used):
    assert wire.base_url(given) == used


@pytest.mark.parametrize("bad", ["", "host:22236", "ftp://host", "https://", "https://host:port", "https://host:0"])
def test_unusable_addresses_are_named(bad):
    with pytest.raises(ConfigurationError, match="write it like"):
        wire.base_url(bad)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SESSIONID=abc; Path=/; Secure; HttpOnly", "abc"),
        ("SESSIONID=abc; expires=Wed, 01 Jan 2031 00:00:00 GMT; Path=/", "abc"),
        ("abc-DEF_123", "abc-DEF_123"),
        ("abc==", "abc=="),
        ("two words", None),
        ("a;b", None),
        ("a\r\nX: y", None),
    ],
)
def test_session_ids(text, found):
    assert wire.session_id(text) == found


def reply(status=200, body=b"", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(
        status, content=content, headers=headers, request=httpx.Request("GET", "https://host/dm/thing?secret=1")
    )


def test_good_replies():
    assert wire.decoded(reply(200, {"a": 1})) == {"a": 1}
    assert wire.decoded(reply(200, [])) == []
    assert wire.decoded(reply(204)) is None
    assert wire.decoded(reply(200, {"errorMessage": "a failed job has one"})) == {
        "errorMessage": "a failed job has one"
    }


def test_a_critical_status_is_an_answer():
    assert wire.decoded(reply(503, {"status": "critical"}, **{"Dm-Status-Code": "0"})) == {"status": "critical"}


def test_the_service_s_class_is_raised_again():
    body = {"errorCode": 14, "errorClass": "ObjectNotFound", "errorMessage": "Experiment x does not exist."}
    with pytest.raises(ObjectNotFound, match="does not exist") as caught:
        wire.decoded(reply(404, body))
    assert caught.value.getErrorCode() == 14


def test_an_error_may_come_with_http_200():
    with pytest.raises(ObjectNotFound):
        wire.decoded(reply(200, {"errorCode": 14, "errorMessage": "x"}))
    with pytest.raises(DmException) as caught:
        wire.decoded(reply(200, {"errorCode": 77, "errorMessage": "of a later version"}))
    assert caught.value.getErrorCode() == 77


def test_the_header_decides_where_the_body_is_no_json():
    with pytest.raises(ServiceLimit, match="too many"):
        wire.decoded(reply(413, b"too many files", **{"Dm-Status-Code": "19"}))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest),
        (401, AuthenticationError),
        (404, ObjectNotFound),
        (431, ServiceLimit),
        (503, ServiceUnavailable),
        (502, CommunicationError),
        (500, CommunicationError),
        (302, CommunicationError),
    ],
)
def test_a_foreign_error_page_is_told_by_its_status(status, error):
    with pytest.raises(error, match=f"https://host/dm/thing answered HTTP {status}") as caught:
        wire.decoded(reply(status, b"<html>secret page</html>"))
    assert "secret" not in str(caught.value)


def test_a_page_instead_of_json_is_no_success():
    with pytest.raises(CommunicationError, match="text/html instead of JSON"):
        wire.decoded(reply(200, b"<html>", **{"Content-Type": "text/html"}))
