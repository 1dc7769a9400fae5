"""Users: who may log in, their names and their roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from dm.common import timestamps
from dm.common import tokens as token_format
from dm.common.errors import (
    AuthenticationError,
    InvalidArgument,
    InvalidObjectState,
    InvalidSession,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceUnavailable,
)
from dm.common.web.routes import Principal
from dm.common.web.throttle import UndecidedLogin
from dm.site import rules
from dm.site.database import registry_store
from dm.site.database.store import Store
from dm.site.database.tables import experiment_roles, station_roles, system_roles
from dm.site.identity import audit, passwords, tokens, user_store
from dm.site.identity.refusals import Refusals
from dm.site.identity.user_store import Role

if TYPE_CHECKING:
    from dm.site.identity.ldap.login import DirectoryLogin

_TEXTS = ("first_name", "middle_name", "last_name", "email")


def user_record(row: RowMapping) -> dict[str, Any]:
    """Return the published record of a user's row; the password hash never leaves the database module."""
    return {
        "id": row["id"],
        "username": row["username"],
        "badge": row["badge"],
        "firstName": row["first_name"],
        "middleName": row["middle_name"],
        "lastName": row["last_name"],
        "email": row["email"],
        "isLocalUser": row["is_local_user"],
        "active": row["active"],
        "lastUpdate": timestamps.iso(row["last_update"]),
    }


def required_user(connection: Connection, username: str) -> RowMapping:
    """Return a user's row. :raises ObjectNotFound: unknown."""
    row = user_store.user_by_name(connection, username) if "\0" not in username else None
    if row is None:
        raise ObjectNotFound(f"User {username[:80]!a} does not exist.")
    return row


def give_role(connection: Connection, username: str, role: str, experiment_id: int) -> bool:
    """Make somebody a member; ``False`` if they had the role. :raises ObjectNotFound: no such user."""
    user = required_user(connection, username)
    return user_store.add_role(connection, Role(experiment_roles, user["id"], experiment_id, role))


def refuse_none_left(connection: Connection, username: str) -> None:
    """Refuse what would leave no administrator. :raises InvalidObjectState: it was the last one."""
    if user_store.administrators(connection) == 0:
        raise InvalidObjectState(f"User {username!a} is the last administrator; appoint another one first.")


def set_active(connection: Connection, row: RowMapping, active: bool, **details: Any) -> RowMapping:
    """Deactivate a user, which ends all their sessions and makes their tokens useless, or activate them again.

    From then on it is an administrator's word: no user directory takes it back.

    :param row: the user's. :param details: for the audit log, e.g. ``source``. :returns: the row as it is then.
    :raises InvalidObjectState: it is the last administrator.
    """
    if row["active"] == active and row["deactivated_by"] is None:
        return row
    user_store.administrators(connection)  # so that of two who deactivate each other one is refused
    values = {"active": active, "deactivated_by": None}
    changed = user_store.change_user(connection, row["username"], values) or row
    if not active:
        user_store.remove_sessions_of(connection, row["id"])
        refuse_none_left(connection, row["username"])
    audit.record(connection, "user.activated" if active else "user.deactivated", row["username"], **details)
    return changed


