"""Connections to the directory: verified TLS, several servers, bounded waiting, no referrals.

:mod:`ldap3` speaks the protocol; the certificate and the host name are checked by Python's own TLS, as everywhere in
DM.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
import string
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # ldap3 still uses older names of pyasn1
    import ldap3
    from ldap3.core.exceptions import LDAPExceptionError

from dm.common import tls
from dm.common.errors import ServiceUnavailable
from dm.site.identity.ldap.settings import LdapSettings

LOG = logging.getLogger(__name__)

ADD, DELETE, REPLACE = ldap3.MODIFY_ADD, ldap3.MODIFY_DELETE, ldap3.MODIFY_REPLACE
SUCCESS, NO_SUCH_ATTRIBUTE, VALUE_EXISTS, NO_SUCH_OBJECT, ENTRY_EXISTS = 0, 16, 20, 32, 68
# What a server answers to a bind that is refused for good reason: constraint violation (locked in some servers),
# no such object, inappropriate authentication (no password), invalid credentials, insufficient rights, unwilling.
REFUSED = frozenset({19, 32, 48, 49, 50, 53})
# Attribute and naming errors: undefined type, matching, constraint, value exists, syntax; no such object, bad DN;
# naming, object class, not on non-leaf, not on RDN, entry exists.
_ABOUT_THE_ENTRY = frozenset({16, 17, 18, 19, 20, 21, 32, 34, 64, 65, 66, 67, 68, 69})
_BAD_SECONDS = 30.0
_PLAIN = frozenset(string.ascii_letters + string.digits + "_-.")


class EntryRefused(ServiceUnavailable):
    """The server does not take one entry as it should be (its schema, a taken name); others are not concerned."""


class _Tls(ldap3.Tls):
    """ldap3's TLS with our own context, which verifies certificate and host name in the handshake."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._context = context

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Put TLS on an open connection; the socket's time limit holds for the handshake."""
        # Otherwise the first request waits 40 ms for the acknowledgement of the handshake's end.
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.socket = self._context.wrap_socket(connection.socket, server_hostname=connection.server.host)


@dataclass
class Attempt:
    """One errand at the directory, which somebody else may :meth:`abort`.

    :param seconds: for all of it; ``None``: each operation has ``timeout_seconds``.
    """

    seconds: float | None = None
    connection: Any = None
    aborted: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds left of its time. :raises ServiceUnavailable: none."""
        left = math.inf if self.seconds is None else self.began + self.seconds - time.monotonic()
        if self.aborted or left <= 0:
            raise ServiceUnavailable("The user directory does not answer; try again in a moment.")
        return left

    def abort(self) -> None:
        """End it: whoever waits for the server gets an error."""
        self.aborted = True
        found: socket.socket | None = getattr(self.connection, "socket", None)
        if found is not None:
            with contextlib.suppress(OSError):
                # The plain socket's shutdown: TLS's own would touch the state of a handshake under way.
                socket.socket.shutdown(found, socket.SHUT_RDWR)


class Directory:
    """The servers of the settings.

    :raises ConfigurationError: the password file or the CA file cannot be read.
    """

    def __init__(self, settings: LdapSettings) -> None:
        self.settings = settings
        self._password = settings.password()
        self._context = tls.client_context(settings.ca_file)
        self._bad: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, attempt: Attempt | None = None, bind: bool = True) -> Iterator[Any]:
        """Open a connection to the first server that answers, and close it at the end.

        :param attempt: limits the time of everything; without one each operation has ``timeout_seconds``.
        :param bind: as the service's account; else nobody is bound yet.
        :raises ServiceUnavailable: no server answers, or none takes the account.
        """
        connection = self._open(attempt, bind)
        try:
            yield connection
        except (LDAPExceptionError, OSError) as error:
            self._note_bad(connection.dm_url)
            raise ServiceUnavailable(f"The user directory broke off: {reason(error)}.") from error
        finally:
            close(connection)

    def _open(self, attempt: Attempt | None, bind: bool) -> Any:
        errors: list[str] = []
        urls = self._in_order()
        for number, url in enumerate(urls):
            limit = float(self.settings.timeout_seconds)
            if attempt is not None:
                # A server that hangs must leave time for the others.
                limit = min(limit, attempt.left / (len(urls) - number))
            connection = self._connection(url, limit)
            if attempt is not None:
                attempt.connection = connection
            try:
                self._connect(connection, url, bind)
            except Exception as error:  # a peer that speaks no LDAP makes ldap3 fail in any way
                close(connection)
                self._note_bad(url)
                LOG.warning("directory server %s: %s", url, reason(error))
                errors.append(f"{url}: {reason(error)}")
                continue
            with self._lock:
                self._bad.pop(url, None)
            return connection
        raise ServiceUnavailable("The user directory does not answer; try again in a moment.") from _Reasons(errors)

    def _connection(self, url: str, limit: float) -> Any:
        parts = urlsplit(url)
        server = ldap3.Server(
            parts.hostname,
            port=parts.port or (636 if parts.scheme == "ldaps" else 389),
            use_ssl=parts.scheme == "ldaps",
            tls=_Tls(self._context),
            get_info=ldap3.NONE,
            connect_timeout=limit,
        )
        connection = ldap3.Connection(
            server,
            client_strategy=ldap3.SYNC,
            auto_bind=ldap3.AUTO_BIND_NONE,
            auto_referrals=False,
            check_names=False,
            receive_timeout=max(math.ceil(limit), 1),
        )
        connection.dm_url = url
        return connection

    def _connect(self, connection: Any, url: str, bind: bool) -> None:
        connection.open(read_server_info=False)
        if not connection.server.ssl and not self.settings.plain(url):
            connection.start_tls(read_server_info=False)
            if not isinstance(connection.socket, ssl.SSLSocket):
                raise ServiceUnavailable(f"{url} does not begin TLS")
        if bind:
            self.bind_service(connection)

    def bind_service(self, connection: Any) -> None:
        """Bind as the service's account. :raises ServiceUnavailable: the server does not take it."""
        code = bind(connection, self.settings.bind_dn, self._password)
        if code in REFUSED:
            raise ServiceUnavailable(f"it refuses {self.settings.bind_dn}; check bind_dn and bind_password_file")
        if code != SUCCESS:
            raise ServiceUnavailable(f"it answered {connection.result.get('description')} to a bind")

    def _in_order(self) -> list[str]:
        """Return the servers as in the settings, those that failed a moment ago last."""
        now = time.monotonic()
        with self._lock:
            return sorted(self.settings.servers, key=lambda url: now - self._bad.get(url, -math.inf) < _BAD_SECONDS)

    def _note_bad(self, url: str) -> None:
        with self._lock:
            self._bad[url] = time.monotonic()

    def check(self) -> None:
        """Open a connection and bind. :raises ServiceUnavailable: see :meth:`opened`."""
        with self.opened():
            return


