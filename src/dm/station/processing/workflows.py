"""The use cases of workflows: list, get, add, update, upsert, delete; their revisions."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from typing import Any

from dm.common import timestamps
from dm.common.errors import InvalidArgument, InvalidObjectState, ObjectAlreadyExists, ObjectNotFound
from dm.common.web.routes import Principal
from dm.station.processing import checks, differences, queries, specs
from dm.station.processing.rights import Rights
from dm.station.processing.store import Store

ATTEMPTS = 20

Workflow = dict[str, Any]
Version = dict[str, Any]


class Workflows:
    """The workflows of a station. Records are the checked specs with their ``id`` and ``revision``.

    Every change of a definition makes a new revision: 1, 2, 3 ... Earlier ones are kept (the newest 1,000), also those
    of a deleted workflow, and are seen by who may see the workflow.

    :param store: :param rights: see there. :param executors: names of those that are configured, which stages may name.
    """

    def __init__(self, store: Store, rights: Rights, executors: Collection[str] = ()) -> None:
        self._store = store
        self._rights = rights
        self._executors = executors

    def find(self, principal: Principal, owner: str, query: Mapping[str, Any] | None = None) -> list[Workflow]:
        """Return an owner's workflows by name.

        :param query: conditions on top-level keys. :raises AuthorizationError: not the caller's.
        """
        matches = queries.matcher(query)
        self._rights.check_owner(principal, specs.check_owner(owner))
        return [workflow for workflow in self._store.workflows(owner) if matches(workflow)]

    def get(self, principal: Principal, owner: str, name: str) -> Workflow:
        """Return a workflow by name. :raises ObjectNotFound: none the caller may see."""
        specs.check_owner(owner)
        found = self._store.workflow(owner, name) if self._rights.sees(principal, owner) else None
        if found is None:
            raise _missing(owner, name)
        return found

    def get_by_id(self, principal: Principal, workflow_id: str, owner: str | None = None) -> Workflow:
        """Return a workflow by id. :param owner: must be its owner, when given. :raises ObjectNotFound: none."""
        found = self._store.workflow_by_id(workflow_id) if specs.WORKFLOW_ID.fullmatch(workflow_id) else None
        if found is None or owner not in (None, found["owner"]) or not self._rights.sees(principal, found["owner"]):
            raise ObjectNotFound(f"Workflow with id {workflow_id[:80]!r} does not exist.")
        return found

    # --- changing --------------------------------------------------------------------------------------------

    def add(self, principal: Principal, spec: Any, allow_current_username: bool = False) -> Workflow:
        """Store a new workflow.

        :param allow_current_username: take the caller as owner when the spec names none.
        :returns: it, with its id: the spec's own unless another workflow has it.
        :raises ObjectAlreadyExists: owner and name are taken.
        :raises InvalidArgument: what is wrong with it. :raises AuthorizationError: see :class:`Rights`.
        """
        return self._add(principal, self._checked(principal, spec, allow_current_username))

    def update(self, principal: Principal, spec: Any, allow_current_username: bool = False) -> Workflow:
        """Replace a workflow, found by the spec's id, else by owner and name; it may be renamed by its id.

        :raises ObjectNotFound: no such workflow. Otherwise as :meth:`add`.
        """
        return self._update(principal, self._checked(principal, spec, allow_current_username))

    def upsert(self, principal: Principal, spec: Any, allow_current_username: bool = False) -> Workflow:
        """Update the workflow, or add it when there is none. Errors as of both."""
        return self._upsert(principal, self._checked(principal, spec, allow_current_username))

    def delete(self, principal: Principal, owner: str, name: str) -> Workflow:
        """Delete a workflow and return it; its jobs keep their copies. :raises ObjectNotFound: none."""
        found = self.get(principal, owner, name)
        self._rights.check_author(principal, owner)
        self._keep_old(found)
        self._store.delete_workflow(owner, name)
        return found

    def _checked(self, principal: Principal, spec: Any, allow_current_username: bool) -> Workflow:
        workflow = specs.checked(spec, principal.username if allow_current_username else None)
        self._rights.check_author(principal, workflow["owner"])
        self._rights.check_account(principal, workflow["owner"], workflow["userAccount"])
        for name, stage in workflow["stages"].items():
            executor = stage.get("executor")
            if executor is not None and self._executors and executor not in self._executors:
                raise InvalidArgument(
                    f"Stage {name[:80]!r}: executor {executor!r} is not configured;"
                    f"{checks.nearest(executor, self._executors)}"
                )
        return workflow

    def _add(self, principal: Principal, workflow: Workflow, note: str = "") -> Workflow:
        if not self._may_have_its_id(workflow):
            workflow = {**workflow, "id": specs.new_id()}
        workflow["revision"] = self._store.versions.newest(workflow["id"]) + 1
        self._store.add_workflow(workflow)
        self._store.versions.keep(workflow, principal.username, time.time(), note)
        return workflow

    def _may_have_its_id(self, workflow: Workflow) -> bool:
        """Whether the spec names an id that is free: revisions go by id, those of other owners' deleted ones too."""
        if "id" not in workflow or self._store.workflow_by_id(workflow["id"]):
            return False
        newest = self._store.versions.newest(workflow["id"])
        earlier = self._store.versions.get(workflow["id"], newest) if newest else None
        return earlier is None or earlier["owner"] == workflow["owner"]

    def _update(self, principal: Principal, workflow: Workflow, note: str = "") -> Workflow:
        for _ in range(ATTEMPTS):
            old = self._store.workflow_by_id(workflow["id"]) if "id" in workflow else None
            old = old or self._store.workflow(workflow["owner"], workflow["name"])
            if old is None:
                raise ObjectNotFound(
                    f"Workflow {workflow['name']!r} of owner {workflow['owner']!r} does not exist; add it first."
                )
            self._rights.check_author(principal, old["owner"])
            new = {**workflow, "id": old["id"]}
            if differences.difference(old, new)["same"]:
                return old
            self._keep_old(old)
            new["revision"] = max(self._store.versions.newest(old["id"]), old.get("revision", 1)) + 1
            if self._store.replace_workflow(old, new):
                self._store.versions.keep(new, principal.username, time.time(), note)
                return new
        raise InvalidObjectState(f"Workflow {workflow['name']!r} is being changed by others; try again.")

    def _upsert(self, principal: Principal, workflow: Workflow, note: str = "") -> Workflow:
        try:
            return self._update(principal, workflow, note)
        except ObjectNotFound:
            try:
                return self._add(principal, workflow, note)
            except ObjectAlreadyExists:  # somebody else has just added it
                return self._update(principal, workflow, note)

    def _keep_old(self, workflow: Workflow) -> None:
        """Keep what is there: written before there were revisions, or not kept because the service was killed."""
        revision = workflow.get("revision", 1)
        if self._store.versions.newest(workflow["id"]) < revision:
            self._store.versions.keep({**workflow, "revision": revision}, "", time.time(), "found")

    # --- revisions -------------------------------------------------------------------------------------------

    def versions(self, principal: Principal, owner: str, name: str) -> list[Version]:
        """Return the revisions of a workflow, oldest first, also of a deleted one.

        :returns: of each ``revision``, ``time``, ``timestamp``, ``username`` (who wrote it; empty when not known),
            ``note``, ``id``, ``owner``, ``name``, ``description`` and ``isCurrent``.
        :raises ObjectNotFound: none the caller may see.
        """
        workflow_id, current = self._named(principal, owner, name)
        return [_version(document, current) for document in self._store.versions.find(workflow_id)]

    def version(self, principal: Principal, owner: str, name: str, revision: int) -> Version:
        """Return a revision as :meth:`versions` does, with its definition under ``workflow``.

        :raises ObjectNotFound: no such revision, or no workflow the caller may see.
        """
        workflow_id, current = self._named(principal, owner, name)
        document = self._store.versions.get(workflow_id, revision)
        if document is None:
            raise ObjectNotFound(f"Revision {revision} of workflow {name[:255]!r} of owner {owner!r} does not exist.")
        return {**_version(document, current), "workflow": json.loads(document["workflow"])}

    def diff(
        self, principal: Principal, owner: str, name: str, old: int | None = None, new: int | None = None
    ) -> dict[str, Any]:
        """Compare two revisions.

        :param old: ``None``: the one before ``new``. :param new: ``None``: the newest.
        :returns: see :func:`differences.difference`, with ``fromRevision`` and ``toRevision``.
        :raises ObjectNotFound: no such revision, or only one.
        """
        workflow_id, _ = self._named(principal, owner, name)
        revisions = [int(document["revision"]) for document in self._store.versions.find(workflow_id)]
        if new is None:
            new = revisions[-1]
        if old is None:
            earlier = [revision for revision in revisions if revision < new]
            if not earlier:
                raise ObjectNotFound(f"A revision of workflow {name[:255]!r} before {new} does not exist.")
            old = earlier[-1]
        before, after = (self.version(principal, owner, name, number)["workflow"] for number in (old, new))
        titles = (f"{owner}/{name} revision {old}", f"{owner}/{name} revision {new}")
        return {"fromRevision": old, "toRevision": new, **differences.difference(before, after, titles)}

    def restore(self, principal: Principal, owner: str, name: str, revision: int) -> Workflow:
        """Make an earlier definition the current one, as a new revision; a deleted workflow is there again.

        :raises ObjectNotFound: no such revision. Otherwise as :meth:`upsert`.
        """
        found = self.version(principal, owner, name, revision)["workflow"]
        return self._upsert(principal, self._checked(principal, found, False), f"revision {revision} restored")

    def _named(self, principal: Principal, owner: str, name: str) -> tuple[str, int]:
        """Return the id of the workflow that has or had a name, and its current revision (0: it is deleted)."""
        specs.check_owner(owner)
        if not self._rights.sees(principal, owner):
            raise _missing(owner, name)
        found = self._store.workflow(owner, name)
        if found is not None:
            self._keep_old(found)
            return str(found["id"]), int(found.get("revision", 1))
        workflow_id = self._store.versions.id_of(owner, name)
        if workflow_id is None or self._store.workflow_by_id(workflow_id):  # renamed since: ask by its present name
            raise _missing(owner, name)
        return workflow_id, 0


def _version(document: Mapping[str, Any], current: int) -> Version:
    return {
        "revision": document["revision"],
        "time": document["time"],
        "timestamp": timestamps.text(document["time"]),
        "username": document["username"],
        "note": document["note"],
        "id": document["workflowId"],
        "owner": document["owner"],
        "name": document["name"],
        "description": document["description"],
        "isCurrent": document["revision"] == current,
    }


def _missing(owner: str, name: str) -> ObjectNotFound:
    return ObjectNotFound(f"Workflow {name[:255]!r} of owner {owner!r} does not exist.")
