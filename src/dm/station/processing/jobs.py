"""The use cases of processing jobs: submit, get, list, stop, delete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dm.common import statuses
from dm.common.errors import (
    AuthorizationError,
    DmException,
    InvalidArgument,
    InvalidObjectState,
    ObjectNotFound,
    ServiceLimit,
    ServiceUnavailable,
)
from dm.common.web.routes import Principal
from dm.station.processing import documents, inputs, queries, specs, substitution
from dm.station.processing.engine import Engine
from dm.station.processing.expressions import as_text
from dm.station.processing.rights import Rights
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.store import Store
from dm.station.processing.workflows import Workflows

MAX_ARGUMENTS = 1_000
MAX_ARGUMENT_NAME = 255
MAX_SIZE = 4 << 20
MAX_PAGE = 5_000
MAX_KEY = 1_024
MAX_SUBMITTED = 500
LIST_OUTPUT = 16 << 20
SMALL_SHARE = 256
_JOB_ID = re.compile(r"[A-Za-z0-9-]{1,64}")

Job = dict[str, Any]


class Site(Protocol):
    """What is asked of the site (see :class:`dm.station.identity.SiteIdentity`)."""

    def experiment(self, principal: Principal, name: str) -> Any:
        """Return an experiment as the caller sees it. :raises ObjectNotFound: *does not exist*."""
        ...

    def close(self) -> None:
        """Close the connections."""


class Jobs:
    """The processing jobs of a station.

    :param store: :param engine: :param workflows: :param rights: :param settings: :param site: see there.
    """

    def __init__(
        self,
        *,
        store: Store,
        engine: Engine,
        workflows: Workflows,
        rights: Rights,
        settings: ProcessingSettings,
        site: Site,
    ) -> None:
        self._store = store
        self._engine = engine
        self._workflows = workflows
        self._rights = rights
        self._settings = settings
        self._site = site
        self._waiters = threading.BoundedSemaphore(max(1, settings.threads // 2))

    # --- submitting ------------------------------------------------------------------------------------------

    def submit(
        self,
        principal: Principal,
        workflow_owner: str,
        workflow_name: str,
        arguments: Mapping[str, Any],
        *,
        job_owner: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Accept a job; it is durable when this returns.

        :param arguments: input specification and values of ``$name``; a bad input specification is accepted and
            makes the job fail.
        :param job_owner: whose job it is; only managers may name others than themselves.
        :param idempotency_key: the same key of the same caller gives the same job, however often and whenever.
        :returns: the full record.
        :raises ObjectNotFound: no such workflow or experiment. :raises InvalidArgument: an argument that cannot be.
        :raises ServiceLimit: too many jobs have not ended yet.
        """
        workflow = self._workflows.get(principal, workflow_owner, workflow_name)
        return documents.record(self._submit(principal, workflow, arguments, job_owner, idempotency_key))

    def submit_many(
        self, principal: Principal, workflow_owner: str, workflow_name: str, wishes: Sequence[Mapping[str, Any]]
    ) -> list[Job]:
        """Accept many jobs of one workflow; one that cannot be accepted does not stop the others.

        :param wishes: of each job ``argsDict``, ``jobOwner`` and ``idempotencyKey``; see :meth:`submit`.
        :returns: in the same order ``id``, ``owner`` and ``status``, or the error as errors look on the wire.
        :raises ObjectNotFound: no such workflow. :raises ServiceUnavailable: not all were tried: repeat it.
        """
        if len(wishes) > MAX_SUBMITTED:
            raise ServiceLimit(f"{len(wishes)} jobs are more than {MAX_SUBMITTED}; submit them in parts.")
        workflow = self._workflows.get(principal, workflow_owner, workflow_name)
        answers: list[Job] = []
        for wish in wishes:
            arguments, owner, key = wish.get("argsDict") or {}, wish.get("jobOwner"), wish.get("idempotencyKey")
            try:
                if not isinstance(arguments, Mapping):
                    raise InvalidArgument(f"argsDict is {arguments!r:.80}, not an object.")
                for name, text in (("jobOwner", owner), ("idempotencyKey", key)):
                    if not isinstance(text, str | None):
                        raise InvalidArgument(f"{name} is {text!r:.80}, not a text.")
                document = self._submit(principal, workflow, arguments, owner, key)
                answers.append(documents.record(document, ["id", "owner", "status"]))
            except ServiceUnavailable:
                raise
            except DmException as error:
                answers.append(error.to_wire())
        return answers

    def _submit(
        self,
        principal: Principal,
        workflow: Mapping[str, Any],
        arguments: Mapping[str, Any],
        job_owner: str | None,
        idempotency_key: str | None,
    ) -> dict[str, Any]:
        """Accept a job of a workflow and return its document."""
        owner = specs.check_owner(job_owner or principal.username)
        if owner != principal.username and not self._rights.manages(principal):
            raise AuthorizationError(f"User {principal.username!r} may not submit jobs of {owner!r}.")
        job_id = _job_id(principal.username, idempotency_key)
        if idempotency_key and (existing := self._store.job(job_id)):
            return existing
        _check_arguments(arguments)
        if not self._engine.alive():
            raise ServiceUnavailable("The processing engine does not run; try again later.")
        directory = self._data_directory(principal, arguments)
        if self._engine.load()["jobs"] >= self._settings.active_jobs:
            raise ServiceLimit(f"{self._settings.active_jobs} jobs have not ended yet; submit again later.")
        files, error = self._files(arguments, directory)
        document = documents.new_job(
            job_id=job_id,
            order=self._store.next_order(),
            owner=owner,
            workflow=workflow,
            arguments=arguments,
            files=files,
            error=error,
            data_directory=directory,
        )
        if not self._store.add_job(document):
            return self._found(job_id)
        self._engine.submit(document)
        return document

    def _data_directory(self, principal: Principal, arguments: Mapping[str, Any]) -> str | None:
        """Return the data directory of the job's experiment, which the caller must be allowed to see."""
        name = arguments.get("experimentName")
        if name in (None, ""):
            return None
        if not isinstance(name, str):
            raise InvalidArgument(f"Argument experimentName has value {name!r:.80}, which is not a text.")
        try:
            directory = self._site.experiment(principal, name).get("dataDirectory")
        except ServiceUnavailable:
            if principal.serves(self._rights.station):  # running DAQs go on while the site does not answer
                return None
            raise
        return directory or None

    def _files(self, arguments: Mapping[str, Any], directory: str | None) -> tuple[list[str], str | None]:
        try:
            limit = self._settings.files_per_job
            return inputs.files(arguments, limit, directory, allow_listing=os.geteuid() != 0), None
        except InvalidArgument as error:
            return [], error.message

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
        conditions = queries.translated(query)
        if owner is not None:
            self._rights.check_owner(principal, specs.check_owner(owner))
        elif not self._rights.manages(principal):
            owner = principal.username
        without = documents.unneeded(keys)
        found = self._store.jobs(owner, conditions, skip, min(limit, MAX_PAGE), without)
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

    def delete(self, principal: Principal, job_id: str, owner: str | None = None) -> Job:
        """Delete an ended job and return its record. :raises InvalidObjectState: it has not ended."""
        document = self._visible(principal, job_id, owner)
        if not self._store.delete_job(job_id):
            raise InvalidObjectState(f"Processing job {job_id} is {document['status']}; stop it first.")
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


def _job_id(username: str, key: str | None) -> str:
    """Return a fresh id, or the one that belongs to an idempotency key: the database's unique key does the rest."""
    if not key:
        return str(uuid.uuid4())
    if len(key) > MAX_KEY:
        raise InvalidArgument(f"The idempotency key is longer than {MAX_KEY} characters.")
    digest = hashlib.sha256(json.dumps([username, key]).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    if len(arguments) > MAX_ARGUMENTS:
        raise InvalidArgument(f"A job takes at most {MAX_ARGUMENTS} arguments, not {len(arguments)}.")
    for name, value in arguments.items():
        if not name or len(name) > MAX_ARGUMENT_NAME or not name.isprintable():
            raise InvalidArgument(f"Argument name {name[:80]!r} is empty, too long or not printable.")
        if name in documents.ENGINE_KEYS:
            raise InvalidArgument(f"Argument name {name!r} is reserved; choose another.")
        text = json.dumps(value) if isinstance(value, dict | list) else as_text(value)
        if reason := substitution.bad_value(name, text):
            raise InvalidArgument(reason)
    if len(json.dumps(dict(arguments))) > MAX_SIZE:
        raise ServiceLimit(f"The arguments of a job are larger than {MAX_SIZE} bytes.")
