"""The only code of this service that touches the database: MongoDB, by key or by one indexed field."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pymongo
from pymongo.errors import (
    DocumentTooLarge,
    DuplicateKeyError,
    InvalidDocument,
)

from dm.common.errors import ObjectAlreadyExists, ProcessingError
from dm.common.mongo import BulkWrites
from dm.station.processing.mongo import translated
from dm.station.processing.remembered import Remembered
from dm.station.processing.versionstore import VersionStore

_TIMEOUT_MS = 10_000
_DUPLICATE = 11_000
_ORDER_SLACK = 60.0
_LATEST = 9e10  # seconds whose microseconds fit into an order key

Document = dict[str, Any]


def _first_order(query: Mapping[str, Any]) -> str:
    """Return an order key before those of all jobs that a condition on their submission lets through, or nothing.

    Order keys are made just before that time is noted, and are not behind it where clocks were set back.
    """
    condition = query.get("submissionTime")
    given = condition if isinstance(condition, Mapping) else {"$eq": condition}
    values = [given.get(name) for name in ("$eq", "$gt", "$gte")]
    moments = [float(value) for value in values if isinstance(value, int | float)]
    if not moments or not _ORDER_SLACK < max(moments) < _LATEST:
        return ""
    return f"{int((max(moments) - _ORDER_SLACK) * 1_000_000):017d}"


def _of_turn(job_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the condition of an update: an end that names how often the job was let go on ends that turn only.

    One that is written again, as its answer was lost, may come when the job goes on already.
    """
    if "restarts" not in values:
        return {"_id": job_id}
    return {"_id": job_id, "restarts": values["restarts"] or {"$in": [None, 0]}}


def _refused(failed: Mapping[str, Any]) -> ProcessingError:
    return ProcessingError(f"The processing database refuses an operation: {failed.get('errmsg')}.")


