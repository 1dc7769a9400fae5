"""What the catalog asks the site, always as the user who asks the catalog."""

from __future__ import annotations

from typing import Any, Protocol

from dm.common.client import RestClient, segment
from dm.common.errors import AuthenticationError, CommunicationError, InvalidSession, ServiceUnavailable
from dm.common.settings import StationSettings
from dm.common.web.routes import Principal
from dm.station.identity import site_headers

_TIMEOUT = 30.0


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
        self._client = RestClient(station.storage_service_url, ca_file=station.ca_file, timeout=_TIMEOUT)

    @property
    def station(self) -> str:
        """The station's name."""
        return self._station.name

    def experiment(self, principal: Principal, name: str) -> Any:
        """Return an experiment's record by name. :raises ObjectNotFound: none the user may see."""
        return self._identity.experiment(principal, name)

    def experiment_by_id(self, principal: Principal, experiment_id: int) -> Any:
        """Return an experiment's record by id. :raises ObjectNotFound: none the user may see."""
        return self._ask(principal, f"/experimentsById/{segment(experiment_id)}")

    def experiments(self, principal: Principal) -> list[Any]:
        """Return the short records of the station's experiments the user may see."""
        found: list[Any] = self._ask(principal, f"/experimentsByStation/{segment(self.station)}")
        return found

    def close(self) -> None:
        """Close the connections to the site."""
        self._client.close()

    def _ask(self, principal: Principal, path: str) -> Any:
        headers = site_headers(principal)
        try:
            return self._client.get(path, headers=headers)
        except CommunicationError as error:
            raise ServiceUnavailable("The site's storage service does not answer; try again in a moment.") from error
        except (AuthenticationError, InvalidSession) as error:
            raise InvalidSession("The session at the site is over; log in again.") from error
