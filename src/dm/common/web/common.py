"""The routes every service has: login, logout, session, status, metrics and openapi."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field

from dm.common.health import Health
from dm.common.web.openapi import document
from dm.common.web.replies import Reply, json_reply
from dm.common.web.routes import ANY_SCOPE, PUBLIC, USER, Access, Arguments, NoArguments, Principal, Request, Route

if TYPE_CHECKING:
    from dm.common.web.application import Application

NO_QUERY = frozenset({"/dm/login"})


class LoginArguments(Arguments):
    """Who logs in. A name or password that cannot be is refused in the words of a wrong one."""

    ANY_TEXT: ClassVar[bool] = True

    username: str = Field(description="Login name.")
    password: str = Field(description="Password.", repr=False)


def describe(principal: Principal) -> dict[str, Any]:
    """Return what a caller may know of itself: ``{username, systemRoles, stationRoles}``, with a token ``scopes``."""
    described: dict[str, Any] = {
        "username": principal.username,
        "systemRoles": sorted(principal.system_roles),
        "stationRoles": {station: sorted(roles) for station, roles in sorted(principal.station_roles.items())},
    }
    if principal.scopes is not None:
        described["scopes"] = sorted(principal.scopes)
    if principal.only_station is not None:
        described["onlyStation"] = principal.only_station
    return described


def reset_alarms(health: Health, access: Access, summary: str = "Reset the alarms raised so far.") -> Route:
    """Return the row ``DELETE /status``, which published service monitors call; a service says who may.

    :returns: a route whose reply is the status after the reset.
    """

    def clear(request: Request, arguments: NoArguments) -> dict[str, Any]:
        health.clear()
        return health.status()

    return Route("DELETE", "/status", clear, access, summary)


def routes(application: Application) -> list[Route]:
    """Return the common rows, bound to an application."""

    def login(request: Request, arguments: LoginArguments) -> Reply:
        return application.login(request, arguments.username, arguments.password)

    def logout(request: Request, arguments: NoArguments) -> Reply:
        return application.logout(request)

    def session(request: Request, arguments: NoArguments) -> dict[str, Any]:
        return describe(request.principal)

    def status(request: Request, arguments: NoArguments) -> Reply:
        found = application.health.status()
        return json_reply(found, 503 if found["status"] == "critical" else 200)

    def metrics(request: Request, arguments: NoArguments) -> Reply:
        headers = {"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store", "Dm-Status-Code": "0"}
        return Reply(200, headers, application.health.metrics())

    def openapi(request: Request, arguments: NoArguments) -> dict[str, Any]:
        return document(application.name, application.routes)

    return [
        Route("POST", "/login", login, PUBLIC, "Log in and begin a session.", LoginArguments),
        Route("POST", "/logout", logout, USER, "End the session.", scopes=ANY_SCOPE),
        Route("GET", "/session", session, USER, "Tell who is logged in.", scopes=ANY_SCOPE),
        Route("GET", "/status", status, PUBLIC, "Tell how the service is (also without /dm); 503 when critical."),
        Route("GET", "/metrics", metrics, PUBLIC, "Give metrics in the Prometheus text format (also without /dm)."),
        Route("GET", "/openapi", openapi, USER, "Give this interface as an OpenAPI document.", scopes=ANY_SCOPE),
    ]
