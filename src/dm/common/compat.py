"""The one table of import paths that scripts use, and the finder that serves them.

``import dm.proc_web_service.api.workflowProcApi`` and its kin name modules that do not exist on disk: the finder makes
an empty module whose attributes are imported from their real homes when they are asked for. Nothing here imports
anything of DM before that, so ``import dm`` stays light.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_STORAGE = "dm.site.storage.api"
_FACILITY = "dm.site.facility.api"
_ACQUISITION = "dm.station.acquisition.api"
_CATALOG = "dm.station.catalog.api"
_PROCESSING = "dm.station.processing.api"
_ERRORS = "dm.common.errors"
_FACTORIES = "dm.common.factories"

EXCEPTIONS = [
    "DmException",
    "InternalError",
    "CommunicationError",
    "ConfigurationError",
    "AuthorizationError",
    "AuthenticationError",
    "InvalidRequest",
    "InvalidArgument",
    "ServiceUnavailable",
    "TransferError",
    "ProcessingError",
    "InvalidSession",
    "ObjectNotFound",
    "ObjectAlreadyExists",
    "InvalidObjectState",
    "ServiceLimit",
    "TaskTimeout",
]

# class -> module of its real home
CLASSES: Mapping[str, str] = {
    "ExperimentDsApi": _STORAGE,
    "UserDsApi": _STORAGE,
    "FileDsApi": _STORAGE,
    "AuthDsApi": _STORAGE,
    "InspectionDsApi": _STORAGE,
    "TokenDsApi": _STORAGE,
    "ServiceMonitorDsApi": _STORAGE,
    "BssApsDbApi": _FACILITY,
    "EsafApsDbApi": _FACILITY,
    "ApsUserDbApi": _FACILITY,
    "ExperimentDaqApi": _ACQUISITION,
    "ServiceMonitorDaqApi": _ACQUISITION,
    "FileCatApi": _CATALOG,
    "DatasetCatApi": _CATALOG,
    "RunCatApi": _CATALOG,
    "ServiceMonitorCatApi": _CATALOG,
    "WorkflowProcApi": _PROCESSING,
    "ProcZmqApi": "dm.station.processing.zeromq.client",
    "ProcApiFactory": _FACTORIES,
    "DaqApiFactory": _FACTORIES,
    "DsApiFactory": _FACTORIES,
    "CatApiFactory": _FACTORIES,
    "ApsDbApiFactory": _FACTORIES,
    "DmApiFactory": _FACTORIES,
    "DmObject": "dm.common.records",
    **dict.fromkeys(EXCEPTIONS, _ERRORS),
}

CONSTANTS = [
    "dmProcessingStatus",
    "dmProcessingConstants",
    "dmExperimentConstants",
    "dmObjectLabels",
    "dmFileConstants",
    "dmUserConstants",
    "dmEsafConstants",
    "dmRole",
    "dmDatabaseConstants",
    "dmServiceConstants",
    "dmStatus",
]


def _classes_of(package: str, names: str) -> dict[str, dict[str, str]]:
    """Return table rows for modules named like the class they hold: ``<package>.workflowProcApi``."""
    return {f"{package}.{name[0].lower()}{name[1:]}": {name: f"{CLASSES[name]}:{name}"} for name in names.split()}


# module -> its names -> where they really are
MODULES: Mapping[str, Mapping[str, str]] = {
    **_classes_of("dm.proc_web_service.api", "WorkflowProcApi ProcApiFactory"),
    **_classes_of("dm.daq_web_service.api", "ExperimentDaqApi DaqApiFactory ServiceMonitorDaqApi"),
    **_classes_of(
        "dm.ds_web_service.api", "ExperimentDsApi UserDsApi FileDsApi AuthDsApi DsApiFactory ServiceMonitorDsApi"
    ),
    "dm.ds_web_service.api.esafDsApi": {"EsafDsApi": f"{_FACILITY}:EsafApsDbApi"},
    **_classes_of("dm.cat_web_service.api", "FileCatApi DatasetCatApi RunCatApi CatApiFactory ServiceMonitorCatApi"),
    **_classes_of("dm.aps_db_web_service.api", "EsafApsDbApi BssApsDbApi ApsDbApiFactory"),
    **_classes_of("dm.aps_user_db.api", "ApsUserDbApi"),
    **_classes_of("dm.common.api", "DmApiFactory"),
    **_classes_of("dm.common.exceptions", " ".join(EXCEPTIONS)),
    "dm.common.exceptions.configurationError": {
        "ConfigurationError": f"{_ERRORS}:ConfigurationError",
        "DmException": f"{_ERRORS}:DmException",
    },
    "dm.common.objects.dmObject": {"DmObject": "dm.common.records:DmObject"},
    "dm.common.objects.workflow": {"Workflow": f"{_PROCESSING}:Workflow"},
    "dm.common.objects.experiment": {"Experiment": f"{_STORAGE}:Experiment"},
    "dm.common.objects.fileMetadata": {"FileMetadata": f"{_CATALOG}:FileMetadata"},
    "dm.common.objects.collectionMetadata": {"CollectionMetadata": f"{_CATALOG}:CollectionMetadata"},
    "dm.common.utility.configurationManager": {"ConfigurationManager": "dm.common.environment:ConfigurationManager"},
    "dm.common.utility.singleton": {"Singleton": "dm.common.environment:Singleton"},
    "dm.common.utility.timeUtility": {"TimeUtility": "dm.common.timestamps:TimeUtility"},
    "dm.common.utility.loggingManager": {"LoggingManager": "dm.common.logs:LoggingManager"},
    **{f"dm.common.constants.{name}": {} for name in CONSTANTS},
}


def _children() -> dict[str, list[str]]:
    """Return package -> the served modules directly below it, for every package above a served module."""
    children: dict[str, list[str]] = {}
    for module in MODULES:
        name = module
        while "." in name:
            parent, _, child = name.rpartition(".")
            known = children.setdefault(parent, [])
            if child not in known:
                known.append(child)
            name = parent
    return children


CHILDREN: Mapping[str, list[str]] = _children()
_REAL = ("dm", "dm.common")


class AliasFinder:
    """Finds the modules of the table; last on ``sys.meta_path``, so that real modules win."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """Return a spec for a module of the table, or a package above one."""
        if fullname in MODULES or (fullname in CHILDREN and fullname not in _REAL):
            loader: Any = AliasLoader()
            return ModuleSpec(fullname, loader, is_package=fullname in CHILDREN)
        return None


class AliasLoader:
    """Fills a module of the table."""

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Let the import system make the module."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Give the module its names: constants at once, classes when they are asked for."""
        name = module.__name__
        module.__doc__ = "A published import path of DM; see dm.common.compat."
        parent, _, last = name.rpartition(".")
        if parent == "dm.common.constants":
            module.__dict__.update(importlib.import_module("dm.common.keys").GROUPS[last])
        else:
            serve(module, MODULES.get(name, {}))


def serve(module: ModuleType, names: Mapping[str, str]) -> None:
    """Let a module import attributes on demand: the given names, and the served modules below it."""
    children = CHILDREN.get(module.__name__, [])

    def lookup(attribute: str) -> Any:
        if attribute in names:
            home, _, real = names[attribute].partition(":")
            value = getattr(importlib.import_module(home), real)
            setattr(module, attribute, value)
            return value
        if attribute in children:
            return importlib.import_module(f"{module.__name__}.{attribute}")
        raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}")

    def listing() -> list[str]:
        return sorted({*module.__dict__, *names, *children})

    module.__dict__.update(__getattr__=lookup, __dir__=listing)
    if names:
        module.__dict__["__all__"] = sorted(names)


def install() -> None:
    """Serve the table: called once by ``import dm``."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(AliasFinder())
    serve(sys.modules["dm"], {name: f"{home}:{name}" for name, home in CLASSES.items()})
    serve(sys.modules["dm.common"], {})
