"""What the published API classes of this service share: their records, and how arguments are written."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from dm.common.client import ApiClient, segment
from dm.common.environment import STATION_NAME, URL_VARIABLES
from dm.common.records import DmObject

URL_VARIABLE = URL_VARIABLES["storage"]


class Experiment(DmObject):
    """An experiment (published section 7; keys an experiment does not have are left out)."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "id",
        "name",
        "experimentTypeId",
        "experimentStationId",
        "startDate",
        "endDate",
    ]


class User(DmObject):
    """A user: id, username, badge, names, email, isLocalUser, active, lastUpdate."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "username", "firstName", "lastName"]

    def getUsername(self) -> str:
        """Return the login name."""
        return str(self.data.get("username", ""))


class UserRole(DmObject):
    """A role of a user: username, roleName, and experimentName or stationName."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["username", "roleName", "experimentName", "stationName"]


class GroupSync(DmObject):
    """What comparing LDAP with the database found."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "dryRun",
        "groups",
        "drift",
        "missingGroupsCount",
        "extraGroupsCount",
        "wrongGidCount",
        "missingMembersCount",
        "extraMembersCount",
        "heldBack",
        "runTime",
    ]


class LoginLock(DmObject):
    """An account locked after failed logins: username, remote (``*``: from anywhere), retryAfter (seconds), time."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["username", "remote", "retryAfter", "time"]


class Operation(DmObject):
    """Something that goes on in the service: id, name, experimentName, status, errorMessage, times."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "name", "experimentName", "status"]


class Station(DmObject):
    """A station: id, name, description."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "name", "description"]


class Storage(DmObject):
    """A storage: id, name, description, storageHost, storageDirectory."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "name", "storageHost", "storageDirectory"]


class ExperimentType(DmObject):
    """An experiment type: id, name, description."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "name", "description"]


class FileMetadata(DmObject):
    """A file in storage."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "fileName", "experimentFilePath", "fileSize", "md5Sum"]


class DsApi(ApiClient):
    """Base: talks to the storage service."""

    URL_VARIABLE: ClassVar[str] = URL_VARIABLE


def station_of(name: str | None) -> str | None:
    """Return the station named, else that of the environment, else ``None``."""
    return name or os.environ.get(STATION_NAME) or None


def by_name(name: str, station: str | None) -> str:
    """Return the path of an experiment."""
    chosen = station_of(station)
    return f"/experimentsByName/{segment(name)}" + (f"/{segment(chosen)}" if chosen else "")


def given(**values: Any) -> dict[str, Any]:
    """Return those that are not ``None``."""
    return {key: value for key, value in values.items() if value is not None}
