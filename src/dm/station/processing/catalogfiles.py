"""Input files that the metadata catalog knows: those of a dataset, or those a query finds.

The catalog is asked under the station's service account, and only about an experiment of which the site has said that
the caller may see it: whoever may see an experiment may see its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dm.common import environment
from dm.common.errors import AuthenticationError, CommunicationError, ConfigurationError, ServiceUnavailable
from dm.common.settings import StationSettings
from dm.station.catalog.api import DatasetCatApi, FileCatApi

ROOT = "data"
TIMEOUT = 60.0


class CatalogFiles:
    """Finds files in the catalog of a station. Thread-safe; touches the network with the first question only.

    :param station: settings of the station. :param url: of the catalog; empty: ``DM_CAT_WEB_SERVICE_URL``.
    """

    def __init__(self, station: StationSettings, url: str = "") -> None:
        options: dict[str, Any] = {
            "ca_file": station.ca_file,
            "timeout": TIMEOUT,
            "credentials": lambda: environment.read_login_file(station.service_password_file),
        }
        user = station.service_username or None
        self._files = FileCatApi(user, url=url or None, **options)
        self._datasets = DatasetCatApi(user, url=url or None, **options)

    def find(self, experiment: str, dataset: str | None, query: Mapping[str, Any] | None, limit: int) -> list[str]:
        """Return paths below the experiment's data directory, in the order in which the files were first seen.

        :param experiment: name of one that the caller may see. :param dataset: whose files; else those of ``query``,
            a condition on keys of file records as for ``getExperimentFiles``.
        :param limit: one path more than this is returned when there are more.
        :raises ObjectNotFound: no such dataset. :raises InvalidArgument: the query is no good.
        :raises ServiceUnavailable: the catalog does not answer, or does not know this service.
        """
        try:
            if dataset is not None:
                found = self._datasets.getExperimentDatasetFiles(experiment, dataset, 0, limit + 1)
                records = [file for file in found if file.get("root", ROOT) == ROOT]
            else:
                wanted = {"$and": [{"root": ROOT}, dict(query or {})]} if query else {"root": ROOT}
                records = list(self._files.getExperimentFiles(experiment, wanted, 0, limit + 1, ["experimentFilePath"]))  # type: ignore[arg-type]
        except (AuthenticationError, CommunicationError, ConfigurationError) as error:
            raise ServiceUnavailable(f"The catalog cannot be asked for files: {error.message}") from error
        return [str(file["experimentFilePath"]) for file in records]

    def close(self) -> None:
        """Close the connections."""
        self._files.close()
        self._datasets.close()
