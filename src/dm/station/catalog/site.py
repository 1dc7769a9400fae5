"""What the catalog asks the site, always as the user who asks the catalog."""

from __future__ import annotations

from typing import Any, Protocol

from dm.common.client import RestClient, segment
from dm.common.errors import InvalidSession
from dm.common.settings import StationSettings
from dm.common.web.routes import Principal

SITE_COOKIE = "siteCookie"


class Identity(Protocol):
    """What is needed of :class:`dm.station.identity.SiteIdentity`."""

    def experiment(self, principal: Principal, name: str) -> Any:
        """Return the experiment as this user sees it. :raises ObjectNotFound: ``... does not exist``."""
        ...


class Site:
    """The site's storage service, for questions about experiments.

    :param station: settings of the station.
    :param identity: answers by name, with a short memory.
    """

    def __init__(self, station: StationSettings, identity: Identity) -> None:
        self._station = station
        self._identity = identity

    @property
    def station(self) -> str:
        """The station's name."""
        return self._station.name

    def experiment(self, principal: Principal, name: str) -> Any:
        """Return an experiment's record by name. :raises ObjectNotFound: none the user may see."""
        return self._identity.experiment(principal, name)

    def experiment_by_id(self, principal: Principal, experiment_id: int) -> Any:
        """Return an experiment's record by id. :raises ObjectNotFound: none the user may see."""
        with self._client(principal) as client:
            return client.get(f"/experimentsById/{segment(experiment_id)}")

    def experiments(self, principal: Principal) -> list[Any]:
        """Return the short records of the station's experiments the user may see."""
        with self._client(principal) as client:
            found: list[Any] = client.get(f"/experimentsByStation/{segment(self.station)}")
            return found

    def _client(self, principal: Principal) -> RestClient:
        cookie = principal.attributes.get(SITE_COOKIE)
        if not cookie:
            raise InvalidSession("The session knows no session at the site; log in again.")
        return RestClient(self._station.storage_service_url, ca_file=self._station.ca_file, session=cookie, timeout=30)
