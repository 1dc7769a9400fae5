"""A small service on the web kit, over real HTTPS, for the kit's own tests."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from dm.common import tls
from dm.common.errors import AuthenticationError, AuthorizationError, ObjectNotFound
from dm.common.health import Health
from dm.common.web.application import Application
from dm.common.web.routes import (
    ADMIN,
    USER,
    Access,
    Arguments,
    Principal,
    Request,
    Route,
    Stream,
    Who,
)
from dm.common.web.server import Server
from dm.common.web.sessions import MemorySessionStore

USERS = {"d123456": "right horse", "25idcuser": "station pass", "d999999": "stranger"}
CONTENT = bytes(range(256)) * 1200 + b"tail"


class EchoArguments(Arguments):
    name: str
    limit: int = 10
    query_dict: dict[str, Any] | None = None
    key_list: str | list[str] = "DEFAULT"
    flag: bool = False


class NameArguments(Arguments):
    name: str


class OptionalArguments(Arguments):
    station: str
    beamline: str | None = None
    year: int | None = None


class Directory:
    """Authenticator and authorizer over :data:`USERS`; ``25idcuser`` is an administrator."""

    def login(self, username: str, password: str) -> Principal:
        if USERS.get(username) != password:
            raise AuthenticationError("Incorrect username or password.")
        roles = frozenset({"administrator"}) if username == "25idcuser" else frozenset()
        return Principal(username, roles, {"25IDC": frozenset({"manager"})} if roles else {})

    def authorize(self, request: Request, access: Access, arguments: Arguments, route: Route) -> None:
        if access.who is Who.USER or request.principal.is_admin:
            return
        if access.who is Who.EXPERIMENT:
            if getattr(arguments, access.argument) == "mine" and request.principal.username == "d123456":
                return
            raise ObjectNotFound(f"Experiment {getattr(arguments, access.argument)!r} does not exist.")
        raise AuthorizationError(f"User {request.principal.username} may not do this.")


def echo(request: Request, arguments: EchoArguments) -> dict[str, Any]:
    return arguments.model_dump(by_alias=True) | {"caller": request.principal.username}


def fail(request: Request, arguments: Arguments) -> None:
    raise RuntimeError("the password is hunter2")


def leave(request: Request, arguments: Arguments) -> None:
    raise SystemExit(3)


def download(request: Request, arguments: NameArguments) -> Stream:
    def read(first: int, length: int) -> Iterator[bytes]:
        for begin in range(first, first + length, 65536):
            yield CONTENT[begin : min(begin + 65536, first + length)]

    return Stream(read, len(CONTENT), arguments.name, "v1", 1_700_000_000.0)


class Gate:
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, request: Request, arguments: Arguments) -> dict[str, Any]:
        self.entered.release()
        return {"waited": self.open.wait(30)}


def broken(request: Request, arguments: Arguments) -> Stream:
    return Stream(lambda first, length: iter([b"short"]), 100_000, "x", "v1")


def unmeasured(request: Request, arguments: NameArguments) -> Stream:
    def read(first: int, length: int) -> Iterator[bytes]:
        for number in range(1000):
            yield b"%d\n" % number * 50
            yield b""
        if arguments.name == "broken":
            raise OSError("the disk has gone")

    return Stream(read, None, arguments.name, "v1", content_type="text/plain")


def endless(request: Request, arguments: Arguments) -> Stream:
    def read(first: int, length: int) -> Iterator[bytes]:
        while True:
            yield bytes(1 << 20)

    return Stream(read, 1 << 40, "x", "v1")


def application(gate: Gate | None = None, **options: Any) -> Application:
    """Return the application."""
    routes = [
        Route("GET", "/unmeasured/{name}", unmeasured, USER, "Stream without a length.", NameArguments),
        Route("GET", "/echo/{name}", echo, USER, "Echo.", EchoArguments, frozenset({"name", "queryDict", "keyList"})),
        Route("POST", "/echo/{name}", echo, USER, "Echo.", EchoArguments, frozenset({"name", "queryDict", "keyList"})),
        Route("PUT", "/echo/{name}", echo, USER, "Echo.", EchoArguments, body_limit=3 << 20),
        Route("DELETE", "/admin/{name}", lambda request, arguments: None, ADMIN, "Administer.", NameArguments),
        Route(
            "GET",
            "/experiments/{name}",
            lambda request, arguments: {"name": arguments.name},
            Access(Who.EXPERIMENT, "name"),
            "One experiment.",
            NameArguments,
        ),
        Route("GET", "/fail", fail, USER, "Fail."),
        Route("GET", "/exit", leave, USER, "Exit."),
        Route("GET", "/files/{name}", download, USER, "Download.", NameArguments),
        Route("GET", "/broken", broken, USER, "Break off."),
        Route("GET", "/endless", endless, USER, "Never end."),
        Route("GET", "/nan", lambda request, arguments: {"value": float("nan")}, USER, "Not a number."),
        Route("GET", "/wait", gate or Gate(), USER, "Wait."),
        Route(
            "GET",
            "/esaf/stationEsafs/{station}[/{beamline}]",
            lambda request, arguments: arguments.model_dump(),
            USER,
            "Optional last segment.",
            OptionalArguments,
            frozenset({"station", "beamline"}),
        ),
    ]
    directory = Directory()
    sessions = options.pop("sessions", None) or MemorySessionStore()
    return Application("echo", routes, directory, directory, sessions, Health("echo", "25IDC"), **options)


@contextmanager
def running(certificates: Path, app: Application | None = None, **options: Any) -> Iterator[Server]:
    """A started server on a free port, stopped afterwards."""
    server = Server(
        app or application(), "127.0.0.1", 0, certificates / "server.pem", certificates / "server.key", **options
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def client(server: Server, certificates: Path, username: str | None = None) -> Iterator[httpx.Client]:
    """An HTTP client of the server, logged in when a user name is given."""
    context = tls.client_context(certificates / "ca.pem")
    with httpx.Client(base_url=server.url, verify=context, timeout=30) as session:
        if username is not None:
            reply = session.post("/login", data={"username": username, "password": USERS[username]})
            assert reply.status_code == 200, reply.text
        yield session


@contextmanager
def raw(server: Server, certificates: Path, timeout: float = 20) -> Iterator[ssl.SSLSocket]:
    """A TLS connection to write bytes on."""
    context = tls.client_context(certificates / "ca.pem")
    plain = socket.create_connection(("127.0.0.1", server.port), timeout)
    with plain, context.wrap_socket(plain, server_hostname="localhost") as sock:
        yield sock


def read_all(sock: socket.socket) -> bytes:
    """Read until the server closes; a reset counts as closing."""
    received = b""
    try:
        while data := sock.recv(65536):
            received += data
    except (ConnectionError, ssl.SSLError):
        pass
    return received
