"""The class for API tokens, sessions and the audit log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from dm.common.client import segment
from dm.common.records import DmObject
from dm.site.storage.api_base import DsApi, given

_PAGE = 500


class Token(DmObject):
    """An API token: id, name, username, scopes, stationName, createdBy, status, created, expires, used, revoked.

    A new one also has ``token``, its text.
    """

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "id",
        "name",
        "username",
        "scopes",
        "stationName",
        "status",
        "expires",
        "token",
    ]


class Session(DmObject):
    """A session: created, used, tokenId (of the token it was opened with), current (whether it is the caller's)."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["created", "used", "tokenId", "current"]


class AuditEvent(DmObject):
    """An event of the audit log: id, time, service, event, actor, subject, remote, requestId, details."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "time", "event", "actor", "subject", "remote", "details"]


class TokenDsApi(DsApi):
    """API tokens, sessions and the audit log."""

    def addToken(
        self,
        name: str,
        scopes: Sequence[str],
        stationName: str | None = None,
        days: int | None = None,
        username: str | None = None,
    ) -> Token:
        """Make an API token; its key ``token`` is told only now.

        :param name: what it is for. :param scopes: of read, storage, facility, catalog, acquisition, processing, all.
        :param stationName: only for this station; default: for all its owner's. :param days: it lives; default 90.
        :param username: of an account of the station, for its managers and administrators; default: the caller's.
        :raises AuthorizationError: with a token, or for another person.
        """
        body = {"name": name, "scopes": list(scopes)}
        return Token(self.client.post("/tokens", body | given(stationName=stationName, days=days, username=username)))

    def getTokens(self, username: str | None = None, includeEnded: bool = False) -> list[Token]:
        """Return one's own tokens and those for stations one manages; administrators all.

        :param username: only of this account. :param includeEnded: also revoked and expired ones.
        """
        query: dict[str, Any] = given(username=username) | ({"all": True} if includeEnded else {})
        return self._records(Token, self.client.get("/tokens", **query))

    def revokeToken(self, id: str) -> Token:
        """Revoke a token: it is of no use any more. :raises ObjectNotFound: none that the caller may revoke."""
        return Token(self.client.delete(f"/tokens/{segment(id)}"))

    def getSessions(self) -> list[Session]:
        """Return the caller's sessions at the site, last used first."""
        return self._records(Session, self.client.get("/sessions"))

    def endOtherSessions(self) -> int:
        """End all of the caller's sessions but this one, and return how many there were."""
        return int(self.client.delete("/sessions")["ended"])

    def getAuditEvents(  # noqa: PLR0917
        self,
        event: str | None = None,
        user: str | None = None,
        subject: str | None = None,
        since: str | float | None = None,
        until: str | float | None = None,
        limit: int = 100,
    ) -> list[AuditEvent]:
        """Return the newest events that fit, oldest first (administrators; managers: of their stations).

        :param event: e.g. ``login.refused``, or ``login`` for all of the kind. :param user: who acted or is concerned.
        :param subject: e.g. ``experiment/station``. :param since: :param until: dates.
        """
        return list(self._newest(limit, given(event=event, user=user, subject=subject, since=since, until=until)))[::-1]

    def _newest(self, limit: int, query: dict[str, Any]) -> Iterator[AuditEvent]:
        """Yield events from the newest to the oldest, page by page."""
        before: int | None = None
        while limit > 0:
            page = self.client.get("/auditEvents", limit=min(limit, _PAGE), **query, **given(before=before))
            for event in reversed(page["events"]):
                yield AuditEvent(event)
            limit -= len(page["events"])
            before = page["before"]
            if before is None:
                return
