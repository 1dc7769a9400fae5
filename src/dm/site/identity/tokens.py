"""API tokens: for scripts and stations that work unattended, instead of passwords.

A token never gives more than its owner has at the moment. Its scopes restrict which routes it opens; system roles go
only with scope ``all``, and a token for one station leaves its owner only what they are there.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, RowMapping

from dm.common import timestamps, tokens
from dm.common.errors import AuthorizationError, InvalidArgument, InvalidSession, ObjectNotFound, ServiceLimit
from dm.common.health import Level
from dm.common.web.application import TOKEN_ID
from dm.common.web.routes import ALL, SCOPES, Principal
from dm.site import rules
from dm.site.database import registry_store
from dm.site.database.store import Store
from dm.site.identity import audit, token_store, user_store

DAYS = 90
MOST_DAYS = 366
_MOST_PER_USER = 50
_WARNING_DAYS = 7.0


def limited(principal: Principal, token_id: str, scopes: Sequence[str], station: str | None) -> Principal:
    """Return the owner of a token as the token makes them."""
    roles = principal.station_roles
    if station is not None:
        roles = {name: given for name, given in roles.items() if name == station}
    return replace(
        principal,
        system_roles=principal.system_roles if ALL in scopes and station is None else frozenset(),
        station_roles=roles,
        attributes=dict(principal.attributes) | {TOKEN_ID: token_id},
        scopes=frozenset(scopes),
        only_station=station,
    )


def principal_of(connection: Connection, text: str) -> Principal | None:
    """Return whose token it is, as the token makes them, and note its use; ``None`` if it is no good."""
    token = tokens.parse(text)
    row = token_store.live(connection, token.id, token.secret_hash) if token else None
    if token is None or row is None:
        return None
    if row.stale:
        token_store.touch(connection, token.id)
    return limited(user_store.principal(connection, row.user_id), token.id, row.scopes, row.station)


def bearer(store: Store, text: str) -> Principal:
    """Return whose token it is. :raises InvalidSession: unknown, expired, revoked, or its owner is not active."""
    if tokens.is_token(text):
        with store.transaction() as connection:
            principal = principal_of(connection, text)
        if principal is not None:
            return principal
    raise InvalidSession("The API token is not valid (any more); ask for another one (dm-add-token).")


def record(row: RowMapping) -> dict[str, Any]:
    """Return the published record of a token; of its secret nothing is left to show."""
    moments = {"created": row["created"], "expires": row["expires"], "used": row["used"], "revoked": row["revoked"]}
    state = "revoked" if row["revoked"] is not None else "expired" if row["expired"] else "active"
    return {
        "id": row["id"],
        "name": row["name"],
        "username": row["username"],
        "scopes": list(row["scopes"]),
        "stationName": row["station"],
        "createdBy": row["created_by"],
        "status": state,
    } | {name: timestamps.iso(moment) if moment is not None else None for name, moment in moments.items()}


class Tokens:
    """The use cases.

    :param most_days: longest life of a token.
    """

    def __init__(self, store: Store, most_days: int = MOST_DAYS) -> None:
        self._store = store
        self._most_days = most_days

    def add(  # noqa: PLR0917 - a token's properties
        self,
        principal: Principal,
        name: str,
        scopes: Sequence[str],
        username: str | None = None,
        station: str | None = None,
        days: int | None = None,
    ) -> dict[str, Any]:
        """Make a token.

        Everybody makes tokens for themselves; administrators and managers of a station also for the station's
        accounts: those with a role at the station that are nobody's own (no badge). A manager's are for that station.

        :param scopes: see :data:`dm.common.web.routes.SCOPES`. :param days: of life; default 90, or the site's limit.
        :returns: the record with ``token``, which is told only here.
        :raises InvalidArgument: a scope, life or name that cannot be. :raises ObjectNotFound: no such user or station.
        :raises AuthorizationError: not an account the caller may make tokens for.
        :raises ServiceLimit: the account has too many.
        """
        name = rules.plain_text(name, "Token's name")
        if not 1 <= len(name) <= 100:
            raise InvalidArgument("A token needs a name of 1 to 100 characters that says what it is for.")
        chosen = _scopes(scopes)
        life = min(DAYS, self._most_days) if days is None else days
        if not 1 <= life <= self._most_days:
            raise InvalidArgument(f"A token cannot live {life} days; take 1 to {self._most_days}.")
        token = tokens.new()
        with self._store.transaction() as connection:
            place = registry_store.required(connection, "station", station) if station else None
            user = self._owner(connection, principal, username or principal.username, station)
            if not user["active"]:
                raise InvalidArgument(f"User {user['username']!a} is not active.")
            if token_store.count_live(connection, user["id"]) >= _MOST_PER_USER:
                raise ServiceLimit(
                    f"User {user['username']!a} has {_MOST_PER_USER} tokens; revoke those that are not needed."
                )
            token_store.add(
                connection,
                {
                    "id": token.id,
                    "secret_hash": token.secret_hash,
                    "user_id": user["id"],
                    "name": name,
                    "scopes": chosen,
                    "station_id": place["id"] if place else None,
                    "created_by": principal.username,
                    "lifetime_days": life,
                },
            )
            audit.record(
                connection, "token.added", user["username"],
                tokenId=token.id, name=name, scopes=chosen, station=station, days=life,
            )  # fmt: skip
            row = token_store.get(connection, token.id)
        assert row is not None
        return record(row) | {"token": token.text}

    @staticmethod
    def _owner(connection: Connection, principal: Principal, username: str, station: str | None) -> RowMapping:
        user = user_store.user_by_name(connection, username) if "\0" not in username else None
        if username == principal.username and user is not None:
            return user
        refusal = (
            "Tokens are made for oneself; managers make them for their station's own accounts (name the station), "
            "administrators for those of all stations."
        )
        if not principal.is_admin and not _led_by(principal):
            raise AuthorizationError(refusal)
        if user is None:
            raise ObjectNotFound(f"User {username[:80]!a} does not exist.")
        account = user_store.principal(connection, user["id"])
        places = {name for name, roles in account.station_roles.items() if roles} & ({station} if station else set())
        if principal.is_admin and station is None:
            places = set(account.station_roles)
        if user["badge"] is not None or not (places if principal.is_admin else places & _led_by(principal)):
            raise AuthorizationError(refusal)
        return user

    def listing(self, principal: Principal, username: str | None = None, dead: bool = False) -> list[dict[str, Any]]:
        """Return one's own tokens and those for stations one manages; administrators see all.

        :param username: only those of this account. :param dead: also revoked and expired ones.
        """
        who = None if principal.is_admin else principal.username
        with self._store.transaction() as connection:
            rows = token_store.listing(connection, who, sorted(_led_by(principal)), dead)
        return [record(row) for row in rows if username in (None, row["username"])]

    def revoke(self, principal: Principal, token_id: str) -> dict[str, Any]:
        """Revoke a token; again is fine. It is dead at once at the site, at stations within 5 s.

        :raises ObjectNotFound: unknown, or neither the caller's own nor for a station the caller manages.
        """
        token_id = _uuid(token_id)
        with self._store.transaction() as connection:
            row = token_store.get(connection, token_id)
            if row is None or not _rules_over(principal, row):
                raise ObjectNotFound(f"Token {token_id} does not exist.")
            if token_store.revoke(connection, token_id):
                audit.record(connection, "token.revoked", row["username"], tokenId=token_id, station=row["station"])
            row = token_store.get(connection, token_id)
        assert row is not None
        return record(row)

    def warn(self) -> int:
        """Note tokens in use that end within a week, each once; return how many do. For the housekeeper."""
        with self._store.transaction() as connection:
            rows = token_store.ending(connection, _WARNING_DAYS)
            for row in rows:
                if not audit.known(connection, "token.ending", row["id"]):
                    moment = timestamps.iso(row["expires"])
                    audit.record(connection, "token.ending", row["id"], user=row["username"], expires=moment)
        return len(rows)

    def health(self) -> tuple[Level, str]:
        """Say whether tokens of stations' own accounts, which nobody uses by hand, end within a week."""
        with self._store.transaction() as connection:
            count = sum(row["badge"] is None for row in token_store.ending(connection, _WARNING_DAYS))
        return (
            "warning" if count else "ok",
            f"{count} API tokens of stations in use end within {_WARNING_DAYS:.0f} days",
        )

    def forget(self, days: float) -> int:
        """Remove tokens that ended so long ago, and return how many."""
        with self._store.transaction() as connection:
            return token_store.forget(connection, days)


def _uuid(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise InvalidArgument(f"Token id {value[:80]!a} is no UUID.") from None


def _scopes(scopes: Sequence[str]) -> list[str]:
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        what = f"Scope {unknown[0][:80]!a} is unknown" if unknown else "A token needs a scope"
        raise InvalidArgument(f"{what}; choose of {', '.join(SCOPES)}.")
    return sorted(set(scopes))


def _led_by(principal: Principal) -> set[str]:
    """Return the stations somebody is manager of, without being the station's service account as well.

    That one gives no grants, and must not get at them by the token of an account that does.
    """
    return {name for name, roles in principal.station_roles.items() if "manager" in roles and "service" not in roles}


def _rules_over(principal: Principal, row: RowMapping) -> bool:
    return principal.username == row["username"] or principal.is_admin or row["station"] in _led_by(principal)
