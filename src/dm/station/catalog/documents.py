"""Datasets and runs: named records of an experiment with free, nested metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dm.common import timestamps
from dm.common.errors import (
    InvalidArgument,
    InvalidObjectState,
    InvalidRequest,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceUnavailable,
)
from dm.station.catalog import codec, items
from dm.station.catalog.files import MAX_PAGE, FileCatalog, parse_query, pause
from dm.station.catalog.queries import Query
from dm.station.catalog.replies import Budget, choose
from dm.station.catalog.store import Document, ExperimentRef, Shelf, Store, Update, list_key

Record = dict[str, Any]

MAX_NAME = 255
_FOLDER = items.FOLDER
_ATTEMPTS = 20


@dataclass(frozen=True)
class Kind:
    """What tells datasets from runs.

    :param noun: for error sentences. :param name_key: the key of a record's name, unique in its experiment.
    """

    noun: str
    name_key: str

    @property
    def system_keys(self) -> tuple[str, ...]:
        """Keys the catalog sets itself."""
        fixed = ("id", "_id", "experimentName", "experimentId", "createTime", "createTimestamp", "owner")
        return (*fixed, self.name_key)


DATASET = Kind("Dataset", "datasetName")
RUN = Kind("Run", "runId")


class DocumentCatalog:
    """The datasets, or the runs, of all experiments of a station."""

    def __init__(self, shelf: Shelf, kind: Kind) -> None:
        self.shelf = shelf
        self.kind = kind

    def add(self, experiment: ExperimentRef, info: Mapping[str, Any], owner: str = "") -> Record:
        """Store a new record and return it with its ``id``.

        :param info: the name (``datasetName`` or ``runId``) and anything else; an ``_id`` of the caller's choice
            becomes the ``id``.
        :param owner: who adds it.
        :raises ObjectAlreadyExists: the experiment has one of that name or id. :raises InvalidArgument: bad input.
        """
        name = self._name(info.get(self.kind.name_key))
        caller_id = self._caller_id(info)
        if caller_id and self._by_caller_id(experiment, caller_id) is not None:
            raise ObjectAlreadyExists(
                f"{self.kind.noun} with id {caller_id!r} exists in experiment {experiment.name!r}; update it."
            )
        document: Document = {
            "_id": self._id(experiment, name),
            "rev": 1,
            "experimentId": experiment.id,
            "experimentName": experiment.name,
            "name": name,
            "callerId": caller_id,
            "owner": owner,
            "createTime": timestamps.now(),
            _FOLDER: self._free(info),
        }
        document = codec.measured(document, f"{self.kind.noun} {name!r}")
        if self.shelf.get([document["_id"]]):
            raise self._exists(experiment, name)
        document["listKey"] = list_key(experiment.id, self.shelf.allocate(experiment, 1)[0])
        if not self.shelf.insert(document):
            raise self._exists(experiment, name)
        return self.as_record(document, experiment)

    def get(self, experiment: ExperimentRef, name: str) -> Record:
        """Return a record by name. :raises ObjectNotFound: there is none."""
        return self.as_record(self._document(experiment, name), experiment)

    def find(
        self, experiment: ExperimentRef, query: Query, skip: int = 0, limit: int = MAX_PAGE, key_list: Any = "ALL"
    ) -> list[Record]:
        """Return matching records of an experiment, oldest first."""
        found: list[Record] = []
        budget = Budget(f"The {self.kind.noun.lower()}s of experiment {experiment.name!r}")
        for _, documents in self.shelf.scan(experiment.id, wanted=skip + limit):
            for document in documents:
                if len(found) >= limit:
                    return found
                record = self.as_record(document, experiment)
                if not query.matches(record):
                    continue
                if skip > 0:
                    skip -= 1
                    continue
                budget.spend(document, record, chosen := self.choose(record, key_list))
                found.append(chosen)
        return found

    def choose(self, record: Record, key_list: Any) -> Record:
        """Return the chosen keys; ``DEFAULT`` is all of them."""
        if key_list is None or (isinstance(key_list, str) and key_list.strip().upper() in ("", "DEFAULT")):
            return record
        return choose(record, key_list)

    def locate(self, record_id: str) -> list[tuple[ExperimentRef, str]]:
        """Return experiment and name of the records an id may mean: ours, or one a caller chose (not unique)."""
        own = self.shelf.get([record_id]).values()
        documents = list(own) or self.shelf.find("callerId", record_id)
        return [(ExperimentRef(found["experimentId"], found["experimentName"]), found["name"]) for found in documents]

    def update(self, experiment: ExperimentRef, name: str, info: Mapping[str, Any]) -> Record:
        """Set the given metadata keys of a record, leaving the others; return the record.

        :raises ObjectNotFound: there is none. :raises InvalidArgument: bad input.
        """
        free = self._free(info)
        for attempt in range(_ATTEMPTS):
            document = self._document(experiment, name)
            merged = {**document.get(_FOLDER, {}), **free}
            if not items.differs(document.get(_FOLDER), merged):
                return self.as_record(document, experiment)
            size = codec.measured({**document, _FOLDER: merged}, f"{self.kind.noun} {name!r}")["bytes"]
            if self.shelf.write([], [Update(document["_id"], document["rev"], {_FOLDER: merged, "bytes": size})]):
                return self.get(experiment, name)
            pause(attempt)
        raise ServiceUnavailable(f"{self.kind.noun} {name!r} is being changed by others all the time; try again.")

    def delete(self, experiment: ExperimentRef, name: str) -> Record:
        """Remove a record and return it. :raises ObjectNotFound: there is none."""
        document = self._document(experiment, name)
        if not self.shelf.delete(document["_id"]):
            raise self._missing(experiment, name)
        return self.as_record(document, experiment)

    def as_record(self, document: Document, experiment: ExperimentRef) -> Record:
        """Return a document as callers see it."""
        record_id = document.get("callerId") or document["_id"]
        record: Record = {
            "id": record_id,
            "_id": record_id,
            "experimentName": experiment.name,
            "experimentId": experiment.id,
            self.kind.name_key: document["name"],
            "owner": document.get("owner", ""),
            "createTime": document["createTime"],
            "createTimestamp": timestamps.text(document["createTime"]),
        }
        free = codec.unescape(document.get(_FOLDER, {}))
        return {**record, **{key: value for key, value in free.items() if key not in record}}

    def _document(self, experiment: ExperimentRef, name: str) -> Document:
        key = self._id(experiment, name)
        document = self.shelf.get([key]).get(key)
        if document is None:
            raise self._missing(experiment, name)
        return document

    def _by_caller_id(self, experiment: ExperimentRef, caller_id: str) -> Document | None:
        found = self.shelf.find("callerId", caller_id)
        return next((document for document in found if document["experimentId"] == experiment.id), None)

    def _name(self, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise InvalidArgument(f"{self.kind.noun} has no {self.kind.name_key}; name it.")
        if len(value) > MAX_NAME or not value.isprintable():
            raise InvalidArgument(
                f"{self.kind.name_key} {value[:60]!a} is not a name of at most {MAX_NAME} printable characters."
            )
        return value

    @staticmethod
    def _caller_id(info: Mapping[str, Any]) -> str | None:
        value = info.get("_id", info.get("id"))
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
            raise InvalidArgument(f"_id {str(value)[:60]!a} is not a printable text of at most {MAX_NAME} characters.")
        return value

    def _free(self, info: Mapping[str, Any]) -> Document:
        free = {key: value for key, value in info.items() if key not in self.kind.system_keys}
        stored: Document = codec.escape(free)
        return stored

    def _id(self, experiment: ExperimentRef, name: str) -> str:
        return f"{experiment.id}:{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def _exists(self, experiment: ExperimentRef, name: str) -> ObjectAlreadyExists:
        return ObjectAlreadyExists(
            f"{self.kind.noun} {name!r} already exists in experiment {experiment.name!r}; update it."
        )

    def _missing(self, experiment: ExperimentRef, name: str) -> ObjectNotFound:
        return ObjectNotFound(f"{self.kind.noun} {name[:120]!a} does not exist in experiment {experiment.name!r}.")


class DatasetCatalog(DocumentCatalog):
    """Datasets, which may say which files they consist of.

    The files are those listed in ``experimentFilePathList`` (paths below ``data``, else below ``analysis``), or those a
    query in ``fileQueryDict`` finds; without either, those whose metadata ``datasetName`` is the dataset's name.
    """

    PATHS = "experimentFilePathList"
    QUERY = "fileQueryDict"

    def __init__(self, store: Store, files: FileCatalog) -> None:
        super().__init__(store.datasets, DATASET)
        self._files = files

    def files(self, experiment: ExperimentRef, name: str, skip: int = 0, limit: int = MAX_PAGE) -> list[Record]:
        """Return the records of a dataset's files; listed files that are not in the catalog are left out.

        :raises ObjectNotFound: no such dataset. :raises InvalidObjectState: its query cannot be used any more.
        """
        record = self.get(experiment, name)
        listed = record.get(self.PATHS)
        if isinstance(listed, list):
            return self._files.get_many(experiment, listed)[skip : skip + limit]
        try:
            query = parse_query(record.get(self.QUERY) or {DATASET.name_key: name})
        except InvalidRequest as error:
            raise InvalidObjectState(f"The file query of dataset {name!r} is not usable: {error}") from None
        return self._files.find(experiment, query, skip, limit)

    def _free(self, info: Mapping[str, Any]) -> Document:
        listed, query = info.get(self.PATHS), info.get(self.QUERY)
        if listed is not None:
            if not isinstance(listed, list):
                raise InvalidArgument(f"{self.PATHS} is not a list of file paths.")
            for path in listed:
                items.location({"experimentFilePath": path})
        if query is not None:
            if not isinstance(query, Mapping):
                raise InvalidArgument(f"{self.QUERY} is not a query object.")
            parse_query(query)
        return super()._free(info)
