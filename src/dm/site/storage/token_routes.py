"""The routes about API tokens, sessions and the audit log, and their arguments."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dm.common.web.routes import MANAGER, USER, Arguments, NoArguments, Request, Route
from dm.site.identity.audit_log import MOST, AuditLog, Question
from dm.site.identity.sessions import SqlSessionStore
from dm.site.identity.tokens import Tokens


class AddToken(Arguments):
    """An API token to make."""

    name: str = Field(description="What it is for; 1 to 100 characters.")
    scopes: list[str] = Field(
        description="What it opens: read, storage, facility, catalog, acquisition, processing, all."
    )
    username: str | None = Field(default=None, description="Whose it is; default: the caller's own.")
    station_name: str | None = Field(default=None, description="Only for this station.")
    days: int | None = Field(default=None, description="How long it lives; default 90, or the site's limit.")


class ListTokens(Arguments):
    """Which API tokens."""

    username: str | None = Field(default=None, description="Only of this account.")
    all: bool = Field(default=False, description="Also those that are revoked or expired.")


class TokenId(Arguments):
    """An API token."""

    token_id: str = Field(description="Its UUID, which is no secret.")


class AuditQuestion(Arguments):
    """Which events of the audit log."""

    event: str | None = Field(default=None, description="E.g. login.refused, or login for all of the kind.")
    user: str | None = Field(default=None, description="Who acted, or whom it concerns.")
    subject: str | None = Field(default=None, description="E.g. an experiment as name/station, or a token's id.")
    since: str | float | None = Field(default=None, description="Like 05-Mar-26 or ISO 8601.")
    until: str | float | None = Field(default=None, description="Like 05-Mar-26 or ISO 8601; not included.")
    before: int | None = Field(default=None, description="Only events with a smaller id: the next page.")
    limit: int = Field(default=100, description=f"Events of a page; at most {MOST}.")


def routes(tokens: Tokens, log: AuditLog, sessions: SqlSessionStore) -> list[Route]:
    """Return the rows."""

    def add(request: Request, arguments: AddToken) -> dict[str, Any]:
        return tokens.add(
            request.principal,
            arguments.name,
            arguments.scopes,
            arguments.username,
            arguments.station_name,
            arguments.days,
        )

    def listing(request: Request, arguments: ListTokens) -> list[dict[str, Any]]:
        return tokens.listing(request.principal, arguments.username, arguments.all)

    def revoke(request: Request, arguments: TokenId) -> dict[str, Any]:
        return tokens.revoke(request.principal, arguments.token_id)

    def events(request: Request, arguments: AuditQuestion) -> dict[str, Any]:
        return log.page(request.principal, Question(**arguments.model_dump()))

    def own_sessions(request: Request, arguments: NoArguments) -> list[dict[str, Any]]:
        return sessions.of_user(request.principal.username, request.session_id)

    def end_sessions(request: Request, arguments: NoArguments) -> dict[str, Any]:
        return {"ended": sessions.delete_others(request.principal.username, request.session_id)}

    return [
        Route("POST", "/tokens", add, USER, "Make an API token; it is shown only now.", AddToken, tokens=False),
        Route("GET", "/tokens", listing, USER,
              "List one's own API tokens and those for stations one manages, newest last.", ListTokens),
        Route("DELETE", "/tokens/{tokenId}", revoke, USER, "Revoke an API token.", TokenId, tokens=False),
        Route("GET", "/sessions", own_sessions, USER, "List one's own sessions, last used first."),
        Route("DELETE", "/sessions", end_sessions, USER, "End all of one's own sessions but this one.", tokens=False),
        Route("GET", "/auditEvents", events, MANAGER,
              "List events of the audit log: administrators all, managers those of their stations.", AuditQuestion),
    ]  # fmt: skip
