"""The web application of a service: from its routes table to a WSGI callable.

CherryPy carries requests and replies (see :mod:`dm.common.web.shell`); what happens in between is here: find the
route, find the session, decode the arguments, ask the authorizer, call the handler, turn what it returns or raises
into a reply. No state is global, so several applications live in one process.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from dm.common import interface
from dm.common.caller import CALLER, Caller, calling, typed_name
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    DmException,
    InternalError,
    InvalidRequest,
    InvalidSession,
    ServiceLimit,
    ServiceUnavailable,
)
from dm.common.health import Health
from dm.common.logs import REQUEST_ID
from dm.common.web import common, cookies
from dm.common.web.arguments import parse_body, parse_pairs, shorten
from dm.common.web.replies import SECURITY_HEADERS, Reply, error_reply, json_reply, stream_reply
from dm.common.web.routes import ALL, READ, Access, Arguments, Principal, Request, Route, Stream, Who
from dm.common.web.sessions import SessionStore
from dm.common.web.shell import Shell
from dm.common.web.table import Entry, RouteTable, UnknownMethodError, UnknownPathError
from dm.common.web.throttle import LoginThrottle, TokenGuesses

ANONYMOUS = Principal("")
TOKEN_ID = "tokenId"  # noqa: S105 - names the attribute of a principal with the id of its API token
SMALL_BODY = 1 << 16
_log = logging.getLogger("dm.web")
_access_log = logging.getLogger("dm.access")
_audit_log = logging.getLogger("dm.audit")


class Authenticator(Protocol):
    """Checks passwords."""

    def login(self, username: str, password: str) -> Principal:
        """Return who this is.

        :raises AuthenticationError: wrong password or unknown user, with one and the same text.
        """
        ...


@runtime_checkable
class TokenChecker(Protocol):
    """Checks API tokens; an authenticator that is one too lets them be used."""

    def bearer(self, token: str) -> Principal:
        """Return whose token it is, with its scopes.

        :raises InvalidSession: unknown, expired or revoked, or its owner is not active.
        """
        ...


class Authorizer(Protocol):
    """Decides who may do what. It is asked for every route that is not public, after the session check."""

    def authorize(self, request: Request, access: Access, arguments: Arguments, route: Route) -> None:
        """Return when the caller may.

        :raises AuthorizationError: may not do this. :raises ObjectNotFound: may not even know of the object.
        """
        ...


@dataclass
class Call:
    """One request on its way through the application.

    :param method: upper case. :param target: the request target, still percent-encoded, as latin-1 text.
    :param headers: lower-case name -> value. :param body: all of it. :param remote: the peer's address.
    :param refusal: set by the server when it would not read the request, with the status to answer.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    remote: str
    refusal: tuple[DmException, int] | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    began: float = field(default_factory=time.perf_counter)
    username: str = "-"
    template: str = "none"

    @property
    def path(self) -> str:
        """The raw path without the query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The raw query."""
        return self.target.partition("?")[2]


