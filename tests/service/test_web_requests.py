"""Requests over real HTTPS: arguments in every place, errors in one shape, limits, headers, logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest

from dm.common.web.arguments import encode
from tests.service.web_fixtures import client, raw, read_all, running


@pytest.fixture(scope="module")
def server(certificates) -> Iterator:
    with running(certificates) as started:
        yield started


@pytest.fixture
def http(server, certificates) -> Iterator[httpx.Client]:
    with client(server, certificates, "d123456") as session:
        yield session


@pytest.fixture
def anonymous(server, certificates) -> Iterator[httpx.Client]:
    with client(server, certificates) as session:
        yield session


def assert_error(reply: httpx.Response, status: int, code: int, name: str, text: str) -> None:
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert (body["errorCode"], body["errorClass"]) == (code, name)
    assert text in body["errorMessage"]
    assert reply.headers["Dm-Status-Code"] == str(code)
    assert reply.headers["Dm-Request-Id"] == body["requestId"]
    assert reply.headers["Content-Type"] == "application/json"


def test_arguments_in_path_query_form_and_json(http):
    assert http.get("/echo/a%2Fb%ff", params={"limit": 3}).json() == {
        "name": "a/b\udcff", "limit": 3, "queryDict": None, "keyList": "DEFAULT", "flag": False, "caller": "d123456",
    }  # fmt: skip
    assert http.post("/echo/x", data={"limit": "4", "flag": "true"}).json()["limit"] == 4
    assert http.post("/echo/x", json={"limit": 5, "queryDict": {"a": [1]}}).json()["queryDict"] == {"a": [1]}
    assert http.post("/echo/x?limit=6", content=b'{"limit": 7}').json()["limit"] == 6


def test_the_vendor_client_with_its_invalid_content_type(http):
    for method in ("GET", "POST"):
        reply = http.request(
            method,
            f"/echo/{encode('tomo 1')}?queryDict=b'ZTMwPQo='&keyList={encode(json.dumps('ALL'))}",
            headers={"Content-Type": "html"},
        )
        assert reply.json()["name"] == "tomo 1", reply.text
        assert reply.json()["queryDict"] == {}
        assert reply.json()["keyList"] == "ALL"


def test_quoted_dress_and_optional_segment(http):
    assert http.get("/esaf/stationEsafs/b%27VTJsdGNHeGw=%27".replace("VTJsdGNHeGw=", "VXpFPQ==")).json() == {
        "station": "S1", "beamline": None, "year": None,
    }  # fmt: skip
    for tail in ("", "/", "/b''", "?year="):
        assert http.get(f"/esaf/stationEsafs/S1{tail}").json() == {"station": "S1", "beamline": None, "year": None}
    assert http.get(f"/esaf/stationEsafs/S1/{encode('25-ID-C')}?year=2026").json()["beamline"] == "25-ID-C"


def test_a_whole_workflow_in_the_url(http, server, certificates):
    text = json.dumps({"stages": {"01": {"command": "x" * 150_000}}})
    target = f"/dm/echo/w?queryDict={encode(text)}"
    assert len(target) > 256 * 1024
    with raw(server, certificates) as sock:
        cookie = http.cookies["SESSIONID"]
        head = f"GET {target} HTTP/1.1\r\nHost: x\r\nCookie: SESSIONID={cookie}\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode())
        body = json.loads(read_all(sock).partition(b"\r\n\r\n")[2])
    assert body["queryDict"] == json.loads(text)


def test_urls_beyond_the_limit_are_refused(server, certificates):
    with raw(server, certificates) as sock:
        sock.sendall(b"GET /dm/echo/" + b"a" * (512 * 1024))  # not much more: the server stops reading at the limit
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 414 ")
    assert json.loads(body)["errorCode"] == 19


def test_errors_have_one_shape(http, anonymous):
    assert_error(http.get("/nope"), 404, 7, "InvalidRequest", "There is no path '/dm/nope'")
    assert_error(http.put("/status"), 405, 7, "InvalidRequest", "Method PUT is not for path '/dm/status'; use GET")
    assert http.put("/status").headers["Allow"] == "GET"
    assert_error(http.get("/echo/x?limit=many"), 400, 7, "InvalidRequest", "'limit' has value 'many'")
    assert_error(http.get("/echo/x?colour=red"), 400, 7, "InvalidRequest", "'colour' is unknown")
    assert_error(http.get("/echo/b'!!'"), 400, 7, "InvalidRequest", "'name' has value")
    assert_error(http.post("/echo/x", json=[1]), 400, 7, "InvalidRequest", "not a JSON object")
    reply = http.post("/echo/x", content=b"{}", headers={"Content-Encoding": "gzip"})
    assert_error(reply, 400, 7, "InvalidRequest", "Content encoding 'gzip'")
    assert_error(http.get("/experiments/others"), 404, 14, "ObjectNotFound", "'others' does not exist")
    assert_error(http.delete("/admin/x"), 403, 5, "AuthorizationError", "may not")
    assert_error(anonymous.get("/echo/x?limit=many"), 401, 6, "AuthenticationError", "log in")
    dead = {"Cookie": "SESSIONID=" + "x" * 43}
    assert_error(anonymous.get("/echo/x", headers=dead), 401, 12, "InvalidSession", "log in again")


def test_an_unexpected_exception_tells_only_the_request_id(http, caplog):
    with caplog.at_level(logging.ERROR, "dm.web"):
        reply = http.get("/fail")
    assert_error(reply, 500, 2, "InternalError", reply.headers["Dm-Request-Id"])
    assert "hunter2" not in reply.text
    assert "Traceback" not in reply.text
    assert "RuntimeError" in caplog.text


def test_a_handler_that_exits_does_not_take_the_service_with_it(http, caplog):
    with caplog.at_level(logging.CRITICAL):
        assert_error(http.get("/exit"), 500, 2, "InternalError", "Internal error")
    assert http.get("/status").status_code == 200


def test_numbers_json_does_not_know_become_null(http):
    assert http.get("/nan").json() == {"value": None}


def test_every_reply_has_security_headers_and_a_fresh_request_id(http, anonymous):
    ids = set()
    for reply in [
        http.get("/echo/x"),
        http.get("/nope"),
        http.get("/fail"),
        http.get("/files/x"),
        anonymous.get("/status"),
        anonymous.get("/metrics"),
        anonymous.get("/echo/x"),
        anonymous.get("/status", headers={"Dm-Request-Id": "chosen", "X-Request-Id": "chosen"}),
    ]:
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["X-Frame-Options"] == "DENY"
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Dm-Status-Code" in reply.headers
        assert reply.headers["Server"] == "DM"
        if reply.headers["Content-Type"] == "application/json":
            assert reply.headers["Cache-Control"] == "no-store"
        assert "Set-Cookie" not in reply.headers
        ids.add(reply.headers["Dm-Request-Id"])
    assert len(ids) == 8
    assert "chosen" not in ids


def test_body_limits_follow_the_route_and_the_session(http, anonymous):
    assert http.put("/echo/x", json={"queryDict": {"a": "x" * (2 << 20)}}).status_code == 200
    assert_error(http.put("/echo/x", content=b" " * (4 << 20)), 413, 19, "ServiceLimit", "3145728 bytes")
    assert_error(http.post("/echo/x", content=b" " * (2 << 20)), 413, 19, "ServiceLimit", "1048576 bytes")
    assert_error(anonymous.put("/echo/x", content=b" " * (2 << 20)), 401, 6, "AuthenticationError", "log in")
    assert_error(http.post("/nope", content=b" " * (1 << 20)), 413, 19, "ServiceLimit", "65536 bytes")


def test_chunked_bodies(http):
    def pieces():
        yield b'{"limit": '
        yield b"8}"

    assert http.post("/echo/x", content=pieces()).json()["limit"] == 8


def test_headers_over_16_kib_are_refused(http):
    assert http.get("/status", headers={"X-Big": "x" * 15_000}).status_code == 200
    assert_error(http.get("/status", headers={"X-Big": "x" * 17_000}), 431, 19, "ServiceLimit", "16384 bytes")


def test_keep_alive_pipelining_and_close(server, certificates):
    with raw(server, certificates) as sock:
        one = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
        sock.sendall(one * 20 + one.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        replies = read_all(sock)
    assert replies.count(b"HTTP/1.1 200 OK") == 21
    assert replies.count(b"Connection: close") == 1


def test_http_1_0(server, certificates):
    with raw(server, certificates) as sock:
        sock.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")


def test_a_client_that_waits_for_a_go_ahead_gets_it(server, certificates):
    with raw(server, certificates) as sock:
        sock.sendall(
            b"POST /dm/login HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 39\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"username=d123456&password=right%20horse")
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")


def test_head_and_other_methods(http):
    assert http.head("/status").status_code == 405
    assert http.head("/status").content == b""
    assert http.request("OPTIONS", "/status").status_code == 405
    assert http.request("PROPFIND", "/status").status_code == 405


def test_status_and_metrics(anonymous, server):
    status = anonymous.get("/status").json()
    assert {"service", "station", "status", "version", "interface", "uptime", "checks"} == set(status)
    root = str(anonymous.base_url).rstrip("/").removesuffix("/dm")
    assert anonymous.get(f"{root}/status").status_code == 200
    text = anonymous.get(f"{root}/metrics").text
    assert 'dm_requests_total{method="GET",route="/dm/status",status="200"}' in text
    assert 'dm_request_seconds_bucket{le="0.005",method="GET",route="/dm/status"}' in text
    server.application.health.check("disk", lambda: ("critical", "full"))
    try:
        reply = anonymous.get("/status")
        assert (reply.status_code, reply.json()["status"]) == (503, "critical")
    finally:
        server.application.health._checks.clear()


def test_access_log_has_no_query_and_no_secrets(http, anonymous, caplog):
    with caplog.at_level(logging.INFO):
        http.get("/echo/sample%0Aname?keyList=topsecret")
        anonymous.post("/login", data={"username": "d123456", "password": "hunter2"})
        anonymous.post("/login?username=d123456&password=hunter2")
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("dm"))
    lines = [record.getMessage() for record in caplog.records if record.name == "dm.access"]
    assert len(lines) == 3
    assert '127.0.0.1 d123456 "GET /dm/echo/sample%0Aname" 200' in lines[0]
    assert "hunter2" not in ours
    assert "topsecret" not in ours
    assert http.cookies["SESSIONID"] not in ours


def test_openapi(http, anonymous):
    document = http.get("/openapi").json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]["/dm/echo/{name}"]) == {"get", "post", "put"}
    assert anonymous.get("/openapi").status_code == 401
