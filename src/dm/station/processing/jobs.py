"""The use cases of processing jobs that have been accepted: get, list, stop, go on, delete."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dm.common import statuses
from dm.common.errors import (
    AuthorizationError,
    InvalidArgument,
    InvalidObjectState,
    ObjectNotFound,
    ServiceUnavailable,
)
from dm.common.web.routes import Principal
from dm.station.processing import documents, queries, reopening, specs
from dm.station.processing.engine import Engine
from dm.station.processing.rights import Rights
from dm.station.processing.store import Store
from dm.station.processing.submissions import Site

MAX_PAGE = 5_000
MAX_SUBMITTED = 500
LIST_OUTPUT = 16 << 20
SMALL_SHARE = 256
_CURSOR = re.compile(r"[0-9]{1,20}")
_JOB_ID = re.compile(r"[A-Za-z0-9-]{1,64}")

Job = dict[str, Any]
T = TypeVar("T")


class Jobs:
    """The processing jobs of a station.

    :param store: :param engine: :param rights: see there. :param site: answers about experiments.
    :param waiters: how many callers may wait for the end of a job at the same time; others are answered at once.
    """

    def __init__(self, store: Store, engine: Engine, rights: Rights, site: Site, waiters: int) -> None:
        self._store = store
        self._engine = engine
        self._rights = rights
        self._site = site
        self._waiters = threading.BoundedSemaphore(max(1, waiters))

    # --- asking ----------------------------------------------------------------------------------------------

    def get(self, principal: Principal, job_id: str, owner: str | None = None, wait: float = 0.0) -> Job:
        """Return a job with its processes (the newest 1,000 of them).

        :param owner: whose it is, or whose workflow it runs; ``None`` for whatever the caller may see.
        :param wait: seconds to wait for its end first.
        :raises ObjectNotFound: none the caller may see.
        """
        document = self._visible(principal, job_id, owner)
        if wait > 0 and document.get("active") and self._waiters.acquire(blocking=False):
            try:
                self._engine.wait(job_id, wait)
            finally:
                self._waiters.release()
            document = self._found(job_id)
        count = document["nextChild"]
        if count <= documents.EMBEDDED:
            return documents.record(document)
        first = max(documents.EMBEDDED, count - documents.SHOWN)
        return documents.record(document, "ALL", self._store.children(job_id, first))

    def find(
        self,
        principal: Principal,
        *,
        owner: str | None = None,
        query: Mapping[str, Any] | None = None,
        skip: int = 0,
        limit: int = MAX_PAGE,
        keys: str | list[str] | None = None,
    ) -> list[Job]:
        """Return a page of jobs, oldest first; ``skip`` and ``limit`` count from the newest, so the last is newest.

        :param owner: whose; ``None`` for all the caller may see. :param query: see :mod:`queries`.
        :param keys: see :func:`documents.record`; with ``ALL``, processes beyond the first 64 of a job and long
            outputs are left to :meth:`get`.
        """
        conditions, owner = queries.translated(query), self._asked(principal, owner)
        if not limit:  # the database takes 0 for any number
            return []
        found = self._store.jobs(owner, conditions, skip, min(limit, MAX_PAGE), documents.unneeded(keys))
        return self._records(found, keys)

    def page(
        self,
        principal: Principal,
        *,
        owner: str | None = None,
        query: Mapping[str, Any] | None = None,
        after: str | None = None,
        limit: int = MAX_PAGE,
        keys: str | list[str] | None = None,
    ) -> Job:
        """Return a page of jobs, newest first; any page costs the same.

        :param after: the cursor of the page before; ``None`` starts with the newest. Others: see :meth:`find`.
        :returns: ``{"jobs": [...], "after": cursor}``; the cursor is ``None`` on the last page.
        :raises InvalidArgument: not a cursor.
        """
        if after and not _CURSOR.fullmatch(after):
            raise InvalidArgument(f"Cursor {after[:40]!a} is not one this service gave; start without 'after'.")
        conditions, owner = queries.translated(query), self._asked(principal, owner)
        limit = min(limit, MAX_PAGE)
        found = self._store.jobs(owner, conditions, 0, limit + 1, documents.unneeded(keys), after or None)[::-1]
        records = self._records(found[:limit], keys)
        return {"jobs": records, "after": found[limit - 1]["order"] if len(found) > limit else None}

    def _asked(self, principal: Principal, owner: str | None) -> str | None:
        """Return whose jobs are listed; ``None`` for everybody's. :raises AuthorizationError: not the caller's."""
        if owner is not None:
            self._rights.check_owner(principal, specs.check_owner(owner))
        elif not self._rights.manages(principal):
            return principal.username
        return owner

    @staticmethod
    def _records(found: Sequence[Mapping[str, Any]], keys: str | list[str] | None) -> list[Job]:
        room, records = LIST_OUTPUT, []
        for document in found:
            share = documents.RECORD_OUTPUT if room > 0 else SMALL_SHARE
            record = documents.record(document, keys, (), share)
            room -= sum(len(child.get("stdOut", "")) + len(child.get("stdErr", "")) for child in _children(record))
            records.append(record)
        return records

    def children(self, principal: Principal, job_id: str, owner: str | None, skip: int, limit: int) -> list[Job]:
        """Return a page of a job's processes by number. :raises ObjectNotFound: no job the caller may see."""
        document = self._visible(principal, job_id, owner)
        embedded = sorted(document["children"].values(), key=lambda child: int(child["number"]))
        page = embedded[skip : skip + limit]
        left = limit - len(page)
        if left > 0 and document["nextChild"] > documents.EMBEDDED:
            page += self._store.children(job_id, max(documents.EMBEDDED, skip), left)
        names = list(json.loads(document["workflow"])["stages"])
        found = [documents.Child.from_document(child) for child in page]
        return [child.record(names[child.stage], documents.RECORD_OUTPUT) for child in found if child.ended]

    def child(
        self, principal: Principal, job_id: str, owner: str | None, number: int
    ) -> tuple[documents.Child | None, bool]:
        """Return a process of a job, also one that runs (``None``: not begun), and whether the job has not ended.

        :raises ObjectNotFound: no job the caller may see.
        """
        document = self._visible(principal, job_id, owner)
        found = document["children"].get(f"c{number}")
        if found is None and number >= documents.EMBEDDED:
            found = next(iter(self._store.children(job_id, number, 1)), None)
        child = documents.Child.from_document(found) if found else None
        return child if child and child.number == number else None, bool(document.get("active"))

    def child_record(self, principal: Principal, job_id: str, owner: str | None, number: int) -> Job:
        """Return the record of one process; of one that runs ``exitStatus`` and ``endTime`` are ``None``.

        :raises ObjectNotFound: no job the caller may see, or it has not begun this process.
        """
        child, _ = self.child(principal, job_id, owner, number)
        if child is None:
            raise ObjectNotFound(f"Process {number} of job {job_id} does not exist.")
        names = list(json.loads(self._found(job_id)["workflow"])["stages"])
        return child.record(names[child.stage], documents.RECORD_OUTPUT)

    # --- changing --------------------------------------------------------------------------------------------

    def stop(self, principal: Principal, job_id: str, owner: str | None = None) -> Job:
        """Stop a job: its processes are asked to end, then killed.

        :raises ObjectNotFound: none the caller may see. :raises InvalidObjectState: it has ended already.
        """
        document = self._visible(principal, job_id, owner)
        if not self._store.request_abort(job_id, statuses.ABORTING):
            status = self._found(job_id)["status"]
            raise InvalidObjectState(f"Processing job {job_id} has ended already; its status is {status!r}.")
        self._engine.abort(job_id)
        return documents.record(self._store.job(job_id) or document)

    def resume(self, principal: Principal, job_id: str, owner: str | None = None) -> Job:
        """Let a failed or aborted job go on where it stopped: what was successful is not run again.

        :raises ObjectNotFound: none the caller may see. :raises InvalidObjectState: it has not ended, or it is done.
        """
        document = self._visible(principal, job_id, owner)
        return self._reopen(principal, document, reopening.resumed(document))

    def restart(
        self, principal: Principal, job_id: str, owner: str | None = None, from_stage: str | None = None
    ) -> Job:
        """Run a stage of an ended job anew, and all stages that come after it.

        :param from_stage: the stage; ``None``: the first. :raises ObjectNotFound: no such stage, or no job the caller
            may see. :raises InvalidObjectState: it has not ended.
        """
        document = self._visible(principal, job_id, owner)
        return self._reopen(principal, document, reopening.restarted(document, from_stage))

    def _reopen(self, principal: Principal, document: Mapping[str, Any], values: Mapping[str, Any]) -> Job:
        workflow = json.loads(document["workflow"])
        if not self._rights.sees(principal, workflow["owner"]):  # its owner may have taken it away since
            raise AuthorizationError(f"User {principal.username!r} may not run workflows of {workflow['owner']!r}.")
        experiment = json.loads(document["arguments"]).get("experimentName")
        if isinstance(experiment, str) and experiment:  # the caller may have left it since
            self._site.experiment(principal, experiment)
        if not self._engine.alive():
            raise ServiceUnavailable("The processing engine does not run; try again later.")
        try:
            if not self._store.reopen_job(document["_id"], document.get("restarts", 0), values):
                raise InvalidObjectState(f"Processing job {document['_id']} goes on already.")
            found = self._found(document["_id"])
        except ServiceUnavailable:
            self._engine.look_again()  # nobody knows whether it goes on; if it does, it runs
            raise
        self._engine.submit(found)
        return documents.record(found)

    def delete(self, principal: Principal, job_id: str, owner: str | None = None) -> Job:
        """Delete an ended job and return its record. :raises InvalidObjectState: it has not ended."""
        document = self._visible(principal, job_id, owner)
        if not self._store.delete_job(job_id):
            raise InvalidObjectState(f"Processing job {job_id} is {document['status']}; stop it first.")
        self._engine.context.logs.remove(job_id)
        return documents.record(document)

    def _visible(self, principal: Principal, job_id: str, owner: str | None) -> dict[str, Any]:
        document = self._store.job(job_id) if _JOB_ID.fullmatch(job_id) else None
        if document is None or not self._rights.sees(principal, document["owner"]):
            raise _missing(job_id)
        if owner is not None and owner not in (document["owner"], document["workflowOwner"]):
            raise _missing(job_id)
        return document

    def _found(self, job_id: str) -> dict[str, Any]:
        document = self._store.job(job_id)
        if document is None:
            raise _missing(job_id)
        return document


def _missing(job_id: str) -> ObjectNotFound:
    return ObjectNotFound(f"Processing job {job_id[:80]!r} does not exist.")


def _children(record: Job) -> list[dict[str, Any]]:
    stages = record.get("workflow", {}).get("stages", {}).values()
    return [child for stage in stages for child in stage["childProcesses"].values()]