class Application(Shell):
    """A service's WSGI callable.

    :param name: the service's name.
    :param routes: its table; login, logout, session, status, metrics and openapi are added.
    :param authenticator: checks passwords at login. :param authorizer: decides for every other route.
    :param sessions: keeps sessions. :param health: behind status and metrics.
    :param streams: byte streams served at the same time; each holds a worker, so it must be below the number of
        worker threads.
    :param throttle: limits failed logins.
    """

    def __init__(  # noqa: PLR0917 - the published order of its parts
        self,
        name: str,
        routes: list[Route],
        authenticator: Authenticator,
        authorizer: Authorizer,
        sessions: SessionStore,
        health: Health,
        *,
        streams: int = 32,
        throttle: LoginThrottle | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.authenticator = authenticator
        self.authorizer = authorizer
        self.sessions = sessions
        self.health = health
        self.throttle = throttle or LoginThrottle()
        self.guesses = TokenGuesses()
        self.stopping = threading.Event()
        self._introduction = interface.headers()
        self.routes = list(routes) + common.routes(self)
        self.table = RouteTable(self.routes)
        self._streams = threading.BoundedSemaphore(streams)
        self._requests = health.counter("requests", "Requests answered.", ("method", "route", "status"))
        self._seconds = health.histogram("request_seconds", "Seconds until the reply began.", ("method", "route"))
        self._children: dict[tuple[str, str, int], Any] = {}

    def admit(
        self, method: str, target: str, headers: Mapping[str, str], length: int | None, remote: str
    ) -> tuple[int, bool]:
        """Say how many body bytes the server may read for a request, knowing only its head.

        :param length: the announced length, ``None`` when unknown. :param remote: the caller's address.
        :returns: the limit, and whether the caller has a session (a large body without one is for public routes only).
        :raises DmException: a large body for a route that needs a session, without one.
        """
        try:
            route = self.table.match(method, target.partition("?")[0]).entry.route
        except (UnknownPathError, UnknownMethodError, DmException):
            return SMALL_BODY, False
        if route.access.who is Who.PUBLIC:
            return route.body_limit, False
        if length is None or length > SMALL_BODY:
            with calling(Caller(remote=remote, service=self.name)):
                self._find_session(headers, remote)
            return route.body_limit, True
        return min(route.body_limit, SMALL_BODY), False

    def answer(self, call: Call) -> Reply:
        """Answer a request. Never raises: whatever goes wrong becomes an error reply."""
        token = REQUEST_ID.set(call.id)
        caller = CALLER.set(Caller("", call.remote, call.id, self.name))
        try:
            try:
                reply = self._answer(call)
            except DmException as error:
                reply = self._failure(call, error)
            except UnicodeEncodeError as error:
                reply = self._unencodable(call, error)
            except (Exception, SystemExit):  # a handler that exits must not take the service with it
                _log.exception("%s %s failed", call.method, call.path[:500])
                reply = error_reply(
                    InternalError(f"Internal error; the service's log has the details under request {call.id}."),
                    call.id,
                )
            reply.headers.update(SECURITY_HEADERS)
            reply.headers.update(self._introduction)
            reply.headers["Dm-Request-Id"] = call.id
            self._count(call, reply.status)
            if isinstance(reply.body, bytes):
                self._log_access(call, reply.status, reply.length)
            else:
                reply.body = self._follow(call, reply.status, cast("Iterator[bytes]", reply.body))
            return reply
        finally:
            CALLER.reset(caller)
            REQUEST_ID.reset(token)

    def _answer(self, call: Call) -> Reply:
        if call.refusal is not None:
            error, status = call.refusal
            return error_reply(error, call.id, status)
        try:
            match = self.table.match(call.method, call.path)
        except UnknownPathError:
            error = InvalidRequest(f"There is no path {shorten(call.path)}; GET /dm/openapi lists all.")
            return error_reply(error, call.id, 404)
        except UnknownMethodError as other:
            allowed = ", ".join(other.allowed)
            reply = error_reply(
                InvalidRequest(f"Method {call.method[:20]} is not for path {shorten(call.path)}; use {allowed}."),
                call.id,
                405,
            )
            reply.headers["Allow"] = allowed
            return reply
        entry = match.entry
        call.template = entry.template
        if call.method != "GET" or entry.route.access.who is not Who.PUBLIC:  # status and metrics answer everybody
            interface.check_caller(self.name, call.headers)
        request = self._identify(call, entry)
        arguments = self._arguments(call, entry, match.path)
        if entry.route.access.who is not Who.PUBLIC:
            self.permit(request, arguments, entry.route)
        result = entry.route.handler(request, arguments)
        if isinstance(result, Reply):
            return result
        if isinstance(result, Stream):
            return self._stream(call, result)
        return json_reply(result)

    def permit(self, request: Request, arguments: Arguments, route: Route) -> None:
        """Return when the caller may: first what a token is for, then the service's rules.

        :raises AuthorizationError: may not do this. :raises ObjectNotFound: may not even know of the object.
        """
        principal = request.principal
        if not route.suffices(self.name, principal.scopes):
            raise AuthorizationError(_out_of_scope(self.name, route, principal.scopes or frozenset()))
        self.authorizer.authorize(request, route.access, arguments, route)

    def _identify(self, call: Call, entry: Entry) -> Request:
        """Find the caller; public routes do not look at cookies."""
        if entry.route.access.who is Who.PUBLIC:
            return Request(call.id, ANONYMOUS, call.headers, call.remote)
        session_id, principal = self._find_session(call.headers, call.remote)
        call.username = principal.username
        CALLER.set(
            Caller(principal.username, call.remote, call.id, self.name, str(principal.attributes.get(TOKEN_ID, "")))
        )
        return Request(call.id, principal, call.headers, call.remote, session_id)

    def _find_session(self, headers: Mapping[str, str], remote: str) -> tuple[str | None, Principal]:
        """Return the first of the request's session ids that is alive, and whose it is.

        An API token in the Authorization header comes first, and then cookies are not looked at: a page of another
        site cannot send that header.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and isinstance(self.authenticator, TokenChecker):
            with self.guesses.attempt(token.strip(), remote):
                return None, self.authenticator.bearer(token.strip())
        candidates = cookies.session_ids(headers.get("cookie", ""))
        for session_id in candidates:
            principal = self.sessions.get(session_id)
            if principal is not None:
                return session_id, principal
        if candidates:
            raise InvalidSession("The session is unknown or has expired; log in again.")
        raise AuthenticationError("There is no session; log in first (POST /dm/login).")

    @staticmethod
    def _arguments(call: Call, entry: Entry, path: dict[str, str]) -> Arguments:
        if call.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise InvalidRequest(
                f"Content encoding {shorten(call.headers['content-encoding'])} is not supported; send the body plain."
            )
        query = parse_pairs(call.query.encode("latin-1"), "The query")
        if query and entry.template in common.NO_QUERY:
            raise InvalidRequest("Send username and password in the request body, not in the URL, which gets logged.")
        body = parse_body(call.body, call.headers.get("content-type", ""))
        return entry.binder.bind(path, query, body)

    def _stream(self, call: Call, stream: Stream) -> Reply:
        reply = stream_reply(stream, call.headers, call.id)
        if isinstance(reply.body, bytes):
            return reply
        if not self._streams.acquire(blocking=False):
            error = ServiceUnavailable("Too many downloads are running; try again in a moment.")
            reply = error_reply(error, call.id)
            reply.headers["Retry-After"] = "5"
        else:
            reply.body = _Held(cast("Iterable[bytes]", reply.body), self._streams)
        return reply

    def _failure(self, call: Call, error: DmException) -> Reply:
        if error.http_status >= 500:
            _log.warning("%s %s: %s: %s", call.method, call.path[:500], type(error).__name__, error, exc_info=True)
        return error_reply(error, call.id)

    def _unencodable(self, call: Call, error: UnicodeEncodeError) -> Reply:
        """Name bytes that reached a place which takes only text (a database, a header), instead of failing."""
        if error.reason != "surrogates not allowed":
            _log.exception("%s %s failed", call.method, call.path[:500])
            return error_reply(InternalError(f"Internal error; see the log under request {call.id}."), call.id)
        _log.warning("%s %s: bytes where text is needed", call.method, call.path[:500], exc_info=True)
        return error_reply(InvalidRequest(f"Value {shorten(error.object)} is not valid UTF-8 text."), call.id)

    def _count(self, call: Call, status: int) -> None:
        key = (call.method if call.template != "none" else "other", call.template, status)
        children = self._children.get(key)
        if children is None:
            children = self._requests.labels(*map(str, key)), self._seconds.labels(*key[:2])
            self._children[key] = children
        children[0].inc()
        children[1].observe(time.perf_counter() - call.began)

    def _log_access(self, call: Call, status: int, size: int) -> None:
        if _access_log.isEnabledFor(logging.INFO):
            milliseconds = (time.perf_counter() - call.began) * 1000
            _access_log.info(
                '%s %s "%s %s" %d %d %.1fms',
                call.remote,
                call.username,
                call.method[:20],
                call.path[:500].encode("ascii", "backslashreplace").decode("ascii"),
                status,
                size,
                milliseconds,
            )

    def _follow(self, call: Call, status: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass a stream's chunks on; log its end, whichever it is."""
        return _Followed(self, call, status, chunks)

    def login(self, request: Request, username: str, password: str) -> Reply:
        """Check a password and begin a session (the handler of ``POST /login``)."""
        try:
            session_id, principal = self.sign_in(username, password, request.remote)
        except ServiceLimit as error:  # ours, or the site's that a station asked
            return error_reply(error, request.id, 429)
        reply = json_reply(common.describe(principal))
        reply.headers["Set-Cookie"] = cookies.set_session(session_id, time.time() + self.sessions.absolute_seconds)
        return reply

    def sign_in(self, username: str, password: str, remote: str) -> tuple[str, Principal]:
        """Check a password and begin a session, for REST and whatever else a service speaks.

        A session the caller already has is never reused: a session id is new at each login.

        :returns: the session's id and whose it is.
        :raises AuthenticationError: wrong. :raises ServiceLimit: too many wrong ones before.
        """
        try:
            with self.throttle.attempt(username, remote):
                impossible = not username or not password or "\0" in username + password
                if impossible or len(username) > 256 or len(password) > 1024:
                    # Nobody's name: what cannot be right takes as long as what is wrong.
                    username = password = "-"  # noqa: S105 - nobody's
                principal = self.authenticator.login(username, password)
        except (AuthenticationError, ServiceLimit) as error:
            shown = typed_name(username) or "(not shown)"
            _audit_log.warning("login refused user=%s remote=%s: %s", shown, remote, type(error).__name__)
            raise
        session_id = self.sessions.create(principal)
        _audit_log.info("login user=%s remote=%s", shorten(username), remote)
        return session_id, principal

    def logout(self, request: Request) -> Reply:
        """End every session whose id came with the request (the handler of ``POST /logout``)."""
        for session_id in cookies.session_ids(request.headers.get("cookie", "")):
            self.sessions.delete(session_id)
        _audit_log.info("logout user=%s remote=%s", shorten(request.principal.username), request.remote)
        reply = json_reply({})
        reply.headers["Set-Cookie"] = cookies.end_session()
        return reply


def _out_of_scope(service: str, route: Route, scopes: frozenset[str]) -> str:
    if not route.tokens:
        return "This cannot be done with an API token; log in with a password."
    enough = {service, ALL} | route.scopes | ({READ} if route.method == "GET" else set())
    return f"The API token is for {', '.join(sorted(scopes))}; this takes scope {' or '.join(sorted(enough))}."


class _Held:
    """Chunks that hold a place among the running streams until they are closed."""

    def __init__(self, chunks: Iterable[bytes], places: threading.BoundedSemaphore) -> None:
        self._chunks = iter(chunks)
        self._places: threading.BoundedSemaphore | None = places

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        """Give the place back and close what the chunks come from."""
        places, self._places = self._places, None
        if places is not None:
            places.release()
            close = getattr(self._chunks, "close", None)
            if close is not None:
                close()


class _Followed:
    """Chunks that are counted, under the request's id, and logged when closed."""

    def __init__(self, application: Application, call: Call, status: int, chunks: Any) -> None:
        self._application = application
        self._call = call
        self._status = status
        self._chunks = chunks
        self._sent = 0
        self._open = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = REQUEST_ID.set(self._call.id)
        try:
            chunk: bytes = next(self._chunks)
        except (StopIteration, GeneratorExit):
            raise
        except Exception:
            _log.exception("%s %s broke off", self._call.method, self._call.path[:500])
            raise
        finally:
            REQUEST_ID.reset(token)
        self._sent += len(chunk)
        return chunk

    def close(self) -> None:
        """Log the request and free what it held."""
        if self._open:
            self._open = False
            self._chunks.close()
            token = REQUEST_ID.set(self._call.id)
            self._application._log_access(self._call, self._status, self._sent)
            REQUEST_ID.reset(token)
