"""What the acquisition service is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dm.common.client import RestClient
from dm.common.web.routes import Principal
from dm.station.acquisition.plugins.base import Plugin
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.store import Store
from dm.station.acquisition.transports.base import Transport


class Identity(Protocol):
    """What is needed of :class:`dm.station.identity.SiteIdentity`."""

    def experiment(self, principal: Principal, name: str) -> Any:
        """Return the experiment as this user sees it. :raises ObjectNotFound: ``... does not exist``."""


@dataclass(frozen=True)
class Parts:
    """What an :class:`~dm.station.acquisition.office.Office` is made of.

    :param user_client: makes a client of the storage service under a user's own session.
    :param secrets: files and directories of the service itself, never to be read as data.
    """

    store: Store
    site: StorageSite
    identity: Identity
    user_client: Callable[[Principal], RestClient]
    station: str
    settings: AcquisitionSettings
    transports: list[Transport]
    plugins: list[Plugin]
    secrets: tuple[Path, ...] = ()
