"""Carries out requests: the same sessions, rights, arguments and use cases as REST, through the same routes table."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dm.common import logs, timestamps
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    ConfigurationError,
    DmException,
    InternalError,
    InvalidRequest,
    InvalidSession,
    ServiceLimit,
)
from dm.common.statuses import INACTIVE
from dm.common.web import common
from dm.common.web.application import Application
from dm.common.web.arguments import Binder, shorten
from dm.common.web.replies import to_json
from dm.common.web.routes import PUBLIC, Principal, Request, Route
from dm.common.web.table import Entry
from dm.station.processing.zeromq.keys import ClientKey
from dm.station.processing.zeromq.messages import MAX_REPLY, OPERATIONS, OWN_ARGUMENTS, Operation, Wish

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("dm.access")
_audit_log = logging.getLogger("dm.audit")
_BY_ID = ("GET", "/processingJobsById/{jobId}")


@dataclass(frozen=True)
class Answer:
    """What a request came to.

    :param text: the answer as JSON. :param outcome: ``ok``, or the error's class.
    :param waits: seconds the caller would wait for the end of job ``job``, which has not ended; else 0.
    """

    text: bytes
    outcome: str
    waits: float = 0.0
    job: str = ""


class Desk:
    """Answers requests of peers whose key is let in. Everything here may block; several threads may call.

    :param application: the service's REST interface. :param station: its name.
    :raises ConfigurationError: an operation's route is missing.
    """

    def __init__(self, application: Application, station: str) -> None:
        self._application = application
        self._station = station
        self._entries = {(entry.route.method, entry.route.path): entry for entry in application.table.entries}
        self._own = {
            name: Binder(Route("POST", f"/{name}", lambda *_: None, PUBLIC, "", model))
            for name, model in OWN_ARGUMENTS.items()
        }
        for operation in OPERATIONS.values():
            for route in (operation.route, operation.by_owner):
                if route is not None and route not in self._entries:
                    raise ConfigurationError(f"The ZeroMQ interface lacks route {' '.join(route)}.")

    def answer(self, wish: Wish, key: ClientKey, remote: str) -> Answer:
        """Carry out a request. Never raises: what goes wrong becomes the answer.

        :param key: of the peer. :param remote: its address.
        """
        request_id = secrets.token_hex(8)
        began = time.perf_counter()
        with logs.request(request_id):
            answer = self._answered(wish, key, remote, request_id)
            took = (time.perf_counter() - began) * 1000
            size = len(answer.text)
            _access_log.info('%s %s "ZMQ %s" %s %d %.1fms', remote, key.account, wish.op, answer.outcome, size, took)
            return answer

    def _answered(self, wish: Wish, key: ClientKey, remote: str, request_id: str) -> Answer:
        try:
            result, waits = self._result(wish, key, remote, request_id)
            text = to_json({"id": wish.id, "result": {} if result is None else result})
            if len(text) > MAX_REPLY:
                raise ServiceLimit(
                    f"The answer is larger than {MAX_REPLY} bytes; ask for less of it, by limit and keyList."
                )
        except DmException as error:
            if error.http_status >= 500:
                _log.warning("%s: %s: %s", wish.op, type(error).__name__, error, exc_info=True)
            return refusal(wish.id, error, request_id)
        except UnicodeEncodeError as error:
            _log.warning("%s: bytes where text is needed", wish.op, exc_info=True)
            shown = shorten(error.object)
            return refusal(wish.id, InvalidRequest(f"Value {shown} is not valid UTF-8 text."), request_id)
        except (Exception, SystemExit):  # a defect must not take the service with it
            _log.exception("%s failed", wish.op)
            sentence = f"Internal error; the service's log has the details under request {request_id}."
            return refusal(wish.id, InternalError(sentence), request_id)
        job = str(result.get("id", "")) if waits > 0 else ""
        return Answer(text, "ok", waits, job)

    def _result(self, wish: Wish, key: ClientKey, remote: str, request_id: str) -> tuple[Any, float]:
        """Return what was asked for, and how long the caller would wait for more."""
        if wish.op in self._own:
            arguments = self._own[wish.op].bind({}, (), dict(wish.arguments))
            if wish.op == "ping":
                return self._ping(key), 0.0
            if wish.op == "login":
                return self._login(arguments, key, remote), 0.0
        session, principal = self._caller(wish, key)
        if wish.op == "logout":
            self._application.sessions.delete(session)
            _audit_log.info("logout user=%s remote=%s", principal.username, remote)
            return {}, 0.0
        request = Request(request_id, principal, {}, remote, session, "ZeroMQ")
        operation = OPERATIONS[wish.op]
        given = self._completed(operation, wish.arguments, request)
        entry = self._entry(operation, given)
        arguments = entry.binder.bind({}, (), given)
        waits = float(getattr(arguments, "wait_time", 0.0))
        if waits:  # the caller waits where no thread has to
            arguments = arguments.model_copy(update={"wait_time": 0.0})
        result = self._called(entry, request, arguments)
        return result, waits if waits and result.get("status") not in INACTIVE else 0.0

    def _ping(self, key: ClientKey) -> dict[str, Any]:
        return {
            "service": self._application.name,
            "station": self._station,
            "account": key.account,
            "time": timestamps.text(time.time()),
        }

    def _login(self, arguments: Any, key: ClientKey, remote: str) -> dict[str, Any]:
        if arguments.username != key.account:  # before the password is looked at: a key tries no others
            raise AuthorizationError(
                f"The key belongs to {key.account!r}; it cannot log in {shorten(arguments.username)}."
            )
        session, principal = self._application.sign_in(arguments.username, arguments.password, remote)
        if principal.username != key.account:
            self._application.sessions.delete(session)
            raise AuthorizationError(f"The key belongs to {key.account!r}, not to {principal.username!r}.")
        return {"session": session} | common.describe(principal)

    def _caller(self, wish: Wish, key: ClientKey) -> tuple[str, Principal]:
        if not wish.session:
            raise AuthenticationError("There is no session; log in first (operation login).")
        principal = self._application.sessions.get(wish.session)
        if principal is None:
            raise InvalidSession("The session is unknown or has expired; log in again.")
        if principal.username != key.account:
            raise AuthorizationError(f"The key belongs to {key.account!r}; the session does not.")
        return wish.session, principal

    def _completed(self, operation: Operation, given: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """Return the arguments with the job's owner, where the operation finds it."""
        arguments = dict(given)
        if arguments.get("owner") is None:
            arguments.pop("owner", None)
        if operation.finds_owner and "owner" not in arguments and "jobId" in arguments:
            entry = self._entries[_BY_ID]
            found = entry.binder.bind({}, (), {"jobId": arguments["jobId"]})
            arguments["owner"] = self._called(entry, request, found)["owner"]
        return arguments

    def _entry(self, operation: Operation, arguments: Mapping[str, Any]) -> Entry:
        route = operation.by_owner if operation.by_owner and "owner" in arguments else operation.route
        assert route is not None
        return self._entries[route]

    def _called(self, entry: Entry, request: Request, arguments: Any) -> Any:
        self._application.permit(request, arguments, entry.route)
        return entry.route.handler(request, arguments)


def refusal(id: str | int | None, error: DmException, request_id: str = "") -> Answer:
    """Return an error as an answer."""
    return Answer(to_json({"id": id, "error": error.to_wire(request_id)}), type(error).__name__)
