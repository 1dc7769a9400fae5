"""Plugin ``notify``: tells programs outside DM of stored files, by a webhook or by ZeroMQ publishing."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dm.common import curve
from dm.common.errors import ConfigurationError
from dm.station.acquisition.plugins import message
from dm.station.acquisition.plugins.base import Plugin, PluginBatch, PluginContext
from dm.station.acquisition.plugins.message import Per

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PASSING = frozenset({408, 425, 429})
_SAID = 200
_LEAST_SECRET = 16


class WebhookSettings(BaseModel):
    """Where a webhook goes.

    :param url: HTTPS; plain HTTP only on this machine. :param secret_file: file with the key of the signature,
        at least 16 bytes. :param timeout: seconds for connecting, sending and answering, each.
    :param ca_file: certificate authority of the receiver; ``None``: the system's.
    """

    model_config = ConfigDict(extra="forbid")

    url: str
    secret_file: Path
    timeout: float = Field(default=10, gt=0, le=300)
    ca_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _safe(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(f"{value!r} is no http(s) address without a user name")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"{value!r} is plain HTTP to another machine; use https")
        return value


class PublishSettings(BaseModel):
    """Where ZeroMQ subscribers connect.

    :param bind: e.g. ``tcp://*:5557``. :param key_file: the server's secret CURVE key, a ``.key_secret`` file of pyzmq.
    :param clients: directory with the public keys (``.key``) of those who may subscribe.
    :param high_water_mark: messages kept for a subscriber that does not read; what is beyond is lost for it.
    """

    model_config = ConfigDict(extra="forbid")

    bind: str = Field(pattern=r"^(tcp|ipc)://\S+$")
    key_file: Path
    clients: Path
    high_water_mark: int = Field(default=10_000, ge=1)


class NotifySettings(BaseModel):
    """Settings ``[acquisition.plugins.notify]``: a ``webhook`` or a ``publish`` table.

    :param per: a message for each ``file`` or for each ``batch``.
    """

    model_config = ConfigDict(extra="forbid")

    per: Per = "batch"
    webhook: WebhookSettings | None = None
    publish: PublishSettings | None = None

    @model_validator(mode="after")
    def _one(self) -> NotifySettings:
        if (self.webhook is None) == (self.publish is None):
            raise ValueError("give either a webhook or a publish table; for both, use two plugins of class notify")
        return self


class Sender(Protocol):
    """What delivers messages."""

    def send(self, told: dict[str, Any]) -> tuple[str, bool]:
        """Deliver one.

        :returns: why it could not be, or empty text, and whether trying again may help.
        """

    def close(self) -> None:
        """Release what is held."""


class Notify(Plugin):
    """Sends the message of :mod:`~dm.station.acquisition.plugins.message`. The address comes from the settings only.

    A file counts as done also when the receiver refuses; its row says so. A receiver that is away is tried again.
    """

    name = "notify"
    summary = "Tells other programs of stored files, by a webhook or ZeroMQ."
    settings_model = NotifySettings
    required = False

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        super().__init__(settings, context)
        assert isinstance(settings, NotifySettings)
        self._per: Per = settings.per
        self._sender: Sender
        if settings.webhook is not None:
            self._sender = Webhook(settings.webhook)
            self.secrets = (settings.webhook.secret_file,)
        else:
            assert settings.publish is not None
            self._sender = Publisher(settings.publish)
            self.secrets = (settings.publish.key_file,)

    def process(self, batch: PluginBatch) -> None:
        """Send the messages in order; when the receiver is away, the rest waits with the one it missed."""
        away = ""
        for files in message.parts(batch, self._per):
            if not away and self.context.stop.is_set():
                away = "The service stops; the message is sent later."
            transient = bool(away)
            problem = away
            if not away:
                problem, transient = self._sender.send(message.message(self.context.station_name, batch, files))
                away = problem if transient else ""
            for file in files if problem else []:
                file.fail(problem, transient=transient)

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()


class Webhook:
    """Posts messages.

    Header ``Dm-Signature`` is ``t=<seconds since the epoch>,v1=<hex>``, where hex is the HMAC-SHA256, with the secret,
    of ``<t>.<body>``; ``Dm-Message`` is the message's id. Redirects are not followed.
    """

    def __init__(self, settings: WebhookSettings) -> None:
        import ssl

        import httpx

        self._settings = settings
        self._secret = _secret(settings.secret_file)
        parts = urlsplit(settings.url)  # users read it, and what follows the host may be a secret
        self._where = f"{parts.scheme}://{parts.netloc}"
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"Certificate authority file {settings.ca_file} of plugin notify cannot be used: {error}."
            ) from error
        self._http = httpx.Client(verify=context, timeout=settings.timeout, follow_redirects=False, trust_env=False)

    def send(self, told: dict[str, Any]) -> tuple[str, bool]:
        """Post one message; see :class:`Sender`."""
        import httpx

        body = message.text(told)
        headers = {
            "Content-Type": "application/json",
            "Dm-Message": str(told["id"]),
            "Dm-Signature": signature(self._secret, int(time.time()), body),
        }
        where = self._where
        try:
            with self._http.stream("POST", self._settings.url, content=body, headers=headers) as response:
                status = response.status_code
                said = b"" if response.is_success else next(response.iter_bytes(_SAID), b"")
        except (httpx.HTTPError, OSError) as error:
            return f"The webhook {where} does not answer: {error or type(error).__name__}.", True
        if 200 <= status < 300:
            return "", False
        words = " ".join(said.decode("utf-8", "replace").split())
        return f"The webhook {where} answered with status {status}: {words}", status >= 500 or status in _PASSING

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def signature(secret: bytes, seconds: int, body: bytes) -> str:
    """Return the value of header ``Dm-Signature``."""
    digest = hmac.new(secret, b"%d." % seconds + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


def _secret(file: Path) -> bytes:
    try:
        status, secret = file.stat(), file.read_bytes().strip()
    except OSError as error:
        raise ConfigurationError(f"Secret file {file} of plugin notify cannot be read: {error.strerror}.") from error
    if status.st_mode & 0o077:
        raise ConfigurationError(f"Secret file {file} of plugin notify may be read by others; chmod 600 it.")
    if len(secret) < _LEAST_SECRET:
        raise ConfigurationError(f"Secret file {file} of plugin notify has less than {_LEAST_SECRET} bytes.")
    return secret


class Publisher:
    """Publishes messages of two frames: the experiment's name and the JSON text.

    Connections are encrypted and subscribers known (CURVE). Publishing never waits: a subscriber that is slow or away
    loses messages and finds out from the ledger.
    """

    def __init__(self, settings: PublishSettings) -> None:
        import zmq
        from zmq.auth.thread import ThreadAuthenticator

        self._lock = threading.Lock()
        if not settings.clients.is_dir():
            raise ConfigurationError(
                f"Directory {settings.clients} of plugin notify, for subscribers' keys, is missing."
            )
        pair = curve.read_secret(settings.key_file)
        self._context = zmq.Context()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve(domain="*", location=str(settings.clients))
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, settings.high_water_mark)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.curve_publickey, self._socket.curve_secretkey = pair.public, pair.secret
        self._socket.curve_server = True
        try:
            self._socket.bind(settings.bind)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigurationError(f"Plugin notify cannot listen on {settings.bind}: {error}.") from error

    @property
    def endpoint(self) -> str:
        """Where it listens, with the port the system chose for ``tcp://127.0.0.1:*``."""
        import zmq

        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def send(self, told: dict[str, Any]) -> tuple[str, bool]:
        """Publish one message; see :class:`Sender`."""
        import zmq

        frames = [str(told["experimentName"]).encode("utf-8", "replace"), message.text(told)]
        try:
            with self._lock:
                self._socket.send_multipart(frames, flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return f"The message could not be published: {error}.", True
        return "", False

    def close(self) -> None:
        """Close the socket; what nobody has read yet is lost."""
        with self._lock:
            self._socket.close()
            self._authenticator.stop()
            self._context.term()
