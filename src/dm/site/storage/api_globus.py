"""The API class for Globus groups of experiments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dm.common.client import segment
from dm.common.records import DmObject
from dm.site.storage.api_base import DsApi, given, station_of


class GlobusGroup(DmObject):
    """A Globus group: id, name, experimentName, stationName, countMembers, unknownUsers, collectionId, collectionPath.

    ``managed`` is false for a group that only its id is known of, because somebody wrote it into the experiment.
    """

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "name", "experimentName", "stationName", "countMembers"]


class GlobusDsApi(DsApi):
    """Globus groups that follow the members of experiments."""

    def createGlobusGroup(self, experimentName: str, stationName: str | None = None) -> GlobusGroup:
        """Create an experiment's group, with its members, and let them read it on the site's collection.

        :raises ObjectAlreadyExists: it has one. :raises InvalidObjectState: the site has no Globus groups.
        """
        body = {"experimentName": experimentName} | given(stationName=station_of(stationName))
        return GlobusGroup(self.client.post("/globusGroups", body))

    def getGlobusGroup(self, experimentName: str, stationName: str | None = None) -> GlobusGroup:
        """Return an experiment's group. :raises ObjectNotFound: it has none."""
        return GlobusGroup(self.client.get(_path(experimentName, stationName)))

    def getGlobusGroups(self) -> list[GlobusGroup]:
        """Return the groups of the caller's stations."""
        return self._records(GlobusGroup, self.client.get("/globusGroups"))

    def addGlobusGroupMembers(
        self,
        experimentName: str,
        usernames: Sequence[str] = (),
        managers: Sequence[str] = (),
        admins: Sequence[str] = (),
        stationName: str | None = None,
    ) -> GlobusGroup:
        """Add identities beyond the experiment's members, by role; without any, only compare the group with Globus.

        :param usernames: users of DM, or names of Globus identities; so with ``managers`` and ``admins``.
        """
        body = {"experimentName": experimentName} | given(stationName=station_of(stationName))
        people = {"usernames": list(usernames), "managers": list(managers), "admins": list(admins)}
        return GlobusGroup(self.client.post("/globusGroups/members", body | people))

    def deleteGlobusGroupMembers(
        self, experimentName: str, usernames: Sequence[str], stationName: str | None = None
    ) -> GlobusGroup:
        """Take identities out that were added beyond the experiment's members."""
        body = {"experimentName": experimentName, "usernames": list(usernames)}
        return GlobusGroup(
            self.client.delete("/globusGroups/members", body | given(stationName=station_of(stationName)))
        )

    def syncGlobusGroup(self, experimentName: str, stationName: str | None = None, dryRun: bool = False) -> GlobusGroup:
        """Compare a group with the experiment and put right what differs.

        :returns: the group with ``added``, ``removed``, ``changed`` (ids of identities), ``refused``.
        """
        body = {"experimentName": experimentName, "dryRun": dryRun} | given(stationName=station_of(stationName))
        return GlobusGroup(self.client.post("/globusGroups/sync", body))

    def deleteGlobusGroup(self, experimentName: str, stationName: str | None = None) -> GlobusGroup:
        """Delete an experiment's group and its access rule."""
        return GlobusGroup(self.client.delete(_path(experimentName, stationName)))


def _path(experiment: str, station: str | None) -> str:
    name = station_of(station)
    return f"/globusGroupsByExperiment/{segment(experiment)}" + (f"/{segment(name)}" if name else "")
