"""The notify plugin: real webhooks over HTTP(S), real ZeroMQ subscribers."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth import create_certificates, load_certificate

from dm.common.errors import ConfigurationError
from dm.station.acquisition.extensions import make_plugins
from dm.station.acquisition.plugins.notify import Notify, Publisher, signature
from tests.service.plugin_fixtures import NAMES, context, errors, plugin, stored

SECRET = b"correct horse battery staple"


class Receiver(ThreadingHTTPServer):
    """A site's own web server; answers with what is in ``answers``, then 204."""

    daemon_threads = False

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[tuple[int, bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((dict(self.headers), body))
                status, said = outer.answers.pop(0) if outer.answers else (204, b"")
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(said)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver(certificates: Path) -> Iterator[Receiver]:
    server = Receiver()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    file.chmod(0o600)
    return file


def webhook(receiver: Receiver, secret: Path, certificates: Path, **more: Any) -> Notify:
    url = f"https://localhost:{receiver.server_address[1]}/hook"
    table = {"url": url, "secret_file": str(secret), "ca_file": str(certificates / "ca.pem"), "timeout": 5}
    made = plugin("notify", webhook=table, **more)
    assert isinstance(made, Notify)
    return made


def test_a_webhook_gets_signed_messages(receiver: Receiver, secret: Path, certificates: Path, tmp_path: Path) -> None:
    notify = webhook(receiver, secret, certificates, per="file")
    batch = stored(tmp_path, {name: name for name in NAMES})
    try:
        notify.process(batch)
        notify.process(batch)  # as after a restart
    finally:
        notify.close()
    assert errors(batch) == {}
    told = [json.loads(body) for _headers, body in receiver.got]
    assert [os.fsencode(one["files"][0]["path"]) for one in told] == [*NAMES, *NAMES]
    assert [one["id"] for one in told[: len(NAMES)]] == [one["id"] for one in told[len(NAMES) :]]
    assert len({one["id"] for one in told}) == len(NAMES)
    for headers, body in receiver.got:
        seconds, signed = (part.partition("=")[2] for part in headers["Dm-Signature"].split(","))
        assert abs(time.time() - int(seconds)) < 300
        assert signed == hmac.new(SECRET, seconds.encode() + b"." + body, hashlib.sha256).hexdigest()
        assert headers["Dm-Message"] == json.loads(body)["id"]
    changed = stored(tmp_path, {NAMES[0]: b"other bytes"}, version=2)
    notify = webhook(receiver, secret, certificates)
    notify.process(changed)
    notify.close()
    last = json.loads(receiver.got[-1][1])
    assert (last["files"][0]["version"], last["id"] in {one["id"] for one in told}) == (2, False)


def test_answers_say_whether_to_try_again(receiver: Receiver, secret: Path, certificates: Path, tmp_path: Path) -> None:
    notify = webhook(receiver, secret, certificates, per="file")
    receiver.answers = [(204, b""), (400, b"what is <that>?"), (302, b""), (503, b"busy"), (204, b"")]
    batch = stored(tmp_path, dict.fromkeys((b"a", b"b", b"c", b"d", b"e"), b"1"))
    try:
        notify.process(batch)
    finally:
        notify.close()
    found = errors(batch)
    assert not found[b"b"][1] and "400: what is <that>?" in found[b"b"][0] and "/hook" not in found[b"b"][0]
    assert not found[b"c"][1] and "302" in found[b"c"][0]
    assert found[b"d"][1] and found[b"e"] == found[b"d"], "what comes after waits with it"
    assert len(receiver.got) == 4


def test_a_receiver_that_is_away(secret: Path, certificates: Path, receiver: Receiver, tmp_path: Path) -> None:
    notify = webhook(receiver, secret, certificates)
    plain = Notify(
        notify.settings_model.model_validate(
            {"webhook": {"url": "http://127.0.0.1:9/x-token?key=x-token", "secret_file": str(secret), "timeout": 1}}
        ),
        context(),
    )
    strange = plugin(
        "notify",
        webhook={"url": f"https://localhost:{receiver.server_address[1]}/hook", "secret_file": str(secret)},
    )
    batches = [stored(tmp_path, {b"a": b"1"}) for _ in range(2)]
    plain.process(batches[0])
    strange.process(batches[1])  # its certificate is of an authority this machine does not know
    for batch in batches:
        [(error, transient)] = errors(batch).values()
        assert "does not answer" in error and transient
        assert "x-token" not in error, "members of the experiment read it, and the address may be a secret itself"
    assert not notify.required
    for one in (notify, plain, strange):
        one.close()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Keys of the server, of a subscriber that is known, and of one that is not."""
    for directory in ("private", "clients"):
        (tmp_path / directory).mkdir()
    for name in ("server", "known", "stranger"):
        create_certificates(tmp_path / "private", name)
        (tmp_path / "private" / f"{name}.key_secret").chmod(0o600)
    (tmp_path / "private" / "known.key").rename(tmp_path / "clients" / "known.key")
    return tmp_path


def publish(keys: Path, **more: Any) -> Notify:
    table = {
        "bind": "tcp://127.0.0.1:*",
        "key_file": str(keys / "private" / "server.key_secret"),
        "clients": str(keys / "clients"),
        **more,
    }
    made = plugin("notify", publish=table)
    assert isinstance(made, Notify)
    return made


def subscriber(where: zmq.Context[Any], keys: Path, name: str | None, endpoint: str) -> Any:
    socket = where.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    if name is not None:
        socket.curve_publickey, socket.curve_secretkey = load_certificate(keys / "private" / f"{name}.key_secret")
        socket.curve_serverkey = load_certificate(keys / "private" / "server.key")[0]
    socket.subscribe(b"exp1")
    socket.connect(endpoint)
    return socket


def test_known_subscribers_hear_and_slow_ones_hold_nobody_up(keys: Path, tmp_path: Path) -> None:
    notify = publish(keys, high_water_mark=10)
    assert isinstance(notify._sender, Publisher)
    endpoint = notify._sender.endpoint
    batch = stored(tmp_path, {name: name for name in NAMES})
    with zmq.Context() as where:
        good, slow = (subscriber(where, keys, "known", endpoint) for _ in range(2))
        bad = [subscriber(where, keys, name, endpoint) for name in ("stranger", None)]
        deadline = time.monotonic() + 30
        while not good.poll(50):  # until its subscription has arrived
            assert time.monotonic() < deadline
            notify.process(batch)
        topic, text = good.recv_multipart()
        assert topic == b"exp1"
        assert [os.fsencode(file["path"]) for file in json.loads(text)["files"]] == NAMES
        for _ in range(3000):
            notify.process(batch)
        assert errors(batch) == {}
        assert not any(socket.poll(200) for socket in bad)
        for socket in (good, slow, *bad):
            socket.close()
    notify.close()


def test_settings_that_cannot_be(keys: Path, secret: Path, tmp_path: Path) -> None:
    open_secret = tmp_path / "open"
    open_secret.write_bytes(SECRET)
    open_secret.chmod(0o644)
    short = tmp_path / "short"
    short.write_bytes(b"short")
    short.chmod(0o600)
    good = {"url": "https://localhost/x", "secret_file": str(secret)}
    curve = {"bind": "tcp://127.0.0.1:*", "key_file": str(keys / "private" / "server.key_secret"), "clients": str(keys)}
    for table, said in (
        ({}, "either a webhook or a publish"),
        ({"webhook": good, "publish": curve}, "either a webhook or a publish"),
        ({"webhook": {**good, "url": "http://example.org/x"}}, "plain HTTP to another machine"),
        ({"webhook": {**good, "url": "https://me:secret@example.org/x"}}, "without a user name"),
        ({"webhook": {**good, "url": "file:///etc/passwd"}}, "no http"),
        ({"webhook": {**good, "secret_file": str(open_secret)}}, "chmod 600"),
        ({"webhook": {**good, "secret_file": str(short)}}, "less than 16 bytes"),
        ({"webhook": {**good, "secret_file": str(tmp_path / "none")}}, "cannot be read"),
        ({"webhook": {**good, "ca_file": str(tmp_path / "none")}}, "cannot be used"),
        ({"publish": {**curve, "bind": "udp://*:1"}}, "bind"),
        ({"publish": {**curve, "key_file": str(tmp_path / "none")}}, "cannot be used"),
        ({"publish": {**curve, "key_file": str(keys / "private" / "server.key")}}, "holds no secret key"),
        ({"publish": {**curve, "clients": str(tmp_path / "none")}}, "is missing"),
        ({"publish": {**curve, "bind": "tcp://203.0.113.1:9"}}, "cannot listen"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            make_plugins({"notify": table}, context())


def test_the_receiver_in_the_documentation_knows_our_messages() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "plugins.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "is_from_dm" in block]
    documented: dict[str, Any] = {}
    exec(code, documented)
    now, is_from_dm = int(time.time()), documented["is_from_dm"]
    assert is_from_dm(signature(SECRET, now, b"body"), b"body", SECRET)
    assert not is_from_dm(signature(SECRET, now, b"body"), b"other", SECRET)
    assert not is_from_dm(signature(SECRET, now, b"body"), b"body", b"another secret, also long")
    assert not is_from_dm(signature(SECRET, now - 3600, b"body"), b"body", SECRET)
