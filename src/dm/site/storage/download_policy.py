"""Who may download from where: file contents over HTTPS only for callers in the networks the site allows.

A facility may want large data to leave by Globus or GridFTP, which have links and accounting of their own. Listings and
records of files stay open to members wherever they are.
"""

from __future__ import annotations

from sqlalchemy import RowMapping

from dm.common import networks
from dm.common.errors import AuthorizationError
from dm.common.web.routes import Request
from dm.site.database.store import Store
from dm.site.identity import audit
from dm.site.storage.experiments import Reference, find_visible
from dm.site.storage.outside_settings import DownloadSettings


class DownloadPolicy:
    """Decides for every request for a file's bytes."""

    def __init__(self, store: Store, settings: DownloadSettings) -> None:
        self._store = store
        self._everybody = networks.parsed(settings.allowed_networks)
        self._stations = {name: networks.parsed(named) for name, named in settings.station_networks.items()}
        self._types = {name: networks.parsed(named) for name, named in settings.type_networks.items()}
        self._elsewhere = settings.elsewhere.rstrip(". ")

    def check(self, request: Request, reference: Reference) -> None:
        """Let a download pass, or note that it did not.

        :raises ObjectNotFound: no experiment, or one the caller may not see.
        :raises AuthorizationError: not from there.
        """
        if not (self._everybody or self._stations or self._types):
            return
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, request.principal)
            if self._allowed(experiment, request.remote):
                return
            subject = f"{experiment['name']}/{experiment['station_name']}"
            audit.record(connection, "download.refused", subject)
        raise AuthorizationError(
            f"Files of experiment {experiment['name']!a} cannot be downloaded over HTTPS from {request.remote[:60]}, "
            f"which is outside the networks this site allows; {self._elsewhere}."
        )

    def _allowed(self, experiment: RowMapping, remote: str) -> bool:
        allowed = self._types.get(experiment["type_name"])
        if allowed is None:
            allowed = self._stations.get(experiment["station_name"], self._everybody)
        if not allowed:
            return True
        caller = networks.address(remote)
        return caller is not None and networks.hold(allowed, caller)
