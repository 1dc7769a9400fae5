"""The routes about the life of experiments beyond adding and changing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dm.common.web.routes import ADMIN, MANAGER, Access, NoArguments, Request, Route, Who
from dm.site.storage import arguments as a
from dm.site.storage import life_arguments as la
from dm.site.storage.access import reference
from dm.site.storage.deletion import Deletion
from dm.site.storage.file_changes import FileChanges
from dm.site.storage.members import Members
from dm.site.storage.moving import Moving
from dm.site.storage.updates import Updates
from dm.site.storage.vault import Vault

_EXPERIMENT = frozenset({"experimentName"})
_FILE = _EXPERIMENT | {"path"}
_FILE_LIST_LIMIT = 8 << 20
MANAGER_BY_NAME = Access(Who.MANAGER, "experiment_name")
MANAGER_OF_STATION = Access(Who.MANAGER, "station_name")


@dataclass(frozen=True)
class Life:
    """The use cases of changing and ending experiments."""

    updates: Updates
    deletion: Deletion
    members: Members
    files: FileChanges
    moving: Moving
    vault: Vault


def routes(use: Life) -> list[Route]:
    """Return the rows."""

    def deleted(request: Request, arguments: a.ByStation) -> list[dict[str, Any]]:
        return use.deletion.listed(request.principal, arguments.station_name)

    def restore(request: Request, arguments: la.RestoreDeleted) -> dict[str, Any]:
        return use.deletion.restore(request.principal, arguments.experiment_id, arguments.new_name)

    def purge(request: Request, arguments: a.ById) -> dict[str, Any]:
        return use.deletion.purge(request.principal, arguments.experiment_id)

    def forget_key(request: Request, arguments: la.DeleteMetadata) -> dict[str, Any]:
        return use.members.delete_metadata(arguments.key, reference(arguments))

    def compress(request: Request, arguments: la.CompressFile) -> dict[str, Any]:
        return use.files.compress(
            request.principal, reference(arguments), arguments.path, arguments.root, arguments.compression
        )

    def decompress(request: Request, arguments: la.CompressFile) -> dict[str, Any]:
        return use.files.decompress(
            request.principal, reference(arguments), arguments.path, arguments.root, arguments.compression
        )

    def delete(request: Request, arguments: la.DeleteFiles) -> dict[str, Any]:
        return use.files.delete(request.principal, reference(arguments), arguments.paths, arguments.root)

    def pin(request: Request, arguments: la.PinExperiment) -> dict[str, Any]:
        return use.members.pin(request.principal.username, arguments.n_days, reference(arguments))

    def move(request: Request, arguments: la.MoveExperiment) -> dict[str, Any]:
        return use.moving.move(request.principal, reference(arguments), arguments.storage_name)

    def archive(request: Request, arguments: a.ByName) -> dict[str, Any]:
        return use.vault.archive(request.principal, reference(arguments))

    def from_archive(request: Request, arguments: a.ByName) -> dict[str, Any]:
        return use.vault.restore(request.principal, reference(arguments))

    def task(request: Request, arguments: a.OperationId) -> dict[str, Any]:
        return use.vault.get(request.principal, arguments.operation_id)

    def tasks(request: Request, arguments: NoArguments) -> list[dict[str, Any]]:
        return use.vault.listed(request.principal)

    one = "/deletedExperimentsById/{experimentId}"
    return [
        Route("GET", "/deletedExperimentsByStation/{stationName}", deleted, MANAGER_OF_STATION,
              "List the deleted experiments of a station that can still be restored.", a.ByStation),
        Route("PUT", f"{one}/restore", restore, MANAGER,
              "Restore a deleted experiment with its files and members; gives the operation.", la.RestoreDeleted),
        Route("DELETE", one, purge, ADMIN, "Remove a deleted experiment for good; gives the operation.", a.ById),
        Route("DELETE", "/experimentMetadata", forget_key, MANAGER_BY_NAME,
              "Remove one key of an experiment's own metadata.", la.DeleteMetadata, _EXPERIMENT),
        Route("PUT", "/experimentPins", pin, MANAGER_BY_NAME,
              "Keep an experiment from being deleted for some days.", la.PinExperiment, _EXPERIMENT),
        Route("PUT", "/experimentStorages", move, ADMIN,
              "Begin to move an experiment to another storage; gives the operation.", la.MoveExperiment, _EXPERIMENT),
        Route("GET", "/archiveTasks", tasks, MANAGER, "List the newest tasks of the archive."),
        Route("GET", "/archiveTasks/{operationId}", task, MANAGER, "Give a task of the archive.", a.OperationId),
        Route("POST", "/archiveTasks", archive, MANAGER_BY_NAME,
              "Begin to copy an experiment into the archive; gives the task.", a.ByName, _EXPERIMENT),
        Route("POST", "/archiveTasks/restore", from_archive, MANAGER_BY_NAME,
              "Begin to bring lost files of an experiment back from the archive; gives the task.", a.ByName,
              _EXPERIMENT),
        Route("POST", "/files/compress", compress, MANAGER_BY_NAME,
              "Begin to compress a published file; gives the operation.", la.CompressFile, _FILE),
        Route("POST", "/files/decompress", decompress, MANAGER_BY_NAME,
              "Begin to decompress a published file; gives the operation.", la.CompressFile, _FILE),
        Route("POST", "/files/delete", delete, MANAGER_BY_NAME,
              "Delete files of an experiment from storage; gives the operation.", la.DeleteFiles, _EXPERIMENT,
              body_limit=_FILE_LIST_LIMIT),
    ]  # fmt: skip
