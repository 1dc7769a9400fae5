"""F-36 to F-38: sessions end in time, cannot be guessed or fixed; their cookies and all replies are strict."""

from __future__ import annotations

import gc
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import text

from dm.common import tls
from dm.common.client import RestClient
from dm.common.environment import URL_VARIABLES
from dm.common.web.sessions import session_key
from tests.live import Suite
from tests.service import storage_fixtures as fx

SERVICES = ("storage", "facility", "acquisition", "catalog", "processing")
SECONDS = 30.0
HOSTILE = (
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "session-" + "0" * 40, "%00" * 10, "a" * 15, "a" * 257, "*",
    "' OR 1=1 --",
    "\\\\" * 200, '"' * 50, "../" * 100 + "x" * 20,
)  # fmt: skip


@pytest.fixture(scope="module")
def http(suite: Suite) -> Iterator[httpx.Client]:
    """A client that keeps no cookies of its own."""
    with httpx.Client(verify=tls.client_context(suite.environment["DM_CA_FILE"]), timeout=30) as client:
        yield client


def url(suite: Suite, service: str) -> str:
    return suite.environment[URL_VARIABLES[service]].removesuffix("/dm") + "/dm"


def log_in(http: httpx.Client, suite: Suite, service: str, **headers: str) -> tuple[str, httpx.Response]:
    """Return the id of a new session of the station's manager, and the reply to the login."""
    username, password = suite.manager
    reply = http.post(
        f"{url(suite, service)}/login", data={"username": username, "password": password}, headers=headers
    )
    assert reply.status_code == 200, reply.text
    http.cookies.clear()
    (cookie,) = reply.headers.get_list("set-cookie")
    return cookie.partition(";")[0].removeprefix("SESSIONID="), reply


def status(http: httpx.Client, suite: Suite, service: str, cookie: str) -> int:
    """Return how the service answers somebody with this cookie header."""
    return http.get(f"{url(suite, service)}/session", headers={"Cookie": cookie}).status_code


@pytest.mark.parametrize("service", SERVICES)
def test_f36_a_session_ends_with_the_logout_and_a_login_begins_a_new_one(
    suite: Suite, http: httpx.Client, service: str
) -> None:
    chosen = "chosen-by-somebody-else-" + "x" * 30
    first, _ = log_in(http, suite, service, Cookie=f"SESSIONID={chosen}")
    second, _ = log_in(http, suite, service, Cookie=f"SESSIONID={first}")
    assert len({chosen, first, second}) == 3
    assert [status(http, suite, service, f"SESSIONID={one}") for one in (chosen, first, second)] == [401, 200, 200]
    reply = http.post(f"{url(suite, service)}/logout", headers={"Cookie": f"SESSIONID={first}"})
    assert reply.status_code == 200
    for cookie in (f"SESSIONID={first}", f'SESSIONID="{first}"; Path=/', f"x=y; SESSIONID={first}"):
        assert status(http, suite, service, cookie) == 401
    assert status(http, suite, service, f"SESSIONID={second}") == 200


def test_f36_a_session_is_good_at_the_service_that_gave_it_only(suite: Suite, http: httpx.Client) -> None:
    shared = {"storage", "facility"}  # one site: sessions are in its database
    for service in SERVICES:
        session, _ = log_in(http, suite, service)
        for other in SERVICES:
            same = service == other or {service, other} == shared
            assert status(http, suite, other, f"SESSIONID={session}") == (200 if same else 401), (service, other)


@pytest.mark.parametrize("limit", ["used", "created"])
def test_f36_idle_and_absolute_limits(storage_site: fx.Site, limit: str) -> None:
    alice, bob = storage_site.rest(fx.ALICE), storage_site.rest(fx.BOB)
    hours = "61 minutes" if limit == "used" else "24 hours"
    for client in (alice, bob):
        client.login()
    with storage_site.service.store.transaction() as connection:
        key = bytes.fromhex(session_key(str(alice.cookie)))
        connection.execute(
            text(f"UPDATE sessions SET {limit} = now() - interval '{hours}' WHERE id_hash = :key"), {"key": key}
        )
    stale = RestClient(storage_site.url, session=alice.cookie, ca_file=storage_site.ca_file)
    storage_site.clients.append(stale)
    assert stale.send("GET", "/session").status_code == 401
    assert bob.send("GET", "/session").status_code == 200
    storage_site.service.application.sessions.sweep()  # type: ignore[attr-defined]
    with storage_site.service.store.transaction() as connection:
        left = connection.execute(text("SELECT count(*) FROM sessions WHERE id_hash = :key"), {"key": key})
        assert left.scalar_one() == 0


