"""Grants: leave for a station's service account to publish into one experiment while nobody is logged in."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from dm.common.errors import AuthorizationError, InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.common.web.routes import Principal
from dm.site.database.store import Store
from dm.site.identity import audit
from dm.site.identity.users import required_user
from dm.site.storage import grant_store
from dm.site.storage.experiments import Reference, find_visible

HEADER = "dm-grant"
PURPOSES = ("daq", "upload", "job")
_TOKEN = re.compile(r"([0-9a-f-]{36})\.([A-Za-z0-9_-]{20,100})")


@dataclass(frozen=True)
class Grant:
    """A grant that holds."""

    id: str
    experiment_id: int
    station: str


def uuid_text(value: str, what: str) -> str:
    """Return a UUID in its canonical text. :raises InvalidArgument: it is none."""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise InvalidArgument(f"{what} {value[:80]!a} is no UUID.") from None


def check(connection: Connection, principal: Principal, header: str | None) -> Grant:
    """Return the grant a station service presents.

    :param header: the value of ``Dm-Grant``: id, dot, secret.
    :raises AuthorizationError: none, not valid (any more), or of another station than the caller's.
    """
    match = _TOKEN.fullmatch(header or "")
    if match is None:
        raise AuthorizationError("This call needs a grant for the experiment in its Dm-Grant header.")
    grant_id = uuid_text(match.group(1), "Grant")
    row = grant_store.valid(connection, grant_id, _hash(match.group(2)))
    if row is None or not principal.serves(row.station_name):
        raise AuthorizationError(
            f"Grant {grant_id} does not hold: it was revoked, or the user behind it no longer manages the station."
        )
    return Grant(grant_id, row.experiment_id, row.station_name)


class Grants:
    """The use cases."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, principal: Principal, reference: Reference, purpose: str) -> dict[str, Any]:
        """Record a grant on behalf of the caller, who must manage the experiment's station.

        :param purpose: ``daq``, ``upload`` or ``job``.
        :returns: id, secret (told only here), experimentId, experimentName, stationName, username, purpose.
        :raises AuthorizationError: the caller does not manage the experiment's station, or is its service account.
        """
        if purpose not in PURPOSES:
            raise InvalidArgument(f"Purpose {purpose[:80]!a} is unknown; choose one of {', '.join(PURPOSES)}.")
        secret = secrets.token_urlsafe(32)
        grant_id = str(uuid.uuid4())
        with self._store.transaction() as connection:
            row = find_visible(connection, reference, principal)
            if not principal.manages(row["station_name"]):
                raise AuthorizationError(f"Only managers of station {row['station_name']!a} may take data into it.")
            if principal.serves(row["station_name"]):
                # Whoever holds the account's login could else publish anywhere without anybody's leave.
                raise AuthorizationError(
                    f"User {principal.username!a} is the service account of {row['station_name']!a}, which uses "
                    "grants and gives none; start this under the name of a manager."
                )
            if row["state"] != "active":
                raise InvalidObjectState(f"Experiment {row['name']!a} is {row['state']} now; try again when it is not.")
            user = required_user(connection, principal.username)
            grant_store.add(
                connection,
                {
                    "id": grant_id,
                    "secret_hash": _hash(secret),
                    "experiment_id": row["id"],
                    "user_id": user["id"],
                    "purpose": purpose,
                },
            )
            audit.record(
                connection,
                "grant.added",
                grant_id,
                experiment=f"{row['name']}/{row['station_name']}",
                experimentId=row["id"],
                purpose=purpose,
            )
        return {
            "id": grant_id,
            "secret": secret,
            "experimentId": row["id"],
            "experimentName": row["name"],
            "stationName": row["station_name"],
            "username": principal.username,
            "purpose": purpose,
        }

    def revoke(self, principal: Principal, grant_id: str) -> dict[str, Any]:
        """Revoke a grant; again is fine. :raises ObjectNotFound: unknown, or of a station not the caller's."""
        grant_id = uuid_text(grant_id, "Grant")
        with self._store.transaction() as connection:
            station = grant_store.station_of(connection, grant_id)
            if station is None or not principal.manages(station):
                raise ObjectNotFound(f"Grant {grant_id} does not exist.")
            if grant_store.revoke(connection, grant_id):
                audit.record(connection, "grant.revoked", grant_id, station=station)
        return {"id": grant_id, "status": "revoked"}


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
