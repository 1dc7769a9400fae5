"""The routes table of the metadata catalog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dm.common.errors import AuthorizationError, InvalidArgument, ObjectNotFound, ServiceLimit
from dm.common.health import Health
from dm.common.web.common import reset_alarms
from dm.common.web.routes import MANAGER, USER, Request, Route, Who
from dm.common.web.routes import Access as Permission
from dm.station.catalog import arguments as given
from dm.station.catalog.access import Access
from dm.station.catalog.documents import DatasetCatalog, DocumentCatalog
from dm.station.catalog.filecollections import FileCollections
from dm.station.catalog.files import MAX_PAGE, FileCatalog, parse_query
from dm.station.catalog.operations import Operations
from dm.station.catalog.queries import Query
from dm.station.catalog.replies import Outcome
from dm.station.catalog.store import ExperimentRef

MEMBER = Permission(Who.EXPERIMENT, "experiment_name")
PI_ONLY = "principal investigators: free metadata only"
PI_TOO = "for principal investigators and managers"
CODED = frozenset({"experimentName", "queryDict", "keyList"})
Record = dict[str, Any]
Handler = Callable[[Request, Any], Any]


@dataclass(frozen=True)
class UseCases:
    """What the handlers call.

    :param count: told what became of records that came in bulk.
    """

    access: Access
    files: FileCatalog
    collections: FileCollections
    operations: Operations
    datasets: DatasetCatalog
    runs: DocumentCatalog
    health: Health
    count: Callable[[Outcome], None]


def routes(use: UseCases) -> list[Route]:
    """Return the whole table."""
    return [*FileRoutes(use).table(), *DocumentRoutes(use).table(), reset_alarms(use.health, MANAGER)]


class FileRoutes:
    """Handlers of files and collections."""

    def __init__(self, use: UseCases) -> None:
        self._access = use.access
        self._files = use.files
        self._collections = use.collections
        self._operations = use.operations
        self._count = use.count

    def _of(self, request: Request, arguments: given.Experiment) -> ExperimentRef:
        return self._access.experiment(request.principal, arguments.experiment_name)

    def find(self, request: Request, arguments: given.FileList) -> Any:
        """GET experimentFiles."""
        experiment, query = self._of(request, arguments), parse_query(arguments.query_dict)
        limit = arguments.limit
        if limit is not None and limit > MAX_PAGE:
            raise ServiceLimit(f"Limit {limit} is more than {MAX_PAGE}; take pages from /dm/experimentFilePages.")
        wanted = MAX_PAGE + 1 if limit is None else limit
        found = self._files.find(experiment, query, arguments.skip, wanted, arguments.key_list)
        if len(found) > MAX_PAGE:
            raise ServiceLimit(
                f"More than {MAX_PAGE} files match; give a limit, or take pages from /dm/experimentFilePages."
            )
        return found

    def page(self, request: Request, arguments: given.FilePage) -> Record:
        """GET experimentFilePages."""
        experiment, query = self._of(request, arguments), parse_query(arguments.query_dict)
        return self._files.page(experiment, query, arguments.after, arguments.limit, arguments.key_list, arguments.skip)

    def get(self, request: Request, arguments: given.FilePath) -> Record:
        """GET experimentFilesByPath."""
        return self._files.get(self._of(request, arguments), arguments.experiment_file_path, arguments.root)

    def get_by_id(self, request: Request, arguments: given.FileId) -> Record:
        """GET experimentFilesById."""
        return self._files.get_by_id(self._of(request, arguments), arguments.id)

    def add(self, request: Request, arguments: given.FileInfo) -> Record:
        """POST experimentFiles."""
        return self._files.add(self._of(request, arguments), arguments.file_info)

    def update(self, request: Request, arguments: given.FilePathInfo) -> Record:
        """PUT experimentFilesByPath."""
        experiment = self._access.annotatable(request.principal, arguments.experiment_name)
        info = self._access.editable(request.principal, arguments.file_info)
        info["experimentFilePath"] = arguments.experiment_file_path
        info["root"] = arguments.root
        return self._files.update(experiment, info)

    def update_by_id(self, request: Request, arguments: given.FileIdInfo) -> Record:
        """PUT experimentFilesById."""
        experiment = self._access.annotatable(request.principal, arguments.experiment_name)
        info = self._access.editable(request.principal, arguments.file_info)
        return self._files.update_by_id(experiment, arguments.id, info)

    def update_many(self, request: Request, arguments: given.FileInfos) -> Record:
        """PUT experimentFiles."""
        experiment = self._access.annotatable(request.principal, arguments.experiment_name)
        records = [self._access.editable(request.principal, info) for info in arguments.files]
        return self._files.update_many(experiment, records).as_record()

    def submit(self, request: Request, arguments: given.FileInfos) -> Record:
        """POST fileUpdates."""
        experiment = self._access.annotatable(request.principal, arguments.experiment_name)
        records = [self._access.editable(request.principal, info) for info in arguments.files]
        return self._operations.submit(experiment, records, request.principal.username)

    def submitted(self, request: Request, arguments: given.UpdateId) -> Record:
        """GET fileUpdates."""
        operation = self._operations.get(arguments.update_id)
        if operation["owner"] != request.principal.username and not self._access.manages(request.principal):
            raise ObjectNotFound(f"Update {arguments.update_id[:60]!a} does not exist.")
        return operation

    def delete(self, request: Request, arguments: given.FilePath) -> Record:
        """DELETE experimentFilesByPath."""
        return self._files.delete(self._of(request, arguments), arguments.experiment_file_path, arguments.root)

    def delete_by_id(self, request: Request, arguments: given.FileId) -> Record:
        """DELETE experimentFilesById."""
        return self._files.delete_by_id(self._of(request, arguments), arguments.id)

    def bulk(self, request: Request, arguments: given.Bulk) -> Record:
        """POST files/bulk."""
        outcome = Outcome(len(arguments.files))
        groups: dict[tuple[int, str], list[int]] = {}
        for index, record in enumerate(arguments.files):
            experiment_id, name = record.get("experimentId"), record.get("experimentName")
            path = record.get("path", record.get("experimentFilePath"))
            if isinstance(experiment_id, bool) or not isinstance(experiment_id, int) or experiment_id < 1:
                outcome.fail(index, path, InvalidArgument(f"experimentId {experiment_id!r:.40} is not an id."))
            elif not isinstance(name, str) or not name or not name.isprintable():
                outcome.fail(index, path, InvalidArgument(f"experimentName {name!r:.40} is not a name."))
            else:
                groups.setdefault((experiment_id, name), []).append(index)
        for (experiment_id, name), indices in groups.items():
            records = [arguments.files[index] for index in indices]
            try:
                experiment = self._access.claimed(request.principal, experiment_id, name)
            except (ObjectNotFound, InvalidArgument) as error:
                for index, record in zip(indices, records, strict=True):
                    outcome.fail(index, record.get("path"), error)
                continue
            outcome.include(self._files.upsert(experiment, records), indices)
        self._count(outcome)
        return outcome.as_record()

    def stats(self, request: Request, arguments: given.Experiment) -> Record:
        """GET experimentFileCollections/stats."""
        return self._collections.stats(self._of(request, arguments))

    def rename(self, request: Request, arguments: given.Rename) -> Record:
        """PUT experimentFileCollections/rename."""
        target = self._access.experiment(request.principal, arguments.new_experiment_name)
        try:
            source = self._of(request, arguments)
        except ObjectNotFound:
            # Renamed at the site already: its records are still known under the old name, and have followed.
            if not any(known.id == target.id for known in self._collections.orphans(arguments.experiment_name)):
                raise
            source = target
        if source.id == target.id:
            return self._collections.note_name(target)
        return self._collections.move(source, target)

    def delete_collection(self, request: Request, arguments: given.Experiment) -> Record:
        """DELETE experimentFileCollections."""
        name = arguments.experiment_name
        try:
            return self._collections.delete(self._of(request, arguments))
        except ObjectNotFound as missing:
            # The experiment itself may be deleted already; what it left is found by the name it had - unless the site
            # still has an experiment of that id, which then bears another name now.
            left = [known for known in self._collections.orphans(name) if self._is_gone(request, known)]
            if not left:
                raise missing
            deleted = [self._collections.delete(known)["countFiles"] for known in left]
            return {"experimentName": name, "countFiles": sum(deleted)}

    def _is_gone(self, request: Request, known: ExperimentRef) -> bool:
        try:
            self._access.experiment_by_id(request.principal, known.id)
        except ObjectNotFound:
            return True
        return False

    def table(self) -> list[Route]:
        """Return the rows."""
        path, by_id = "/{experimentName}/{experimentFilePath}", "/{experimentName}/{id}"
        collections, by_path = "/experimentFileCollections/{experimentName}", f"/experimentFilesByPath{path}"
        many = "/experimentFiles/{experimentName}"
        rows: list[tuple[str, str, Handler, Permission, str, Any, int]] = [
            ("GET", many, self.find, MEMBER, "List an experiment's files.", given.FileList, 0),
            ("POST", many, self.add, MANAGER, "Add a file record.", given.FileInfo, 0),
            ("PUT", many, self.update_many, MEMBER,
             f"Change many file records; {PI_ONLY}.", given.FileInfos, given.BULK_LIMIT),
            ("GET", "/experimentFilePages/{experimentName}", self.page, MEMBER,
             "Give one page of an experiment's files.", given.FilePage, 0),
            ("GET", by_path, self.get, MEMBER, "Give a file's record.", given.FilePath, 0),
            ("PUT", by_path, self.update, MEMBER, f"Change a file's record; {PI_ONLY}.", given.FilePathInfo, 0),
            ("DELETE", by_path, self.delete, MANAGER, "Remove a file's record.", given.FilePath, 0),
            ("GET", f"/experimentFilesById{by_id}", self.get_by_id, MEMBER, "Give a file's record by its id.",
             given.FileId, 0),
            ("PUT",
             f"/experimentFilesById{by_id}", self.update_by_id, MEMBER, f"Change a file's record by its id; {PI_ONLY}.",
             given.FileIdInfo, 0),
            ("DELETE", f"/experimentFilesById{by_id}", self.delete_by_id, MANAGER, "Remove a file's record by its id.",
             given.FileId, 0),
            ("POST", "/files/bulk", self.bulk, MANAGER, "Store what many file records bring; repeatable.", given.Bulk,
             given.BULK_LIMIT),
            ("POST", "/fileUpdates/{experimentName}", self.submit, MEMBER,
             f"Change many file records in the background; {PI_ONLY}.", given.FileInfos, given.BULK_LIMIT),
            ("GET", "/fileUpdates/{updateId}", self.submitted, USER, "Tell how a background change is getting on.",
             given.UpdateId, 0),
            ("GET", f"{collections}/stats", self.stats, MEMBER, "Give number and sizes of an experiment's files.",
             given.Experiment, 0),
            ("PUT", f"{collections}/rename", self.rename, MANAGER, "Give all file records to another experiment.",
             given.Rename, 0),
            ("DELETE", collections, self.delete_collection, MANAGER, "Remove all file records of an experiment.",
             given.Experiment, 0),
        ]  # fmt: skip
        return [_route(*row) for row in rows]


class DocumentRoutes:
    """Handlers of datasets and runs."""

    def __init__(self, use: UseCases) -> None:
        self._access = use.access
        self._datasets = use.datasets
        self._runs = use.runs

    def _of(self, request: Request, arguments: given.Experiment) -> ExperimentRef:
        return self._access.experiment(request.principal, arguments.experiment_name)

    def _annotatable(self, request: Request, arguments: given.Experiment) -> ExperimentRef:
        return self._access.annotatable(request.principal, arguments.experiment_name)

    def _by_id(self, request: Request, record_id: str) -> tuple[ExperimentRef, str]:
        """Return the dataset an id means among those the caller may see."""
        for known, name in self._datasets.locate(record_id):
            try:
                return self._access.experiment_by_id(request.principal, known.id), name
            except (ObjectNotFound, AuthorizationError):
                continue
        raise ObjectNotFound(f"Dataset with id {record_id[:120]!a} does not exist.")

    def all_datasets(self, request: Request, arguments: given.AllDatasets) -> list[Record]:
        """GET datasets."""
        query = Query(arguments.query_dict)
        having = {known.id for known in self._datasets.shelf.experiments()}
        found: list[Record] = []
        skip = arguments.skip
        for experiment in sorted(self._access.visible(request.principal), key=lambda seen: seen.id):
            if len(found) >= arguments.limit:
                break
            if experiment.id in having:
                room = skip + arguments.limit - len(found)
                part = self._datasets.find(experiment, query, 0, room, arguments.key_list)
                found += part[skip:]
                skip = max(0, skip - len(part))
        return found

    def datasets(self, request: Request, arguments: given.DocumentList) -> list[Record]:
        """GET experimentDatasets."""
        return self._find(self._datasets, request, arguments)

    def runs(self, request: Request, arguments: given.DocumentList) -> list[Record]:
        """GET experimentRuns."""
        return self._find(self._runs, request, arguments)

    def _find(self, catalog: DocumentCatalog, request: Request, arguments: given.DocumentList) -> list[Record]:
        query = Query(arguments.query_dict)
        return catalog.find(self._of(request, arguments), query, arguments.skip, arguments.limit, arguments.key_list)

    def add_dataset(self, request: Request, arguments: given.NewDataset) -> Record:
        """POST experimentDatasets."""
        experiment = self._annotatable(request, arguments)
        return self._datasets.add(experiment, arguments.dataset_info, request.principal.username)

    def get_dataset(self, request: Request, arguments: given.DatasetName) -> Record:
        """GET experimentDatasets/name."""
        return self._datasets.get(self._of(request, arguments), arguments.dataset_name)

    def dataset_files(self, request: Request, arguments: given.DatasetFiles) -> list[Record]:
        """GET experimentDatasets/name/files."""
        experiment = self._of(request, arguments)
        return self._datasets.files(experiment, arguments.dataset_name, arguments.skip, arguments.limit)

    def update_dataset(self, request: Request, arguments: given.DatasetChange) -> Record:
        """PUT experimentDatasets/name."""
        experiment = self._annotatable(request, arguments)
        return self._datasets.update(experiment, arguments.dataset_name, arguments.dataset_info)

    def delete_dataset(self, request: Request, arguments: given.DatasetName) -> Record:
        """DELETE experimentDatasets/name."""
        return self._datasets.delete(self._of(request, arguments), arguments.dataset_name)

    def get_dataset_by_id(self, request: Request, arguments: given.DatasetId) -> Record:
        """GET datasetsById."""
        return self._datasets.get(*self._by_id(request, arguments.id))

    def update_dataset_by_id(self, request: Request, arguments: given.DatasetIdChange) -> Record:
        """PUT datasetsById."""
        experiment, name = self._by_id(request, arguments.id)
        experiment = self._access.annotatable(request.principal, experiment.name)
        return self._datasets.update(experiment, name, arguments.dataset_info)

    def add_run(self, request: Request, arguments: given.NewRun) -> Record:
        """POST experimentRuns."""
        experiment = self._annotatable(request, arguments)
        return self._runs.add(experiment, arguments.run_info, request.principal.username)

    def get_run(self, request: Request, arguments: given.RunName) -> Record:
        """GET experimentRuns/id."""
        return self._runs.get(self._of(request, arguments), arguments.run_id)

    def update_run(self, request: Request, arguments: given.RunChange) -> Record:
        """PUT experimentRuns/id."""
        return self._runs.update(self._annotatable(request, arguments), arguments.run_id, arguments.run_info)

    def delete_run(self, request: Request, arguments: given.RunName) -> Record:
        """DELETE experimentRuns/id."""
        return self._runs.delete(self._of(request, arguments), arguments.run_id)

    def table(self) -> list[Route]:
        """Return the rows."""
        datasets, runs = "/experimentDatasets/{experimentName}", "/experimentRuns/{experimentName}"
        dataset, run, big = f"{datasets}/{{datasetName}}", f"{runs}/{{runId}}", given.DOCUMENT_LIMIT
        rows: list[tuple[str, str, Handler, Permission, str, Any, int]] = [
            ("GET", datasets, self.datasets, MEMBER, "List an experiment's datasets.", given.DocumentList, 0),
            ("POST", datasets, self.add_dataset, MEMBER, f"Add a dataset; {PI_TOO}.", given.NewDataset, big),
            ("GET", dataset, self.get_dataset, MEMBER, "Give a dataset.", given.DatasetName, 0),
            ("PUT", dataset, self.update_dataset, MEMBER, f"Change a dataset; {PI_TOO}.", given.DatasetChange, big),
            ("DELETE", dataset, self.delete_dataset, MANAGER, "Remove a dataset.", given.DatasetName, 0),
            ("GET", f"{dataset}/files", self.dataset_files, MEMBER, "List a dataset's files.", given.DatasetFiles, 0),
            ("GET", "/datasets", self.all_datasets, USER, "List the datasets of all experiments one may see.",
             given.AllDatasets, 0),
            ("GET", "/datasetsById/{id}", self.get_dataset_by_id, USER, "Give a dataset by its id.",
             given.DatasetId, 0),
            ("PUT", "/datasetsById/{id}", self.update_dataset_by_id, USER, f"Change a dataset by its id; {PI_TOO}.",
             given.DatasetIdChange, big),
            ("GET", runs, self.runs, MEMBER, "List an experiment's runs.", given.DocumentList, 0),
            ("POST", runs, self.add_run, MEMBER, f"Add a run; {PI_TOO}.", given.NewRun, big),
            ("GET", run, self.get_run, MEMBER, "Give a run.", given.RunName, 0),
            ("PUT", run, self.update_run, MEMBER, f"Change a run; {PI_TOO}.", given.RunChange, big),
            ("DELETE", run, self.delete_run, MANAGER, "Remove a run.", given.RunName, 0),
        ]  # fmt: skip
        return [_route(*row) for row in rows]


def _route(  # noqa: PLR0917 - one row of the tables above
    method: str, path: str, handler: Handler, access: Permission, summary: str, arguments: Any, body_limit: int
) -> Route:
    names = {field.alias or name for name, field in arguments.model_fields.items()}
    coded = CODED & names
    return Route(method, path, handler, access, summary, arguments, coded, body_limit or 1 << 20)