class _Reasons(Exception):  # noqa: N818 - no error of its own, only why another came about
    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("; ".join(errors))


def bind(connection: Any, dn: str, password: str) -> int:
    """Bind and return the result code. An empty password, which many servers take for nobody's, is never sent."""
    if not password:
        return 49
    connection.user, connection.password, connection.authentication = dn, password, ldap3.SIMPLE
    try:
        connection.bind(read_server_info=False)
        return int(connection.result["result"])
    finally:
        connection.password = None


def escaped_dn(value: str) -> str:
    """Return a value as it may stand in a DN, and in a filter, whatever it holds."""
    return "".join(
        character if character in _PLAIN else "".join(f"\\{octet:02x}" for octet in character.encode())
        for character in value
    )


escaped_filter = escaped_dn  # a back-slash and two hexadecimal digits stand for an octet in both


def close(connection: Any) -> None:
    """Close a connection in whatever state it is."""
    found = getattr(connection, "socket", None)
    with contextlib.suppress(Exception):  # a broken connection cannot say good-bye
        if not connection.closed:
            connection.unbind()
    if found is not None:
        with contextlib.suppress(OSError):
            found.close()


def reason(error: BaseException) -> str:
    """Return why something failed, in one line without secrets."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")


def done(connection: Any, *harmless: int) -> int:
    """Return the result code of the last operation, success or one of ``harmless``.

    :raises EntryRefused: it is about this entry. :raises ServiceUnavailable: it is about the server or our rights.
    """
    result = connection.result
    code = int(result["result"])
    if code != SUCCESS and code not in harmless:
        words = reason(Exception(f"{result.get('description')} {result.get('message') or ''}"))
        error = EntryRefused if code in _ABOUT_THE_ENTRY else ServiceUnavailable
        raise error(f"The user directory refused a change: {words}.")
    return code


def search(
    connection: Any, base: str, filter_text: str, attributes: Sequence[str], page: int = 500
) -> Iterator[dict[str, Any]]:
    """Yield the entries beneath ``base`` as ``{"dn": ..., attribute: [text, ...]}``; referrals are left alone.

    :raises ServiceUnavailable: the search failed. A base that is not there has no entries.
    """
    cookie: bytes | None = None
    while True:
        connection.search(
            base, filter_text, ldap3.SUBTREE, attributes=list(attributes), paged_size=page, paged_cookie=cookie
        )
        if done(connection, NO_SUCH_OBJECT) == NO_SUCH_OBJECT:
            return
        for entry in connection.response or ():
            if entry.get("type") == "searchResEntry":
                # Names of attributes come as the server likes to write them.
                values = {name.lower(): raw for name, raw in entry["raw_attributes"].items()}
                yield {"dn": entry["dn"]} | {
                    name: [value.decode("utf-8", "replace") for value in values.get(name.lower(), ())]
                    for name in attributes
                }
        controls = connection.result.get("controls") or {}
        cookie = controls.get("1.2.840.113556.1.4.319", {}).get("value", {}).get("cookie")
        if not cookie:
            return