def test_f36_a_password_change_ends_all_sessions_everywhere(suite: Suite, http: httpx.Client) -> None:
    name, old, new = "d630001", "pass-word-1", "pass-word-2"
    with RestClient(
        suite.environment[URL_VARIABLES["storage"]], *suite.administrator, ca_file=suite.environment["DM_CA_FILE"]
    ) as site:
        site.post("/users", {"username": name, "password": old})
        sessions = {}
        for service in SERVICES:
            reply = http.post(f"{url(suite, service)}/login", data={"username": name, "password": old})
            sessions[service] = reply.headers["set-cookie"].partition(";")[0]
            http.cookies.clear()
        site.put(f"/usersByUsername/{name}", {"password": new})
    deadline = time.monotonic() + SECONDS
    for service in SERVICES:
        while status(http, suite, service, sessions[service]) != 401:  # stations: when what they know is 5 s old
            assert service not in ("storage", "facility") and time.monotonic() < deadline


def _guesses(site: fx.Site, count: int) -> None:
    process, directory = psutil.Process(), Path.cwd()
    before, files = set(os.listdir(directory)), set(site.root.rglob("*"))
    with httpx.Client(verify=tls.client_context(site.ca_file)) as client:
        used = 0
        for number in range(count):
            if number == count // 2:
                gc.collect()
                used = process.memory_info().rss
            reply = client.get(f"{site.url}/session", headers={"Cookie": f"SESSIONID={secrets.token_urlsafe(32)}"})
            assert reply.status_code == 401
        for value in HOSTILE:
            reply = client.get(f"{site.url}/session", headers={"Cookie": f"SESSIONID={value}"})
            assert (reply.status_code, reply.json()["errorCode"]) in {(401, 6), (401, 12)}, value
    gc.collect()
    assert process.memory_info().rss - used < 20 << 20
    assert set(os.listdir(directory)) == before and set(site.root.rglob("*")) == files


def _rows(site: fx.Site) -> int:
    with site.service.store.transaction() as connection:
        return int(connection.execute(text("SELECT count(*) FROM sessions")).scalar_one())


def test_f37_random_and_hostile_session_ids(storage_site: fx.Site) -> None:
    before = _rows(storage_site)
    _guesses(storage_site, 500)
    assert _rows(storage_site) == before


@pytest.mark.long
def test_f37_10000_random_session_ids(storage_site: fx.Site) -> None:
    before = _rows(storage_site)
    _guesses(storage_site, 10_000)
    assert _rows(storage_site) == before


@pytest.mark.parametrize("service", SERVICES)
def test_f38_cookies_and_headers(suite: Suite, http: httpx.Client, service: str) -> None:
    session, login = log_in(http, suite, service)
    cookie = {"Cookie": f"SESSIONID={session}"}
    base = url(suite, service)
    replies = [
        login,
        http.get(f"{base}/session", headers=cookie),
        http.get(f"{base}/session"),  # 401
        http.get(f"{base}/no/such/path", headers=cookie),  # 404
        http.request("PATCH", f"{base}/session", headers=cookie),  # 405
        http.post(f"{base}/login", data={"username": "d1", "password": "wrong"}),
        http.post(f"{base}/login", content=b"{", headers={"Content-Type": "application/json"}),  # 400
        http.get(f"{base}/status"),
        http.get(f"{base}/metrics"),
        http.post(f"{base}/logout", headers=cookie),
    ]
    for reply in replies:
        what = f"{reply.request.method} {reply.request.url.path} {reply.status_code}"
        headers = reply.headers
        assert headers["X-Content-Type-Options"] == "nosniff", what
        assert headers["X-Frame-Options"] == "DENY", what
        assert "default-src 'none'" in headers["Content-Security-Policy"], what
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"], what
        assert "no-store" in headers["Cache-Control"], what
        assert headers["Content-Type"].startswith("application/json") or "/metrics" in what, what
        assert "Access-Control-Allow-Origin" not in headers, what
        assert session not in reply.text and session not in str(reply.request.url)
        set_cookies = headers.get_list("set-cookie")
        assert len(set_cookies) == (1 if reply.is_success and what.split()[1][3:] in ("/login", "/logout") else 0), what
        for value in set_cookies:
            flags = [part.strip() for part in value.split(";")[1:]]
            assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(flags), what
            assert not any(flag.lower().startswith("domain") for flag in flags), what
            assert any(flag.startswith("expires=") and flag.endswith("GMT") for flag in flags), what
