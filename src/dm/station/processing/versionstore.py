"""Where earlier definitions of workflows are kept: a collection of their own, by workflow id and revision."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from dm.station.processing.mongo import translated

KEPT = 1_000
"""Revisions kept of one workflow; older ones are forgotten."""

Document = dict[str, Any]


class VersionStore:
    """The revisions of workflows.

    :param collection: where they are.

    Methods raise :class:`ServiceUnavailable` while the database is down. Thread-safe.
    """

    def __init__(self, collection: Collection[Document]) -> None:
        self._versions = collection

    def prepare(self) -> None:
        """Make the indexes."""
        with translated():
            for field in ("order", "nameOrder"):
                self._versions.create_index(field)

    def keep(self, workflow: Mapping[str, Any], username: str, time: float, note: str = "") -> None:
        """Store a revision; what is stored of it already stays. Forget the oldest beyond :data:`KEPT`.

        :param workflow: with ``id`` and ``revision``. :param username: who wrote it; empty: not known.
        :param time: epoch seconds. :param note: where it came from, when not from an author.
        """
        revision = int(workflow["revision"])
        key = _key(workflow["id"], revision)
        document = {
            "order": key,
            "nameOrder": f"{_named(workflow['owner'], workflow['name'])}:{time:017.6f}:{revision:08d}",
            "workflowId": workflow["id"],
            "revision": revision,
            "time": time,
            "username": username,
            "note": note,
            "description": workflow.get("description", ""),
            "owner": workflow["owner"],
            "name": workflow["name"],
            "workflow": json.dumps(workflow),
        }
        with translated():
            with contextlib.suppress(DuplicateKeyError):
                self._versions.insert_one({"_id": key, **document})
            if revision > KEPT:
                oldest = {"$gte": _key(workflow["id"], 0), "$lt": _key(workflow["id"], revision - KEPT + 1)}
                self._versions.delete_many({"order": oldest})

    def find(self, workflow_id: str) -> list[Document]:
        """Return the revisions of a workflow, oldest first, without their definitions."""
        bounds = {"$gte": _key(workflow_id, 0), "$lt": f"{workflow_id};"}
        with translated():
            return list(self._versions.find({"order": bounds}, {"workflow": 0}).sort("order", 1).limit(KEPT + 1))

    def get(self, workflow_id: str, revision: int) -> Document | None:
        """Return a revision."""
        with translated():
            return self._versions.find_one({"_id": _key(workflow_id, revision)})

    def newest(self, workflow_id: str) -> int:
        """Return the number of the newest revision; 0: there is none."""
        bounds = {"$gte": _key(workflow_id, 0), "$lt": f"{workflow_id};"}
        with translated():
            found = self._versions.find_one({"order": bounds}, {"revision": 1}, sort=[("order", -1)])
        return int(found["revision"]) if found else 0

    def id_of(self, owner: str, name: str) -> str | None:
        """Return the id of the workflow that had this owner and name last, also of a deleted one."""
        named = _named(owner, name)
        with translated():
            found = self._versions.find_one(
                {"nameOrder": {"$gte": f"{named}:", "$lt": f"{named};"}}, {"workflowId": 1}, sort=[("nameOrder", -1)]
            )
        return str(found["workflowId"]) if found else None


def _key(workflow_id: str, revision: int) -> str:
    return f"{workflow_id}:{revision:08d}"


def _named(owner: str, name: str) -> str:
    return f"{owner}:{hashlib.sha256(name.encode()).hexdigest()}"
