"""The published class for users and roles."""

from __future__ import annotations

from typing import Any

from dm.common.client import segment
from dm.common.environment import STATION_NAME
from dm.common.errors import InvalidArgument
from dm.site.storage.api_base import DsApi, GroupSync, LoginLock, User, UserRole, given, station_of

_SYNC_SECONDS = 600.0  # a large directory that was empty takes minutes


class UserDsApi(DsApi):
    """Users and roles."""

    def getUsers(self) -> list[User]:
        """Return all users, newest last."""
        return self._records(User, self.client.get("/users"))

    def getUserByUsername(self, username: str) -> User:
        """Return a user with ``systemRoles`` and ``stationRoles``."""
        return User(self.client.get(f"/usersByUsername/{segment(username)}"))

    def addUser(  # noqa: PLR0917
        self,
        username: str,
        password: str | None = None,
        firstName: str | None = None,
        lastName: str | None = None,
        middleName: str | None = None,
        email: str | None = None,
    ) -> User:
        """Add a local user (administrators). :raises ObjectAlreadyExists: the name is taken."""
        names = given(password=password, firstName=firstName, lastName=lastName, middleName=middleName, email=email)
        return User(self.client.post("/users", {"username": username} | names))

    def updateUser(self, username: str, **changes: str | bool | None) -> User:
        """Change ``password``, ``firstName``, ``middleName``, ``lastName``, ``email`` or ``active`` (administrators).

        One who is not ``active`` has no sessions, cannot log in and their tokens are of no use; roles stay.

        :raises InvalidObjectState: the last administrator cannot be deactivated.
        """
        return User(self.client.put(f"/usersByUsername/{segment(username)}", given(**changes)))

    def changePassword(self, oldPassword: str, newPassword: str) -> User:
        """Change the caller's own password; ends all the caller's sessions."""
        body = {"oldPassword": oldPassword, "newPassword": newPassword}
        return User(self.client.put(f"/usersByUsername/{segment(self.username)}/password", body))

    def addUserExperimentRole(
        self, username: str, roleName: str, experimentName: str, stationName: str | None = None
    ) -> UserRole:
        """Make a user member of an experiment, as ``User`` or ``PI``. :raises ObjectAlreadyExists: is already."""
        body = {"username": username, "roleName": roleName, "experimentName": experimentName}
        return UserRole(self.client.post("/userExperimentRoles", body | given(stationName=station_of(stationName))))

    def deleteUserExperimentRole(
        self, username: str, roleName: str, experimentName: str, stationName: str | None = None
    ) -> UserRole:
        """Take a user's role in an experiment. :raises ObjectNotFound: the user does not have it."""
        query: dict[str, Any] = {"username": username, "roleName": roleName, "experimentName": experimentName}
        query |= given(stationName=station_of(stationName))
        return UserRole(self.client.delete("/userExperimentRoles", **query))

    def getUserStationRoles(self, stationName: str | None = None) -> list[UserRole]:
        """Return who has a role at the station."""
        station = station_of(stationName)
        if not station:
            raise InvalidArgument(f"No station is named; give stationName or set {STATION_NAME}.")
        return self._records(UserRole, self.client.get(f"/userStationRoles/{segment(station)}"))

    def addUserStationRole(self, username: str, roleName: str, stationName: str | None = None) -> UserRole:
        """Make a user ``manager``, or the ``service`` account, of a station (administrators)."""
        body = {"username": username, "roleName": roleName} | given(stationName=station_of(stationName))
        return UserRole(self.client.post("/userStationRoles", body))

    def deleteUserStationRole(self, username: str, roleName: str, stationName: str | None = None) -> UserRole:
        """Take a user's role at a station (administrators)."""
        query = {"username": username, "roleName": roleName} | given(stationName=station_of(stationName))
        return UserRole(self.client.delete("/userStationRoles", **query))

    def addUserSystemRole(self, username: str, roleName: str = "administrator") -> UserRole:
        """Make a user an administrator (administrators)."""
        return UserRole(self.client.post("/userSystemRoles", {"username": username, "roleName": roleName}))

    def deleteUserSystemRole(self, username: str, roleName: str = "administrator") -> UserRole:
        """Take a user's system role (administrators)."""
        return UserRole(self.client.delete("/userSystemRoles", username=username, roleName=roleName))

    def getLoginLocks(self) -> list[LoginLock]:
        """Return the accounts that are locked now after too many failed logins (administrators)."""
        return self._records(LoginLock, self.client.get("/loginLocks"))

    def syncGroups(self, dryRun: bool = False, force: bool = False) -> GroupSync:
        """Compare the groups (and people) in LDAP with the database and write the differences (administrators).

        :param dryRun: only say what differs. :param force: also remove more than ``storage.ldap.most_removals``.
        :returns: ``drift`` (how many differences), ``groups`` (how many there should be) and the lists
            ``missingGroups``, ``extraGroups``, ``wrongGid``, ``wrongName``, ``missingMembers``, ``extraMembers``,
            ``inTheWay``, each cut at 200 and with its ``<name>Count``; ``heldBack``, ``people``, ``runTime``.
        :raises InvalidObjectState: the site has no LDAP.
        """
        arguments = {"dryRun": dryRun, "force": force}
        return GroupSync(self.client.post("/groups/sync", arguments, timeout=_SYNC_SECONDS))

    def getGroupSync(self) -> GroupSync:
        """Return how far LDAP is behind: ``waiting`` (changes), ``oldest`` (seconds), ``last`` (report), ``age``."""
        return GroupSync(self.client.get("/groups/sync"))

    def unlockUser(self, username: str) -> User:
        """Let an account log in again at once (administrators); one that is not locked is fine."""
        return User(self.client.delete(f"/loginLocks/{segment(username)}"))
