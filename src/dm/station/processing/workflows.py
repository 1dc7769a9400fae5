"""The use cases of workflows: list, get, add, update, upsert, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dm.common.errors import ObjectAlreadyExists, ObjectNotFound
from dm.common.web.routes import Principal
from dm.station.processing import queries, specs
from dm.station.processing.rights import Rights
from dm.station.processing.store import Store

Workflow = dict[str, Any]


class Workflows:
    """The workflows of a station. Records are the checked specs with their ``id``.

    :param store: :param rights: see there.
    """

    def __init__(self, store: Store, rights: Rights) -> None:
        self._store = store
        self._rights = rights

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
            raise ObjectNotFound(f"Workflow {name[:255]!r} of owner {owner!r} does not exist.")
        return found

    def get_by_id(self, principal: Principal, workflow_id: str, owner: str | None = None) -> Workflow:
        """Return a workflow by id. :param owner: must be its owner, when given. :raises ObjectNotFound: none."""
        found = self._store.workflow_by_id(workflow_id) if specs.WORKFLOW_ID.fullmatch(workflow_id) else None
        if found is None or owner not in (None, found["owner"]) or not self._rights.sees(principal, found["owner"]):
            raise ObjectNotFound(f"Workflow with id {workflow_id[:80]!r} does not exist.")
        return found

    def add(self, principal: Principal, spec: Any, allow_current_username: bool = False) -> Workflow:
        """Store a new workflow.

        :param allow_current_username: take the caller as owner when the spec names none.
        :returns: it, with its id: the spec's own unless another workflow has it.
        :raises ObjectAlreadyExists: owner and name are taken.
        :raises InvalidArgument: what is wrong with it. :raises AuthorizationError: see :class:`Rights`.
        """
        workflow = self._checked(principal, spec, allow_current_username)
        if "id" not in workflow or self._store.workflow_by_id(workflow["id"]):
            workflow["id"] = specs.new_id()
        self._store.add_workflow(workflow)
        return workflow

    def update(self, principal: Principal, spec: Any, allow_current_username: bool = False) -> Workflow:
        """Replace a workflow, found by the spec's id, else by owner and name; it may be renamed by its id.

        :raises ObjectNotFound: no such workflow. Otherwise as :meth:`add`.
        """
        workflow = self._checked(principal, spec, allow_current_username)
        old = self._store.workflow_by_id(workflow["id"]) if "id" in workflow else None
        old = old or self._store.workflow(workflow["owner"], workflow["name"])
        if old is None:
            raise ObjectNotFound(
                f"Workflow {workflow['name']!r} of owner {workflow['owner']!r} does not exist; add it first."
            )
        self._rights.check_author(principal, old["owner"])
        workflow["id"] = old["id"]
        if not self._store.replace_workflow(old, workflow):
            raise ObjectNotFound(f"Workflow {old['name']!r} of owner {old['owner']!r} has just been deleted.")
        return workflow

    def upsert(self, principal: Principal, spec: Any, allow_current_username: bool = False) -> Workflow:
        """Update the workflow, or add it when there is none. Errors as of both."""
        try:
            return self.update(principal, spec, allow_current_username)
        except ObjectNotFound:
            try:
                return self.add(principal, spec, allow_current_username)
            except ObjectAlreadyExists:  # somebody else has just added it
                return self.update(principal, spec, allow_current_username)

    def delete(self, principal: Principal, owner: str, name: str) -> Workflow:
        """Delete a workflow and return it; its jobs keep their copies. :raises ObjectNotFound: none."""
        found = self.get(principal, owner, name)
        self._rights.check_author(principal, owner)
        self._store.delete_workflow(owner, name)
        return found

    def _checked(self, principal: Principal, spec: Any, allow_current_username: bool) -> Workflow:
        workflow = specs.checked(spec, principal.username if allow_current_username else None)
        self._rights.check_author(principal, workflow["owner"])
        return workflow
