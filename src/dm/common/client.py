"""The client kit: base of all published API classes, and what they are made of."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from dm.common import environment
from dm.common.errors import AuthenticationError, ConfigurationError
from dm.common.records import DmObject
from dm.common.rest import DEFAULT_TIMEOUT, Credentials, RestClient, SessionStore
from dm.common.tokens import is_token
from dm.common.wire import base_url, segment

__all__ = ["ApiClient", "RestClient", "ServiceMonitorApi", "SessionStore", "segment"]

R = TypeVar("R", bound=DmObject)


class ApiClient:
    """Base of the published API classes: ``X(username=None, password=None, url=None)``.

    A first argument that starts with ``http`` is the URL. Without arguments the login file (``DM_LOGIN_FILE``) and
    the environment say who and where. Constructing never touches the network and never raises when something is
    missing; the first call does.

    :param ca_file: :param timeout: see :class:`RestClient`. :param session: a session to use instead of a login.
    :param credentials: asked for user name and password at login instead of the login file.
    :param keep_session: keep the session in ``~/.dm`` between programs. Commands do; scripts that construct
        an API object at import do not, so that nothing is written behind their back.
    """

    URL_VARIABLE: ClassVar[str] = ""

    def __init__(
        self,
        username: str | None = None,
        password: str | None = None,
        url: str | None = None,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        session: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: Credentials | None = None,
        keep_session: bool = False,
    ) -> None:
        if isinstance(username, str) and username.lower().startswith(("http://", "https://")):
            username, password, url = password, url, username
        self._username = username
        self._password = password
        self._url = url
        self._options: dict[str, Any] = {"ca_file": ca_file, "session": session, "timeout": timeout}
        self._credentials = credentials
        self._keep_session = keep_session
        self._client: RestClient | None = None
        self._client_lock = threading.Lock()

    @property
    def username(self) -> str:
        """The user name: given, else of the login file, else empty."""
        if self._username:
            return self._username
        path = environment.login_file_path()
        try:
            return environment.read_login_file(path)[0] if path else ""
        except ConfigurationError:
            return ""

    @property
    def url(self) -> str:
        """The service's address: given, else of the environment, else empty."""
        return self._url or os.environ.get(self.URL_VARIABLE, "")

    @property
    def client(self) -> RestClient:
        """The REST client, made at first use. :raises ConfigurationError: no usable address."""
        with self._client_lock:
            if self._client is None:
                if not self.url:
                    raise ConfigurationError(
                        f"The address of the service is not known; set {self.URL_VARIABLE} (source dm.setup.sh) "
                        "or give url."
                    )
                sessions, token = None, self._token()
                if self._keep_session and token is None:  # else a kept session would give more than the token does
                    from dm.common.sessionfile import SessionFile

                    sessions = SessionFile(base_url(self.url), self.username)
                self._client = RestClient(
                    self.url,
                    self._username,
                    self._password,
                    credentials=self._credentials or self._login_file,
                    sessions=sessions,
                    token=token,
                    **self._options,
                )
            return self._client

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _token(self) -> str | None:
        """Return the API token that stands in the password's place, given or in the login file."""
        if self._password is not None or (self._credentials is not None and not self._keep_session):
            return self._password if is_token(self._password) else None
        path = environment.login_file_path()
        try:
            username, password = environment.read_login_file(path) if path else ("", "")
        except ConfigurationError:
            return None  # told at the login
        return password if is_token(password) and self._username in (None, "", username) else None

    def _login_file(self) -> tuple[str, str]:
        """Read the login file at each login, so that a changed password is picked up by running programs."""
        path = environment.login_file_path()
        if path is None:
            raise AuthenticationError(
                f"No user name and password for {self.url}; give them, or name a login file in "
                f"{environment.LOGIN_FILE} (source dm.setup.sh)."
            )
        username, password = environment.read_login_file(path)
        if self._username not in (None, "", username):
            raise AuthenticationError(f"No password for user {self._username}; login file {path} is {username}'s.")
        return username, password

    @staticmethod
    def _record(kind: type[R], json: Any) -> R:
        """Return a JSON object as a record of the class."""
        return kind(json)

    @staticmethod
    def _records(kind: type[R], json: Iterable[Any]) -> list[R]:
        """Return a JSON array as records of the class."""
        return [kind(item) for item in json]


class ServiceMonitorApi(ApiClient):
    """What the service monitor classes of all services share."""

    def getServiceStatus(self) -> DmObject:
        """Return the service's health: service, status (ok, warning, critical), version, uptime in s, checks."""
        return DmObject(self.client.get("/status"))

    def clearServiceStatus(self) -> DmObject:
        """Reset the alarms the service has raised; a condition that persists raises its alarm again."""
        return DmObject(self.client.delete("/status"))