class Store:
    """Workflows and jobs in one database.

    :param url: ``mongodb://...``; its path names the database.

    Methods raise :class:`ServiceUnavailable` while the database is down. Thread-safe.
    """

    def __init__(self, url: str) -> None:
        self._client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            url,
            serverSelectionTimeoutMS=_TIMEOUT_MS,
            connectTimeoutMS=_TIMEOUT_MS,
            socketTimeoutMS=6 * _TIMEOUT_MS,
            w="majority",
            journal=True,
            tz_aware=True,
        )
        database = self._client.get_default_database("dm")
        self._workflows = database["processingWorkflows"]
        self._remembered = Remembered()  # each submission asks for its workflow
        self._jobs = database["processingJobs"]
        self._children = database["processingChildren"]
        self.versions = VersionStore(database["processingWorkflowVersions"])
        self._bulk = BulkWrites(database, "processingSeals")
        self._order_lock = threading.Lock()
        self._last_order = 0

    def prepare(self) -> None:
        """Make the indexes, and learn the order number of the newest job."""
        with translated():
            for field in ("owner", "workflowId"):
                self._workflows.create_index(field)
            for field in ("ownerOrder", "order", "active"):
                self._jobs.create_index(field)
            self._children.create_index("order")
            self.versions.prepare()
            newest = self._jobs.find_one({}, {"order": 1}, sort=[("order", -1)])
        self._last_order = int(newest["order"]) if newest else 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ping(self) -> None:
        """Ask the database whether it is there."""
        with translated():
            self._client.admin.command("ping")

    # --- workflows -------------------------------------------------------------------------------------------

    @staticmethod
    def _workflow_key(owner: str, name: str) -> str:
        return f"{owner}:{hashlib.sha256(name.encode()).hexdigest()}"

    def _workflow_document(self, workflow: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "_id": self._workflow_key(workflow["owner"], workflow["name"]),
            "owner": workflow["owner"],
            "name": workflow["name"],
            "workflowId": workflow["id"],  # the embedded server takes a hexadecimal "id" for an object id
            "revision": workflow["revision"],
            "workflow": json.dumps(workflow),
        }

    def add_workflow(self, workflow: Mapping[str, Any]) -> None:
        """Insert a workflow. :raises ObjectAlreadyExists: owner and name are taken."""
        try:
            document = self._workflow_document(workflow)
            with self._remembered.changed(document["_id"]), translated():
                self._workflows.insert_one(document)
        except DuplicateKeyError:
            raise ObjectAlreadyExists(
                f"Workflow {workflow['name']!r} of owner {workflow['owner']!r} already exists."
            ) from None

    def workflow(self, owner: str, name: str) -> dict[str, Any] | None:
        """Return a workflow by owner and name."""
        key = self._workflow_key(owner, name)

        def read() -> str | None:
            with translated():
                found = self._workflows.find_one({"_id": key}, {"workflow": 1})
            return found["workflow"] if found else None

        text = self._remembered.get(key, read)
        return json.loads(text) if text else None

    def workflow_by_id(self, workflow_id: str) -> dict[str, Any] | None:
        """Return a workflow by its id."""
        with translated():
            found = self._workflows.find_one({"workflowId": workflow_id})
        return json.loads(found["workflow"]) if found else None

    def workflows(self, owner: str) -> list[dict[str, Any]]:
        """Return all workflows of an owner, by name."""
        with translated():
            found = list(self._workflows.find({"owner": owner}))
        return [json.loads(entry["workflow"]) for entry in sorted(found, key=lambda entry: entry["name"])]

    def replace_workflow(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        """Replace a workflow that may get another name or owner.

        :returns: ``False`` when the old one is gone or has another revision by now.
        :raises ObjectAlreadyExists: the new name is taken.
        """
        document = self._workflow_document(new)
        old_key = self._workflow_key(old["owner"], old["name"])
        if document["_id"] != old_key:
            self.add_workflow(new)
            self.delete_workflow(old["owner"], old["name"])
            return True
        unchanged = {"_id": old_key, "workflowId": old["id"]}
        if "revision" in old:  # of before there were revisions
            unchanged["revision"] = old["revision"]
        with self._remembered.changed(old_key), translated():
            return self._workflows.replace_one(unchanged, document).matched_count > 0

    def delete_workflow(self, owner: str, name: str) -> bool:
        """Delete a workflow; ``False`` when there is none."""
        key = self._workflow_key(owner, name)
        with self._remembered.changed(key), translated():
            return self._workflows.delete_one({"_id": key}).deleted_count > 0

    # --- jobs ------------------------------------------------------------------------------------------------

    def next_order(self) -> str:
        """Return a key that sorts after those of all earlier jobs (microseconds, never backwards)."""
        with self._order_lock:
            self._last_order = max(self._last_order + 1, int(time.time() * 1_000_000))
            return f"{self._last_order:017d}"

    def add_jobs(self, documents: Sequence[Document]) -> list[bool | ProcessingError]:
        """Insert jobs durably.

        :returns: of each, ``False`` when a job of its id exists, or why the database refuses it.
        """
        answers: list[bool | ProcessingError] = [True] * len(documents)
        with translated():
            for failed in self._bulk.write(self._jobs, [pymongo.InsertOne(document) for document in documents]):
                answers[failed["index"]] = False if failed.get("code") == _DUPLICATE else _refused(failed)
        return answers

    def job(self, job_id: str) -> dict[str, Any] | None:
        """Return a job's document."""
        with translated():
            return self._jobs.find_one({"_id": job_id})

    def active_jobs(self) -> list[dict[str, Any]]:
        """Return all jobs that have not ended, oldest first."""
        with translated():
            return sorted(self._jobs.find({"active": 1}), key=lambda job: str(job["order"]))

    def jobs(  # noqa: PLR0917
        self,
        owner: str | None,
        query: Mapping[str, Any],
        skip: int,
        limit: int,
        without: Iterable[str] = (),
        before: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return a page of jobs, oldest first, counted from the newest.

        :param owner: whose; ``None`` for all. :param query: checked conditions. :param without: fields left out.
        :param before: only jobs older than the one of this order key.
        """
        field, first = "order", _first_order(query)
        bounds: dict[str, Any] = ({"$gte": first} if first else {}) | ({"$lt": before} if before else {})
        if owner is not None:
            field, end = "ownerOrder", f"{owner}:{before}" if before else f"{owner};"
            bounds = {"$gte": f"{owner}:{first}", "$lt": end}
        projection = dict.fromkeys(without, 0) or None
        with translated():
            wanted = {**query, field: bounds} if bounds else query
            cursor = self._jobs.find(wanted, projection).sort(field, -1).skip(skip).limit(limit)
            return list(cursor)[::-1]

    def update_jobs(self, changes: Mapping[str, tuple[Document, Mapping[int, Document]]]) -> dict[str, ProcessingError]:
        """Set fields of jobs, after storing the processes that are not part of their documents; durably.

        :param changes: by job id: fields, and processes by number.
        :returns: by job id, why the database refuses a change; the others are stored.
        """
        refused: dict[str, ProcessingError] = {}
        children, owners = [], []
        for job_id, (_, outside) in changes.items():
            for number, child in outside.items():
                key = self._child_key(job_id, number)
                document = {"_id": key, "order": key, **child}
                children.append(pymongo.ReplaceOne({"_id": key}, document, upsert=True))
                owners.append(job_id)
        with translated():
            if children:
                refused |= self._write(self._children, children, owners)
            names = [name for name, (values, _) in changes.items() if values and name not in refused]
            updates = [
                pymongo.UpdateOne(_of_turn(name, changes[name][0]), {"$set": changes[name][0]}) for name in names
            ]
            if updates:
                refused |= self._write(self._jobs, updates, names)
        return refused

    def _write(self, collection: Any, operations: list[Any], owners: list[str]) -> dict[str, ProcessingError]:
        try:
            return {owners[failed["index"]]: _refused(failed) for failed in self._bulk.write(collection, operations)}
        except (DocumentTooLarge, InvalidDocument) as error:
            if len(operations) == 1:
                return {owners[0]: ProcessingError(f"The processing database refuses a document: {error}.")}
            refused: dict[str, ProcessingError] = {}
            for operation, owner in zip(operations, owners, strict=True):  # the client refuses before it sends
                refused |= self._write(collection, [operation], [owner])
            return refused

    def reopen_job(self, job_id: str, restarts: int, values: Mapping[str, Any]) -> bool:
        """Let an ended job go on.

        :param restarts: how often that was done before; ``False`` when it has changed, or the job has not ended.
        """
        known = {**_of_turn(job_id, {"restarts": restarts}), "active": 0}
        with translated():
            found = self._jobs.update_one(known, {"$set": {**values, "active": 1, "restarts": restarts + 1}})
        return found.matched_count > 0

    def request_abort(self, job_id: str, status: str) -> bool:
        """Note that a job is to be stopped; ``False`` when it has ended already."""
        with translated():
            found = self._jobs.update_one({"_id": job_id, "active": 1}, {"$set": {"abort": True, "status": status}})
        return found.matched_count > 0

    @staticmethod
    def _child_key(job_id: str, number: int) -> str:
        return f"{job_id}:{number:08d}"

    def children(
        self, job_id: str, first: int = 0, count: int = 0, without: Iterable[str] = ()
    ) -> list[dict[str, Any]]:
        """Return processes of a job that are stored outside its document, by number.

        :param first: smallest number. :param count: how many at most; 0 for all. :param without: fields left out.
        """
        bounds = {"$gte": self._child_key(job_id, first), "$lt": f"{job_id};"}
        with translated():
            projection = dict.fromkeys(without, 0) or None
            return list(self._children.find({"order": bounds}, projection).sort("order", 1).limit(count))

    def delete_job(self, job_id: str) -> bool:
        """Delete an ended job; ``False`` when there is none."""
        with translated():
            if not self._jobs.delete_one({"_id": job_id, "active": 0}).deleted_count:
                return False
            self._children.delete_many({"order": {"$gte": self._child_key(job_id, 0), "$lt": f"{job_id};"}})
        return True
