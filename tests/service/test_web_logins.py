"""Sessions over HTTPS: login, cookies as browsers and as dmax send them, logout, throttling; and the route walk."""

from __future__ import annotations

import calendar
import email.utils
import logging
import threading
import time

import pytest

from dm.common import tls
from dm.common.web.routes import PUBLIC, USER, Route
from dm.common.web.sessions import MemorySessionStore
from tests.service.route_walk import assert_refuses_strangers
from tests.service.web_fixtures import USERS, application, client, running

BAD = "Incorrect username or password."


@pytest.fixture
def server(certificates):
    with running(certificates, application(sessions=MemorySessionStore(absolute_seconds=3600))) as started:
        yield started


@pytest.fixture
def http(server, certificates):
    with client(server, certificates) as session:
        yield session


def login(http, username="d123456", password=None, **options):
    return http.post("/login", data={"username": username, "password": password or USERS[username]}, **options)


def test_login_sets_exactly_one_strict_cookie(http):
    reply = login(http)
    assert reply.status_code == 200
    assert reply.json() == {"username": "d123456", "systemRoles": [], "stationRoles": {}}
    [cookie] = reply.headers.get_list("Set-Cookie")
    parts = [part.strip() for part in cookie.split(";")]
    assert parts[0].startswith("SESSIONID=")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(parts)
    [expires] = [part.removeprefix("expires=") for part in parts if part.startswith("expires=")]
    assert expires.endswith(" GMT")
    assert 3000 < calendar.timegm(email.utils.parsedate(expires)) - time.time() < 3700


def test_login_with_json(http):
    assert http.post("/login", json={"username": "d123456", "password": "right horse"}).status_code == 200


def test_login_never_keeps_an_id_the_caller_had(http):
    first = login(http).cookies["SESSIONID"]
    second = login(http).cookies["SESSIONID"]
    chosen = "A" * 43
    third = login(http, headers={"Cookie": f"SESSIONID={chosen}"}).cookies["SESSIONID"]
    assert len({first, second, third, chosen}) == 4
    http.cookies.clear()
    assert http.get("/session", headers={"Cookie": f"SESSIONID={chosen}"}).status_code == 401


def test_the_cookie_as_dmax_sends_it_and_among_dead_ones(http):
    whole = login(http).headers["Set-Cookie"]
    http.cookies.clear()
    assert http.get("/session", headers={"Cookie": whole}).json()["username"] == "d123456"
    dead = "SESSIONID=" + "x" * 43
    assert http.get("/session", headers={"Cookie": f"{dead}; a=b; {whole}"}).status_code == 200
    assert http.get("/session", headers={"Cookie": dead}).json()["errorCode"] == 12


def test_logout_kills_the_session_for_good(http):
    cookie = {"Cookie": "SESSIONID=" + login(http).cookies["SESSIONID"]}
    http.cookies.clear()
    reply = http.post("/logout", headers=cookie)
    assert reply.status_code == 200
    assert len(reply.headers.get_list("Set-Cookie")) == 1
    assert http.get("/session", headers=cookie).json()["errorCode"] == 12
    assert http.post("/logout", headers=cookie).status_code == 401


def test_credentials_in_the_url_are_refused_even_when_right(http):
    reply = http.post("/login", params={"username": "d123456", "password": "right horse"})
    assert (reply.status_code, reply.json()["errorCode"]) == (400, 7)
    assert "right horse" not in reply.text
    assert "Set-Cookie" not in reply.headers


@pytest.mark.parametrize(
    ("username", "password"),
    [("d123456", "wrong"), ("nobody", "wrong"), ("d123456", ""), ("", ""), ("d123456", "x" * 1_000_000),
     ("*)(uid=*", "x"), ("x" * 1000, "x")],
    ids=["password", "user", "empty", "both empty", "huge", "ldap", "long name"],
)  # fmt: skip
def test_every_refused_login_says_the_same(http, username, password):
    reply = http.post("/login", data={"username": username, "password": password})
    assert reply.status_code == 401
    assert (reply.json()["errorCode"], reply.json()["errorMessage"]) == (6, BAD)


def test_missing_password_names_it(http):
    reply = http.post("/login", data={"username": "d123456"})
    assert (reply.status_code, reply.json()["errorMessage"]) == (400, "Argument 'password' is missing.")


def test_guessing_is_throttled_alike_for_known_and_unknown_users(http, caplog):
    with caplog.at_level(logging.INFO, "dm.audit"):
        for username in ("d123456", "nobody"):
            seen = [http.post("/login", data={"username": username, "password": "wrong"}) for _ in range(15)]
            assert [reply.status_code for reply in seen] == [401] * 10 + [429] * 5
            assert seen[-1].json()["errorClass"] == "ServiceLimit"
            assert int(seen[-1].headers["Retry-After"]) <= 180
    assert len([record for record in caplog.records if record.name == "dm.audit"]) == 30
    assert login(http).status_code == 429, "even with the right password, for a while"
    assert login(http, "d999999").status_code == 200, "others are not locked"


def test_fifty_logins_at_once(server, certificates):
    context = tls.client_context(certificates / "ca.pem")
    statuses: list[int] = []

    def one() -> None:
        with client(server, certificates) as session:
            statuses.append(login(session, "25idcuser").status_code)

    threads = [threading.Thread(target=one) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 50
    assert context is not None


def test_random_session_ids_leave_nothing_behind(http, server):
    for number in range(200):
        assert http.get("/session", headers={"Cookie": f"SESSIONID={number:043d}"}).status_code == 401
    assert server.application.sessions.count == 0


def test_sessions_expire(certificates):
    now = [0.0]
    sessions = MemorySessionStore(idle_seconds=60, clock=lambda: now[0])
    with running(certificates, application(sessions=sessions)) as server, client(server, certificates) as http:
        login(http)
        assert http.get("/session").status_code == 200
        now[0] = 61
        assert http.get("/session").json()["errorCode"] == 12


def test_the_walk_finds_every_route_closed(http, server, certificates):
    stranger = login(http, "d999999").cookies["SESSIONID"]
    walked = assert_refuses_strangers(server.url, server.application.routes, certificates / "ca.pem", stranger)
    assert walked == len(server.application.routes) - 3


def test_the_walk_notices_an_open_route(http, server, certificates):
    ca = certificates / "ca.pem"
    public = Route("GET", "/echo", lambda request, arguments: {}, PUBLIC, "x")
    with pytest.raises(AssertionError, match="declared public"):
        assert_refuses_strangers(server.url, [public], ca, None)
    careless = Route("GET", "/status", lambda request, arguments: {}, USER, "x")
    with pytest.raises(AssertionError, match="GET /status without a session"):
        assert_refuses_strangers(server.url, [careless], ca, None)
    insider = login(http, "25idcuser").cookies["SESSIONID"]
    with pytest.raises(AssertionError, match="as a stranger: 200"):
        assert_refuses_strangers(server.url, server.application.routes, ca, insider)
