"""Large updates in the background: accepted into the database at once, carried out by a worker, survive a restart.

An operation is claimed by one worker at a time under a lease it renews with every part; a worker that died leaves a
lease that runs out, and the next one goes on at the part after the last finished one. Parts are idempotent.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pymongo import ReturnDocument

from dm.common import timestamps
from dm.common.errors import DmException, InvalidArgument, ObjectNotFound, ServiceUnavailable
from dm.station.catalog import codec
from dm.station.catalog.files import FileCatalog
from dm.station.catalog.store import Document, ExperimentRef, Store, database_errors

PART = 200
PART_BYTES = 8 << 20
LEASE_SECONDS = 30.0
KEEP_SECONDS = 7 * 86400.0
ORPHAN_SECONDS = 3600.0
MAX_ERRORS = 100

PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"
_ACTIVE = [PENDING, RUNNING]
_log = logging.getLogger("dm.catalog")


class Operations:
    """The queue of background updates and its worker thread.

    :param poll_seconds: how often the worker looks for operations others left behind.
    """

    def __init__(self, store: Store, files: FileCatalog, poll_seconds: float = 10.0) -> None:
        self._operations = store.operations
        self._parts = store.operation_parts
        self._files = files
        self._poll_seconds = poll_seconds
        self._worker_id = uuid.uuid4().hex
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker."""
        self._thread = threading.Thread(target=self._run, name="catalog operations", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the worker after the part it is at; what is left is done after the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10)

    def submit(self, experiment: ExperimentRef, records: Sequence[Mapping[str, Any]], owner: str) -> dict[str, Any]:
        """Accept an update of many records and return the operation, status ``pending``.

        :raises InvalidArgument: metadata the catalog cannot hold. :raises ServiceLimit: a record that is too large.
        """
        if not records:
            raise InvalidArgument("There are no files to update; give a list of records.")
        operation_id = str(uuid.uuid4())
        now = timestamps.now()
        parts = [
            codec.measured({"_id": f"{operation_id}:{number}", "createTime": now, "records": part}, "The update")
            for number, part in enumerate(_divided(records))
        ]
        operation = {
            "_id": operation_id,
            "experimentId": experiment.id,
            "experimentName": experiment.name,
            "owner": owner,
            "status": PENDING,
            "countFiles": len(records),
            "nParts": len(parts),
            "nextPart": 0,
            "nUpdated": 0,
            "nUnchanged": 0,
            "nErrors": 0,
            "errors": [],
            "errorMessage": "",
            "createTime": now,
            "endTime": None,
            "leaseUntil": 0.0,
            "worker": "",
        }
        with database_errors():
            for part in parts:
                self._parts.insert_one(part)
            self._operations.insert_one(operation)  # the commit point: from here on it will be done
        self._wake.set()
        return as_record(operation)

    def get(self, operation_id: str) -> dict[str, Any]:
        """Return an operation: ``{id, experimentName, owner, status, countFiles, nUpdated, nUnchanged, nErrors, errors,
        errorMessage, createTime, endTime}``; ``status`` is pending, running, done or failed.

        :raises ObjectNotFound: unknown, or ended more than a week ago.
        """
        with database_errors():
            operation = self._operations.find_one({"_id": operation_id})
        if operation is None:
            raise ObjectNotFound(f"Update {operation_id[:60]!a} does not exist.")
        return as_record(operation)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._sweep()
                while not self._stopping.is_set() and (operation := self._claim()) is not None:
                    self._carry_out(operation)
            except ServiceUnavailable as error:
                _log.warning("background updates wait: %s", error)
            self._wake.wait(self._poll_seconds)
            self._wake.clear()

    def _claim(self) -> Document | None:
        now = timestamps.now()
        with database_errors():
            for candidate in self._operations.find({"status": {"$in": _ACTIVE}}).limit(100):
                if candidate["leaseUntil"] >= now:
                    continue
                claimed = self._operations.find_one_and_update(
                    {"_id": candidate["_id"], "leaseUntil": candidate["leaseUntil"], "worker": candidate["worker"]},
                    {
                        "$set": {
                            "status": RUNNING,
                            "leaseUntil": now + LEASE_SECONDS,
                            "worker": self._worker_id,
                        }
                    },
                    return_document=ReturnDocument.AFTER,
                )
                if claimed is not None:
                    return dict(claimed)
        return None

    def _carry_out(self, operation: Document) -> None:
        experiment = ExperimentRef(operation["experimentId"], operation["experimentName"])
        try:
            for number in range(operation["nextPart"], operation["nParts"]):
                if self._stopping.is_set():
                    self._note(operation, {"leaseUntil": 0.0})
                    return
                with database_errors():
                    part = self._parts.find_one({"_id": f"{operation['_id']}:{number}"}) or {"records": []}
                outcome = self._files.update_many(experiment, codec.unescape(part["records"])).as_record()
                for key in ("nUpdated", "nUnchanged", "nErrors"):
                    operation[key] += outcome[key]
                operation["errors"] = (operation["errors"] + codec.escape(outcome["errors"]))[:MAX_ERRORS]
                progress = {key: operation[key] for key in ("nUpdated", "nUnchanged", "nErrors", "errors")}
                lease = {"nextPart": number + 1, "leaseUntil": timestamps.now() + LEASE_SECONDS}
                if not self._note(operation, {**progress, **lease}):
                    return  # somebody else has taken over
            message = f"{operation['nErrors']} of {operation['countFiles']} files could not be updated."
            self._end(operation, DONE, message if operation["nErrors"] else "")
        except ServiceUnavailable:
            raise
        except DmException as error:
            self._end(operation, FAILED, error.message)
        except Exception:
            _log.exception("update %s failed", operation["_id"])
            self._end(operation, FAILED, "Internal error; the catalog's log has the details.")

    def _note(self, operation: Document, fields: Mapping[str, Any]) -> bool:
        with database_errors():
            result = self._operations.update_one(
                {"_id": operation["_id"], "worker": self._worker_id}, {"$set": dict(fields)}
            )
        return result.matched_count > 0

    def _end(self, operation: Document, status: str, message: str) -> None:
        fields = {"status": status, "errorMessage": message, "endTime": timestamps.now(), "leaseUntil": 0.0}
        if self._note(operation, fields):
            self._drop_parts(operation)

    def _drop_parts(self, operation: Document) -> None:
        with database_errors():
            for number in range(operation["nParts"]):
                self._parts.delete_one({"_id": f"{operation['_id']}:{number}"})

    def _sweep(self) -> None:
        """Forget operations that ended long ago, and parts whose operation was never accepted."""
        now = timestamps.now()
        with database_errors():
            for ended in list(self._operations.find({"status": {"$in": [DONE, FAILED]}}, {"endTime": 1, "nParts": 1})):
                if now - (ended["endTime"] or now) > KEEP_SECONDS:
                    self._operations.delete_one({"_id": ended["_id"]})
            for part in list(self._parts.find({}, {"createTime": 1})):
                operation_id = part["_id"].partition(":")[0]
                old = now - part["createTime"] > ORPHAN_SECONDS
                if old and self._operations.find_one({"_id": operation_id, "status": {"$in": _ACTIVE}}) is None:
                    self._parts.delete_one({"_id": part["_id"]})


def _divided(records: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """Yield the records, as they are stored, in parts that one document can hold."""
    part: list[Any] = []
    size = 0
    for record in records:
        escaped = codec.escape(record)
        weight = codec.measured(escaped, "A record of the update")["bytes"]
        if part and (len(part) >= PART or size + weight > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(escaped)
        size += weight
    yield part


def as_record(operation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an operation as callers see it."""
    keys = ("experimentName", "owner", "status", "countFiles", "nUpdated", "nUnchanged", "nErrors", "errorMessage")
    record = {"id": operation["_id"], **{key: operation[key] for key in keys}}
    record["errors"] = codec.unescape(operation["errors"])
    return {**record, "createTime": operation["createTime"], "endTime": operation["endTime"]}