class Users:
    """The use cases.

    :param directory: the site's LDAP directory, where it checks passwords.
    """

    def __init__(self, store: Store, directory: DirectoryLogin | None = None) -> None:
        self._store = store
        self._directory = directory
        self.refusals = Refusals(store)

    def login(self, username: str, password: str) -> Principal:
        """Check a password.

        :returns: the user with roles. :raises AuthenticationError: wrong name or password, in the same words and time.
        :raises ServiceUnavailable: the database, or the directory, does not answer.
        """
        usable = "\0" not in username and len(username) <= 64 and username.isascii()
        if token_format.is_token(password):
            return self._login_by_token(username, password)
        with self._store.transaction() as connection:
            row = user_store.user_by_name(connection, username) if usable else None
        local = passwords.matches(password, row["password_hash"] if row else None)
        good = local or self._matches_at_directory(username if usable else "", password, row)
        if row is None or not good or not row["active"]:
            self.refusals.note(username, known=row is not None)
            raise AuthenticationError("Incorrect username or password.")
        with self._store.transaction() as connection:
            if local and passwords.outdated(row["password_hash"]):
                user_store.change_user(connection, username, {"password_hash": passwords.hashed(password)})
            return user_store.principal(connection, row["id"])

    def _matches_at_directory(self, username: str, password: str, row: RowMapping | None) -> bool:
        """Whether LDAP takes the password; whoever it is not asked about costs the same there."""
        if self._directory is None:
            return False
        known = row is not None and row["active"] and self._directory.asks_about(row["password_hash"] is not None)
        try:
            return self._directory.matches(username, password, known)
        except ServiceUnavailable as error:
            raise UndecidedLogin(str(error)) from error

    def _login_by_token(self, username: str, token: str) -> Principal:
        try:
            principal = self.bearer(token)
        except InvalidSession:
            principal = None
        if principal is None or principal.username != username:
            self.refusals.note(username, known=False, token=True)
            raise AuthenticationError("Incorrect username or password.")
        return principal

    def bearer(self, token: str) -> Principal:
        """Return whose API token it is (the web kit's token checker).

        :raises InvalidSession: unknown, expired or revoked, or its owner is not active.
        """
        return tokens.bearer(self._store, token)

    def has_password(self, username: str, password: str) -> bool:
        """Whether this is the user's password (no login, no count of failures). :raises ObjectNotFound: unknown."""
        with self._store.transaction() as connection:
            stored = required_user(connection, username)["password_hash"]
        return passwords.matches(password, stored)

    def all(self) -> list[dict[str, Any]]:
        """Return all users' records, newest last."""
        with self._store.transaction() as connection:
            return [user_record(row) for row in user_store.all_users(connection)]

    def get(self, username: str) -> dict[str, Any]:
        """Return one user's record with ``systemRoles`` and ``stationRoles``. :raises ObjectNotFound: unknown."""
        with self._store.transaction() as connection:
            row = required_user(connection, username)
            principal = user_store.principal(connection, row["id"])
        return user_record(row) | {
            "systemRoles": sorted(principal.system_roles),
            "stationRoles": {name: sorted(roles) for name, roles in sorted(principal.station_roles.items())},
        }

    def add(self, username: str, password: str | None = None, **details: str | None) -> dict[str, Any]:
        """Add a local user.

        :param password: ``None`` makes a user who cannot log in with a password.
        :param details: ``first_name``, ``middle_name``, ``last_name``, ``email``.
        :returns: the record. :raises ObjectAlreadyExists: the name is taken. :raises InvalidArgument: a bad value.
        """
        values: dict[str, Any] = {"username": rules.username(username), "badge": rules.badge_of(username)}
        values |= self._checked(details)
        if password is not None:
            values["password_hash"] = passwords.hashed(rules.password(password))
        try:
            with self._store.transaction() as connection:
                row = user_store.add_user(connection, values)
                audit.record(connection, "user.added", username)
                return user_record(row)
        except IntegrityError:
            raise ObjectAlreadyExists(f"User {username!a} already exists.") from None

    def update(
        self, username: str, password: str | None = None, active: bool | None = None, **details: str | None
    ) -> dict[str, Any]:
        """Change names, email or password; ``None`` leaves a value. A new password ends all the user's sessions.

        :param active: ``False`` ends the user's sessions too, and lets them in by no way until it is ``True`` again.
        :raises ObjectNotFound: unknown. :raises InvalidArgument: a bad value.
        :raises InvalidObjectState: the last administrator cannot be deactivated.
        """
        values = self._checked({key: value for key, value in details.items() if value is not None})
        if password is not None:
            values["password_hash"] = passwords.hashed(rules.password(password))
        with self._store.transaction() as connection:
            row = required_user(connection, username)
            if values:
                row = user_store.change_user(connection, username, values) or row
                if changed := sorted(set(values) - {"password_hash"}):
                    audit.record(connection, "user.changed", username, changed=changed)
            if password is not None:
                user_store.remove_sessions_of(connection, row["id"])
                audit.record(connection, "password.changed", username)
            if active is not None:
                row = set_active(connection, row, active)
            return user_record(row)

    def change_password(self, username: str, old: str, new: str) -> dict[str, Any]:
        """Replace one's own password.

        :raises AuthenticationError: the old one is wrong. :raises InvalidObjectState: it is the directory's.
        """
        if token_format.is_token(old):
            raise AuthenticationError("An API token is not the old password.")
        self.login(username, old)
        with self._store.transaction() as connection:
            kept_here = required_user(connection, username)["password_hash"] is not None
        if self._directory is not None and not kept_here:
            raise InvalidObjectState("Your password is kept in the facility's directory; change it there.")
        return self.update(username, new)

    @staticmethod
    def _checked(details: dict[str, str | None]) -> dict[str, Any]:
        unknown = set(details) - set(_TEXTS)
        if unknown:
            raise InvalidArgument(f"A user has no {sorted(unknown)[0]!a}.")
        return {key: rules.plain_text(value, f"User's {key.replace('_', ' ')}") for key, value in details.items()}

    def add_system_role(self, username: str, role: str) -> dict[str, Any]:
        """Make somebody an administrator. :raises ObjectAlreadyExists: is one already."""
        role = rules.role(role, rules.SYSTEM_ROLES)
        with self._store.transaction() as connection:
            user = required_user(connection, username)
            if not user_store.add_role(connection, Role(system_roles, user["id"], None, role)):
                raise ObjectAlreadyExists(f"User {username!a} already has system role {role!a}.")
            audit.record(connection, "role.given", username, role=role)
        return {"username": username, "roleName": role}

    def delete_system_role(self, username: str, role: str) -> dict[str, Any]:
        """Take a system role.

        :raises ObjectNotFound: the user does not have it. :raises InvalidObjectState: it is the last administrator.
        """
        role = rules.role(role, rules.SYSTEM_ROLES)
        with self._store.transaction() as connection:
            user = required_user(connection, username)
            user_store.administrators(connection)
            if not user_store.remove_role(connection, Role(system_roles, user["id"], None, role)):
                raise ObjectNotFound(f"System role {role!a} of user {username!a} does not exist.")
            refuse_none_left(connection, username)
            audit.record(connection, "role.taken", username, role=role)
        return {"username": username, "roleName": role}

    def add_station_role(self, username: str, role: str, station: str) -> dict[str, Any]:
        """Make somebody manager, or the service account, of a station. :raises ObjectAlreadyExists: is already."""
        role = rules.role(role, rules.STATION_ROLES)
        with self._store.transaction() as connection:
            user = required_user(connection, username)
            place = registry_store.required(connection, "station", station)
            if not user_store.add_role(connection, Role(station_roles, user["id"], place["id"], role)):
                raise ObjectAlreadyExists(f"User {username!a} already has role {role!a} at station {station!a}.")
            audit.record(connection, "role.given", username, role=role, station=station)
        return {"username": username, "roleName": role, "stationName": station}

    def delete_station_role(self, username: str, role: str, station: str) -> dict[str, Any]:
        """Take a station role. :raises ObjectNotFound: the user does not have it."""
        role = rules.role(role, rules.STATION_ROLES)
        with self._store.transaction() as connection:
            user = required_user(connection, username)
            place = registry_store.required(connection, "station", station)
            if not user_store.remove_role(connection, Role(station_roles, user["id"], place["id"], role)):
                raise ObjectNotFound(f"Role {role!a} of user {username!a} at station {station!a} does not exist.")
            audit.record(connection, "role.taken", username, role=role, station=station)
        return {"username": username, "roleName": role, "stationName": station}

    def station_roles(self, station: str) -> list[dict[str, Any]]:
        """Return ``username``, ``roleName``, ``stationName`` of everybody with a role at a station."""
        with self._store.transaction() as connection:
            place = registry_store.required(connection, "station", station)
            rows = user_store.roles_at_station(connection, place["id"])
        return [{"username": row["username"], "roleName": row["role"], "stationName": station} for row in rows]
