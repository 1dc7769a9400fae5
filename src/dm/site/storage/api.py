"""The published Python API of the Storage Management Service: experiments, users, files in storage.

Methods without a ``stationName`` argument speak of the station in ``DM_STATION_NAME``; without that, an experiment's
name must be unique at the site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dm.common.client import ServiceMonitorApi, segment
from dm.common.errors import AuthenticationError
from dm.common.records import DmObject
from dm.site.storage.api_base import (
    URL_VARIABLE,
    DsApi,
    Experiment,
    ExperimentType,
    FileMetadata,
    GroupSync,
    LoginLock,
    Operation,
    Station,
    Storage,
    User,
    UserRole,
    given,
    station_of,
)
from dm.site.storage.api_experiments import ExperimentDsApi
from dm.site.storage.api_files import FileDsApi
from dm.site.storage.api_globus import GlobusDsApi, GlobusGroup
from dm.site.storage.api_permissions import InspectionDsApi
from dm.site.storage.api_tokens import AuditEvent, Session, Token, TokenDsApi
from dm.site.storage.api_users import UserDsApi

__all__ = [
    "AuditEvent",
    "AuthDsApi",
    "Experiment",
    "ExperimentDsApi",
    "ExperimentType",
    "FileDsApi",
    "FileMetadata",
    "GlobusDsApi",
    "GlobusGroup",
    "GroupSync",
    "InspectionDsApi",
    "LoginLock",
    "Operation",
    "ServiceMonitorDsApi",
    "Session",
    "Station",
    "Storage",
    "StorageServiceApi",
    "Token",
    "TokenDsApi",
    "User",
    "UserDsApi",
    "UserRole",
    "grant_header",
]


class AuthDsApi(DsApi):
    """Who the caller is."""

    def authenticateUser(self, username: str | None = None, password: str | None = None) -> DmObject:
        """Log in, by default with what the object was made with, and return username, systemRoles, stationRoles.

        :raises AuthenticationError: incorrect username or password.
        """
        if username is not None:
            if password is None:
                raise AuthenticationError(f"No password for user {username}.")
            other = AuthDsApi(username, password, self.url, ca_file=self._options["ca_file"])
            try:
                return other.authenticateUser()
            finally:
                other.close()
        self.client.login()
        return self.getAuthenticatedUser()

    def getAuthenticatedUser(self) -> DmObject:
        """Return username, systemRoles, stationRoles of the caller."""
        return DmObject(self.client.get("/session"))

    def logout(self) -> None:
        """End the session."""
        self.client.logout()


class ServiceMonitorDsApi(ServiceMonitorApi):
    """Health of the service."""

    URL_VARIABLE: ClassVar[str] = URL_VARIABLE


class StorageServiceApi(DsApi):
    """What a station's services call under their service account: grants and batches."""

    def addGrant(self, experimentName: str, purpose: str, stationName: str | None = None) -> DmObject:
        """Let the station publish into an experiment on the caller's behalf; see the routes table for the record."""
        body = {"experimentName": experimentName, "purpose": purpose} | given(stationName=station_of(stationName))
        return DmObject(self.client.post("/grants", body))

    def deleteGrant(self, id: str) -> DmObject:
        """Revoke a grant."""
        return DmObject(self.client.delete(f"/grants/{segment(id)}"))

    def openBatch(
        self,
        grant: Mapping[str, Any],
        batchId: str,
        *,
        source: str,
        root: str = "data",
        onConflict: str = "fail",
    ) -> DmObject:
        """Open a batch and return batchId, stagingDirectory, stagingHost.

        :param grant: record of :meth:`addGrant`.
        """
        body = {
            "batchId": batchId,
            "experimentId": grant["experimentId"],
            "root": root,
            "source": source,
            "onConflict": onConflict,
        }
        return DmObject(self.client.post("/batches", body, headers=grant_header(grant)))

    def submitBatch(self, grant: Mapping[str, Any], batchId: str, files: Sequence[Mapping[str, Any]]) -> DmObject:
        """Hand the staged files over."""
        path = f"/batches/{segment(batchId)}/files"
        return DmObject(self.client.put(path, {"files": [dict(file) for file in files]}, headers=grant_header(grant)))

    def getBatch(self, batchId: str, waitTime: float = 0.0) -> DmObject:
        """Return a batch's state and, once it is committed, the outcome of each file."""
        query: dict[str, Any] = {"waitTime": waitTime} if waitTime else {}
        return DmObject(self.client.get(f"/batches/{segment(batchId)}", timeout=waitTime + 30.0, **query))

    def deleteBatch(self, batchId: str) -> DmObject:
        """Give a batch up."""
        return DmObject(self.client.delete(f"/batches/{segment(batchId)}"))


def grant_header(grant: Mapping[str, Any]) -> dict[str, str]:
    """Return the request header that presents a grant."""
    return {"Dm-Grant": f"{grant['id']}.{grant['secret']}"}
