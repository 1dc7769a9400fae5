"""The REST client: calls with DM's errors, sessions, verified TLS and resumed downloads."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

from dm.common import environment, interface
from dm.common.errors import (
    AuthenticationError,
    CommunicationError,
    ConfigurationError,
    DmException,
    InvalidSession,
    from_wire,
)
from dm.common.tokens import is_token
from dm.common.wire import SESSION_COOKIE, base_url, decoded, json_text, lower_first, query_text, session_id

if TYPE_CHECKING:
    import httpx

DEFAULT_TIMEOUT = 60.0
CONNECT_TIMEOUT = 10.0
_KEEP_ALIVE_SECONDS = 5.0  # below the services' own limit, so that a connection is seldom closed under a request
_PROXY_PAUSES = (0.1, 0.4, 1.0)  # a proxy finds another service process, or the same one started again, within moments
_LARGE_BODY = 1 << 16  # bytes; from here on services look for a session before they read
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


Credentials = Callable[[], tuple[str, str]]


class SessionStore(Protocol):
    """Where a client keeps its session between programs (see :mod:`dm.common.sessionfile`)."""

    def load(self) -> str | None:
        """Return the kept session id, or ``None``."""

    def save(self, session: str | None) -> None:
        """Keep the session id; ``None`` forgets it."""


class RestClient:
    """Calls one DM service. Thread-safe; connections are kept and shared.

    :param url: base URL, with or without ``/dm``.
    :param username: :param password: for the login, which happens when the service first asks for one.
    :param ca_file: certificate authority file (PEM); default ``DM_CA_FILE``, else the system's. Certificates that
        do not verify are refused.
    :param session: session id of an earlier or forwarded login.
    :param timeout: seconds to wait for an answer.
    :param credentials: called at login for (user name, password) when no password was given.
    :param sessions: keeps the session between programs.
    :param forwarded_for: address of the caller we log in for, which a service believes from proxies it trusts.
    :param token: an API token to use instead of a session. One that stands in the password's place is used so as well:
        there is no login then, each request carries it.

    Every method raises the service's own exception class, or :class:`CommunicationError` naming the URL.
    """

    def __init__(
        self,
        url: str,
        username: str | None = None,
        password: str | None = None,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        session: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: Credentials | None = None,
        sessions: SessionStore | None = None,
        token: str | None = None,
        forwarded_for: str = "",
    ) -> None:
        self.url = base_url(url)
        self._forwarded_for = forwarded_for
        self.timeout = timeout
        self._username = username
        self._password = password
        self._credentials = credentials
        self._ca_file = ca_file
        self._sessions = sessions
        self._cookie = session_id(session) if session else None
        self._token = token
        self._loaded = session is not None or sessions is None
        self._login_lock = threading.Lock()
        self._failures = 0
        self._failure: DmException | None = None
        self._open_lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._process = 0

    # --- session ---------------------------------------------------------------------------------------------

    @property
    def cookie(self) -> str | None:
        """The session id, to forward to another client of the same service; setting ``None`` forgets it."""
        if not self._loaded and self._sessions is not None:
            self._loaded = True
            self._cookie = self._sessions.load()
        return self._cookie

    @cookie.setter
    def cookie(self, value: str | None) -> None:
        self._loaded = True
        self._cookie = session_id(value) if value else None

    def login(self) -> None:
        """Log in now. :raises AuthenticationError: no credentials, or the service refuses them."""
        with self._login_lock:
            self._login()
        if self._token is not None:
            decoded(self.send("GET", "/session"))

    def logout(self) -> None:
        """End the session at the service and forget it."""
        if self.cookie:
            with contextlib.suppress(AuthenticationError, InvalidSession):  # expired already: just as good
                self.post("/logout")
        self._keep_session(None)

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        with self._open_lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- calls -----------------------------------------------------------------------------------------------

    def get(
        self, path: str, /, *, headers: Mapping[str, str] | None = None, timeout: float | None = None, **query: Any
    ) -> Any:
        """GET and return the decoded JSON. ``query``: see :func:`query_text`."""
        return self.request("GET", path, query=query, headers=headers, timeout=timeout)

    def post(
        self,
        path: str,
        /,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **query: Any,
    ) -> Any:
        """POST a JSON body and return the decoded JSON."""
        return self.request("POST", path, body=body, query=query, headers=headers, timeout=timeout)

    def put(
        self,
        path: str,
        /,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **query: Any,
    ) -> Any:
        """PUT a JSON body and return the decoded JSON."""
        return self.request("PUT", path, body=body, query=query, headers=headers, timeout=timeout)

    def delete(
        self,
        path: str,
        /,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **query: Any,
    ) -> Any:
        """DELETE and return the decoded JSON."""
        return self.request("DELETE", path, body=body, query=query, headers=headers, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Call and return the decoded JSON; ``path`` is below ``/dm``, its segments made by :func:`segment`."""
        content = None if body is None else json_text(body).encode()

        def call() -> Any:
            response = self.send(method, path, query=query, headers=headers, content=content, timeout=timeout)
            return decoded(response)

        if content is not None and len(content) > _LARGE_BODY:
            return self._with_session(call)
        return self.with_login(call)

    def download(
        self,
        path: str,
        target: str | os.PathLike[str],
        /,
        *,
        size: int | None = None,
        digests: Mapping[str, str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Path:
        """Download into a file, resuming what an earlier attempt left; see :mod:`dm.common.download`.

        :param target: the file to write; it appears complete and verified, or not at all.
        :param size: expected bytes. :param digests: algorithm -> hex digest to verify (``md5``, ``xxh3_128``).
        :param progress: called with (bytes so far, total bytes).
        :returns: the target.
        :raises TransferError: what arrived is not what was sent.
        """
        from dm.common.download import download

        return download(self, path, Path(target), query, headers or {}, size, digests or {}, progress)

    def stream(self, path: str, /, *, timeout: float | None = None, **query: Any) -> Iterator[bytes]:
        """GET something of unknown length and yield its bytes as they come.

        The call is made with the first piece. A reply that breaks off is a :class:`CommunicationError`, never short.
        """
        import httpx

        def call() -> httpx.Response:
            response = self.send("GET", path, query=query, headers={"Accept": "*/*"}, timeout=timeout, stream=True)
            if response.status_code != 200:
                with contextlib.closing(response):
                    response.read()
                    decoded(response)
                raise CommunicationError(f"{response.url} answered HTTP {response.status_code}.")
            return response

        with contextlib.closing(self.with_login(call)) as response:
            try:
                yield from response.iter_bytes()
            except httpx.HTTPError as error:
                raise CommunicationError(f"The reply of {self.address(path)} broke off: {error}.") from error

    # --- the wire --------------------------------------------------------------------------------------------

    def with_login(self, call: Callable[[], Any]) -> Any:
        """Call; when the service asks for a login, log in once and call again."""
        used, failures = self.cookie, self._failures
        try:
            return call()
        except (AuthenticationError, InvalidSession) as refusal:
            with self._login_lock:
                if self._failure is not None and self._failures != failures:
                    # another thread tried meanwhile; one try is enough, many would lock the account
                    raise from_wire(self._failure.to_wire()) from None
                if self._cookie == used:  # otherwise another thread has logged in meanwhile
                    try:
                        self._login(refusal)
                    except DmException as failure:
                        self._failures, self._failure = self._failures + 1, failure
                        raise
            return call()

    def _with_session(self, call: Callable[[], Any]) -> Any:
        """Call with a large body: a service that knows no session breaks off instead of reading it."""
        unknown = self.cookie is None and self._token is None
        if unknown and (self._password is not None or self._credentials is not None):
            self.get("/session")
        used = self.cookie
        try:
            return self.with_login(call)
        except CommunicationError:
            self.get("/session")  # logs in when the session had ended, and only then the body was not read
            if self.cookie == used:
                raise
            return call()

    def address(self, path: str, query: Mapping[str, Any] | None = None) -> str:
        """Return the full URL of a path."""
        text = query_text(query or {})
        return f"{self.url}/{path.lstrip('/')}" + (f"?{text}" if text else "")

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        timeout: float | None = None,
        stream: bool = False,
    ) -> httpx.Response:
        """Send one request and return the response whatever its status; a stream must be closed by the caller.

        :raises CommunicationError: no answer.
        """
        import httpx

        url = self.address(path, query)
        sent = {"Accept": "application/json", **interface.headers(), **(headers or {})}
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        if self._token is not None:
            self._refuse_plain()
            sent["Authorization"] = f"Bearer {self._token}"
        elif self.cookie:
            sent["Cookie"] = f"{SESSION_COOKIE}={self.cookie}"
        limit = self.timeout if timeout is None else timeout
        waits = httpx.Timeout(limit, connect=min(limit, CONNECT_TIMEOUT))
        # Only what may safely be done twice is repeated by itself; for the rest the caller knows what was half done.
        repeatable = method == "GET" or path == "/login"
        attempts, pauses = (2 if repeatable else 1), list(_PROXY_PAUSES if repeatable else ())
        while True:
            attempts -= 1
            try:
                http = self._connection()
                response = http.send(
                    http.build_request(method, url, headers=sent, content=content, timeout=waits), stream=stream
                )
                if not pauses or not _of_proxy(response):
                    return self._understood(response)
                response.close()
                attempts += 1
                time.sleep(pauses.pop(0))
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                if not attempts:  # a kept connection may have been closed by the service just now: once more
                    raise self._no_answer(url, error, limit) from error
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
                raise self._no_answer(url, error, limit) from error

    def _understood(self, response: httpx.Response) -> httpx.Response:
        """Return a response of a service that speaks our interface. :raises CommunicationError: it does not."""
        try:
            interface.check_service(self.url, response.headers)
        except CommunicationError:
            response.close()
            raise
        return response

    def _refuse_plain(self) -> None:
        """Refuse to send a secret where others can read it. :raises CommunicationError: the address is not https."""
        parts = urlsplit(self.url)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise CommunicationError(f"A password is not sent to {self.url}: the address is not https.")

    def _connection(self) -> httpx.Client:
        """Return the connections of this process; a forked child must not speak on its parent's."""
        with self._open_lock:
            if self._http is None or self._process != os.getpid():
                import httpx

                limits = httpx.Limits(max_connections=None, keepalive_expiry=_KEEP_ALIVE_SECONDS)
                # Services are inside the facility: proxies of the environment are for the outside. The transport's
                # retry repeats only a failed connect, when nothing was sent yet.
                transport = httpx.HTTPTransport(verify=self._tls(), limits=limits, retries=1, trust_env=False)
                jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # we handle the one cookie ourselves
                self._http = httpx.Client(transport=transport, cookies=jar, trust_env=False)
                self._process = os.getpid()
                weakref.finalize(self, self._http.close)
            return self._http

    def _tls(self) -> ssl.SSLContext:
        ca_file = self._ca_file or os.environ.get(environment.CA_FILE) or None
        try:
            return ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ConfigurationError(
                f"Certificate authority file {ca_file} cannot be used: {error.strerror or error}; "
                f"give ca_file or set {environment.CA_FILE}."
            ) from error

    def _no_answer(self, url: str, error: Exception, limit: float) -> CommunicationError:
        import httpx

        where = url.partition("?")[0]
        reason = re.sub(r"^\[(?:Errno -?\d+|SSL)[^\]]*\]\s*", "", str(error)).strip() or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            what = "connection" if isinstance(error, httpx.ConnectTimeout) else "answer"
            wait = min(limit, CONNECT_TIMEOUT) if what == "connection" else limit
            return CommunicationError(f"No {what} from {where} within {wait:g} s: timed out.")
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            reason = re.sub(r"\s*\(_ssl.*", "", reason.partition("CERTIFICATE_VERIFY_FAILED]")[2] or reason).strip()
            return CommunicationError(
                f"The certificate of {where} is not trusted: {lower_first(reason)}; name its authority in "
                f"{environment.CA_FILE}."
            )
        return CommunicationError(f"No answer from {where}: {lower_first(reason).rstrip('.')}.")

    def _login(self, refusal: DmException | None = None) -> None:
        username, password = self._username or "", self._password
        if password is None and self._credentials is not None:
            username, password = self._credentials()
        if not username or password is None:
            raise refusal or AuthenticationError(
                f"No user name and password for {self.url}; give them or a login file."
            )
        self._refuse_plain()
        self._token = password if is_token(password) else None
        if self._token is not None:
            self._cookie = None
            return
        form = f"username={quote(username, safe='')}&password={quote(password, safe='')}".encode()
        self._cookie = None
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        if self._forwarded_for:
            headers["X-Forwarded-For"] = self._forwarded_for
        response = self.send("POST", "/login", content=form, headers=headers)
        decoded(response)
        for header in response.headers.get_list("set-cookie"):
            if found := session_id(header, bare=False):
                self._keep_session(found)
                return
        raise CommunicationError(f"The login at {self.url} brought no session.")

    def _keep_session(self, session: str | None) -> None:
        self._loaded = True
        self._cookie = session
        if self._sessions is not None:
            self._sessions.save(session)


def _of_proxy(response: httpx.Response) -> bool:
    """Whether a proxy says that it reached no service; a service that is busy says so in its own words."""
    return response.status_code in (502, 503, 504) and "dm-status-code" not in response.headers
