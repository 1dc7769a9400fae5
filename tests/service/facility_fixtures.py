"""A Facility Service over real HTTPS and PostgreSQL, and a web server as a facility may have one."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from dm.common.tls import server_context
from dm.site.facility.api import BssApsDbApi, EsafApsDbApi, ServiceMonitorApsDbApi
from dm.site.facility.service import FacilityService, build_from_settings, build_server
from dm.site.facility.settings import FacilitySettings
from tests.service.storage_fixtures import Running, password_of

TODAY = date.today()
RUN = f"{TODAY.year}-1"
BEGIN, END = f"{TODAY} 08:00:00", f"{TODAY + timedelta(days=2)} 08:00:00"
RUNS = [
    {"name": f"{year}-1", "startTime": f"{year}-01-01 00:00:00", "endTime": f"{year}-12-31 23:59:59"}
    for year in (TODAY.year - 1, TODAY.year, TODAY.year + 1)
]


def person(badge: int | str, **more: Any) -> dict[str, Any]:
    """Return somebody of a record."""
    return {"badge": badge, "firstName": "First", "lastName": "Last", "email": "one@example.org"} | more


def proposal(number: int | str, *people: Any, **more: Any) -> dict[str, Any]:
    """Return a proposal of today."""
    return {
        "id": number, "title": f"Proposal {number}", "run": RUN, "beamline": "25-ID-C", "startTime": BEGIN,
        "endTime": END, "experimenters": list(people),
    } | more  # fmt: skip


def esaf(number: int | str, *people: Any, **more: Any) -> dict[str, Any]:
    """Return a safety form of today."""
    return {
        "esafId": number, "esafTitle": f"Form {number}", "description": "", "sector": "25", "esafStatus": "Approved",
        "experimentStartDate": BEGIN, "experimentEndDate": END, "experimentUsers": list(people),
    } | more  # fmt: skip


class Web(http.server.ThreadingHTTPServer):
    """Answers each path with what :attr:`answers` has for it: an object to be sent as JSON, or status and bytes."""

    daemon_threads = False

    def __init__(self, certificates: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.socket = server_context(certificates / "server.pem", certificates / "server.key").wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self.answers: dict[str, Any] = {"/api/runs": RUNS, "/api/beamlines": [{"name": "25-ID-C"}]}
        self.asked: list[str] = []
        self.authorization: str | None = None
        self.silence = threading.Event()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server_port}/api"

    def fill(self, proposals: list[Any], esafs: list[Any]) -> None:
        """Have these proposals in this year's run and these safety forms in this year, none in others."""
        for shift in (-1, 0, 1, 2):
            year = TODAY.year + shift
            self.answers[f"/api/proposals?run={year}-1"] = {"data": {"items": proposals if shift == 0 else []}}
            self.answers[f"/api/esafs/{year}"] = esafs if shift == 0 else []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is part of these tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Web
    timeout = 20

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.silence.wait(20)
        answer = self.server.answers.get(self.path, (404, b"{}"))
        if self.server.authorization is not None and self.headers.get("Authorization") != self.server.authorization:
            answer = (401, b"{}")
        status, body = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
        self.send_response(status)
        if status == 302:
            self.send_header("Location", body.decode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@contextmanager
def running_web(certificates: Path) -> Iterator[Web]:
    """Run the facility's web server."""
    server = Web(certificates)
    server.silence.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.silence.set()
        server.shutdown()
        thread.join()
        server.server_close()


def http_settings(web: Web, certificates: Path, **more: Any) -> dict[str, Any]:
    """Return the settings of an adapter for the web server."""
    return {
        "adapter": "http",
        "url": web.url,
        "ca_file": str(certificates / "ca.pem"),
        "paths": {
            "runs": "runs",
            "beamlines": "beamlines",
            "proposals": "proposals?run={run}",
            "esafs": "esafs/{year}",
        },
        "lists": {"proposals": "data.items"},
        "timeout_seconds": 10,
        **more,
    }


@dataclass
class Facility(Running):
    """A running Facility Service."""

    settings: FacilitySettings
    service: FacilityService

    def bss(self, username: str) -> BssApsDbApi:
        return self._made(BssApsDbApi(username, password_of(username), self.url, ca_file=self.ca_file))

    def esafs(self, username: str) -> EsafApsDbApi:
        return self._made(EsafApsDbApi(username, password_of(username), self.url, ca_file=self.ca_file))

    def monitor(self, username: str) -> ServiceMonitorApsDbApi:
        return self._made(ServiceMonitorApsDbApi(username, password_of(username), self.url, ca_file=self.ca_file))

    def check(self) -> dict[str, str]:
        """Return what the service says about its reading: level and message."""
        self.service.application.health.clear()
        checks = self.rest().get("/status")["checks"]
        return next(check for check in checks if check["name"] == "facility")


@contextmanager
def running_facility(
    database_url: str, certificates: Path, adapters: dict[str, dict[str, Any]], **changes: Any
) -> Iterator[Facility]:
    """Run a Facility Service; what is due is read before it is given away, and then only when asked for."""
    settings = FacilitySettings(
        **{
            "host": "127.0.0.1",
            "port": 0,
            "certificate": certificates / "server.pem",
            "key": certificates / "server.key",
            "database_url": database_url,
            "threads": 8,
            "adapters": adapters,
            "stations": {"25IDC": {"beamlines": ["25-ID-C"]}},
            "refresh_minutes": 600,
            **changes,
        }
    )
    service = build_from_settings(settings)
    service.store.migrate()
    service.readings.read()
    service.start()
    server = build_server(service, settings)
    server.start()
    facility = Facility(settings, certificates / "ca.pem", service, server)
    try:
        yield facility
    finally:
        facility.close()
