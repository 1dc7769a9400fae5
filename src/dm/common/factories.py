"""The published factories: static methods that make API objects from the environment.

Classes are named as ``module:Class`` and imported at the first call, so that this module knows nothing of the services.
Every method accepts what the class accepts (user name, password, URL), and needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dm.common import plugins

Maker = Callable[..., Any]


def _maker(reference: str) -> Maker:
    def make(*args: Any, **options: Any) -> Any:
        return plugins.resolve(reference, "API class")(*args, **options)

    make.__doc__ = f"Return a ``{reference.partition(':')[2]}``."
    return make


class ProcApiFactory:
    """Processing service."""

    getWorkflowProcApi = staticmethod(_maker("dm.station.processing.api:WorkflowProcApi"))


class DaqApiFactory:
    """Data acquisition service."""

    getExperimentDaqApi = staticmethod(_maker("dm.station.acquisition.api:ExperimentDaqApi"))
    getServiceMonitorDaqApi = staticmethod(_maker("dm.station.acquisition.api:ServiceMonitorDaqApi"))


class DsApiFactory:
    """Storage service. ESAF records come from the facility database service, whichever factory is asked."""

    getExperimentDsApi = staticmethod(_maker("dm.site.storage.api:ExperimentDsApi"))
    getUserDsApi = staticmethod(_maker("dm.site.storage.api:UserDsApi"))
    getFileDsApi = staticmethod(_maker("dm.site.storage.api:FileDsApi"))
    getAuthDsApi = staticmethod(_maker("dm.site.storage.api:AuthDsApi"))
    getEsafDsApi = staticmethod(_maker("dm.site.facility.api:EsafApsDbApi"))
    getServiceMonitorDsApi = staticmethod(_maker("dm.site.storage.api:ServiceMonitorDsApi"))


class CatApiFactory:
    """Catalog."""

    getFileCatApi = staticmethod(_maker("dm.station.catalog.api:FileCatApi"))
    getDatasetCatApi = staticmethod(_maker("dm.station.catalog.api:DatasetCatApi"))
    getRunCatApi = staticmethod(_maker("dm.station.catalog.api:RunCatApi"))
    getServiceMonitorCatApi = staticmethod(_maker("dm.station.catalog.api:ServiceMonitorCatApi"))


class ApsDbApiFactory:
    """Facility database service: proposals and safety forms."""

    getBssApsDbApi = staticmethod(_maker("dm.site.facility.api:BssApsDbApi"))
    getEsafApsDbApi = staticmethod(_maker("dm.site.facility.api:EsafApsDbApi"))
    getApsUserDbApi = staticmethod(_maker("dm.site.facility.api:ApsUserDbApi"))
    getServiceMonitorApsDbApi = staticmethod(_maker("dm.site.facility.api:ServiceMonitorApsDbApi"))


class DmApiFactory:
    """All services in one object.

    :param username: :param password: given to every API object made, unless a call gives its own.
    """

    def __init__(self, username: str | None = None, password: str | None = None) -> None:
        self._options = {"username": username, "password": password}

    def __getattr__(self, name: str) -> Maker:
        for factory in (DsApiFactory, DaqApiFactory, CatApiFactory, ProcApiFactory, ApsDbApiFactory):
            if name.startswith("get") and hasattr(factory, name):
                maker = getattr(factory, name)
                return lambda *args, **options: maker(*args, **(options if args else self._options | options))
        raise AttributeError(f"{type(self).__name__} has no {name!r}.")
