"""Clients of the ZeroMQ interface for tests: keys that are let in, the client, and plain sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from dm.common import curve
from dm.station.processing.zeromq import keys
from dm.station.processing.zeromq.client import ProcZmqApi
from dm.station.processing.zeromq.server import Gateway
from tests.service import storage_fixtures as storage

PATIENCE_MS = 30_000


def server_key(directory: Path) -> bytes:
    """Return the public key of the service whose keys are in a directory."""
    return curve.read(directory / "server.key").public


def client_key(directory: Path, account: str, name: str, *, all_events: bool = False, let_in: bool = True) -> Path:
    """Make a key pair, let it in, and return its secret file."""
    made = directory / "made"
    made.mkdir(exist_ok=True)
    public, secret = curve.make(made, name)
    if let_in:
        keys.authorise(directory, public, account, name, all_events)
    return secret


@dataclass
class Plain:
    """A plain pyzmq socket as any program has one."""

    socket: zmq.Socket[bytes]
    numbers: int = 0

    def ask(self, _patience: int = PATIENCE_MS, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer to it."""
        self.numbers += 1
        self.socket.send(json.dumps({"id": self.numbers, **request}).encode())
        answer = self.answer(_patience)
        assert answer["id"] == self.numbers
        return answer

    def answer(self, patience: int = PATIENCE_MS) -> dict[str, Any]:
        """Return the next answer."""
        assert self.socket.poll(patience), "no answer"
        answer: dict[str, Any] = json.loads(self.socket.recv_multipart()[-1])
        return answer

    def login(self, username: str) -> str:
        """Log in and return the session's id."""
        answer = self.ask(op="login", username=username, password=storage.password_of(username))
        return str(answer["result"]["session"])


@dataclass
class Peers:
    """What tests talk to a gateway with."""

    address: str
    events_address: str
    directory: Path
    context: zmq.Context[Any] = field(default_factory=zmq.Context)
    apis: list[ProcZmqApi] = field(default_factory=list)
    sockets: list[zmq.Socket[bytes]] = field(default_factory=list)

    def api(self, username: str, key_file: Path, **options: Any) -> ProcZmqApi:
        """Return the client of a user."""
        found = ProcZmqApi(
            username,
            storage.password_of(username),
            address=self.address,
            events_address=self.events_address,
            server_key=self.directory / "server.key",
            key_file=key_file,
            **options,
        )
        self.apis.append(found)
        return found

    def socket(self, key_file: Path | None, kind: int = zmq.DEALER, address: str | None = None) -> zmq.Socket[bytes]:
        """Return a connected socket; without a key it offers none (NULL)."""
        socket: zmq.Socket[bytes] = self.context.socket(kind)
        self.sockets.append(socket)
        socket.setsockopt(zmq.LINGER, 0)
        if key_file is not None:
            pair = curve.read_secret(key_file)
            socket.curve_serverkey = server_key(self.directory)
            socket.curve_publickey, socket.curve_secretkey = pair.public, pair.secret
        if kind == zmq.SUB:
            socket.subscribe(b"")
        socket.connect(address or (self.events_address if kind == zmq.SUB else self.address))
        return socket

    def plain(self, key_file: Path | None, kind: int = zmq.DEALER) -> Plain:
        """Return a socket for requests."""
        return Plain(self.socket(key_file, kind))


@contextmanager
def peers(gateway: Gateway, directory: Path) -> Iterator[Peers]:
    """Peers of a gateway within this process."""
    found = Peers(gateway.address, gateway.events_address, directory)
    try:
        yield found
    finally:
        for api in found.apis:
            api.close()
        found.context.destroy(linger=0)
