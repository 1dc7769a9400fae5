"""Submitting jobs: what is checked, and what is on disk before anybody is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dm.common.errors import AuthorizationError, DmException, InvalidArgument, ServiceLimit, ServiceUnavailable
from dm.common.web.routes import Principal
from dm.station.processing import documents, inputs, logbook, parameters, specs, wishes
from dm.station.processing.engine import Engine
from dm.station.processing.logbook import Logbook
from dm.station.processing.rights import Rights
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.store import Store
from dm.station.processing.turns import Turns
from dm.station.processing.wishes import Wish
from dm.station.processing.workflows import Workflows

MAX_SUBMITTED = 500

Job = dict[str, Any]
T = TypeVar("T")


class Site(Protocol):
    """What is asked of the site (see :class:`dm.station.identity.SiteIdentity`)."""

    def experiment(self, principal: Principal, name: str) -> Any:
        """Return an experiment as the caller sees it. :raises ObjectNotFound: *does not exist*."""
        ...

    def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True)
class Prepared:
    """A job that can be accepted.

    :param document: of the job. :param entry: of the logbook; ``None`` when the job has been accepted before.
    """

    document: dict[str, Any]
    entry: dict[str, Any] | None


class Submissions:
    """How jobs get into a station.

    :param store: :param engine: :param workflows: :param rights: :param settings: :param site: :param logbook: see
        there. :param catalog: finds input files in the catalog.
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
        logbook: Logbook,
        catalog: inputs.Catalog | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._workflows = workflows
        self._rights = rights
        self._settings = settings
        self._site = site
        self._logbook = logbook
        self._turns = Turns()
        self._catalog = catalog

    def submit(
        self,
        principal: Principal,
        workflow_owner: str,
        workflow_name: str,
        arguments: Mapping[str, Any],
        *,
        job_owner: str | None = None,
        idempotency_key: str | None = None,
        priority: int | None = None,
        via: str = "REST",
    ) -> Job:
        """Accept a job; it is durable when this returns.

        A bad input specification is accepted and makes the job fail, as published. The arguments are those of
        :class:`~dm.station.processing.wishes.Wish`.

        :returns: the full record.
        :raises ObjectNotFound: no such workflow or experiment. :raises InvalidArgument: an argument that cannot be.
        :raises AuthorizationError: only managers submit for others, or raise the priority.
        :raises ServiceLimit: too many jobs have not ended yet.
        """
        workflow = self._workflows.get(principal, workflow_owner, workflow_name)
        wish = Wish(arguments, job_owner, idempotency_key, priority, via)
        with self._turns.of(_keyed(principal, [wish])):
            [answer] = self._accept([self._prepared(principal, workflow, wish)])
        if isinstance(answer, DmException):
            raise answer
        return documents.record(answer)

    def submit_many(
        self,
        principal: Principal,
        workflow_owner: str,
        workflow_name: str,
        wishes: Sequence[Mapping[str, Any]],
        via: str = "REST",
    ) -> list[Job]:
        """Accept many jobs of one workflow; one that cannot be accepted does not stop the others.

        :param wishes: see :meth:`Wish.parse`. :param via: the interface they came by.
        :returns: in the same order ``id``, ``owner`` and ``status``, or the error as errors look on the wire.
        :raises ObjectNotFound: no such workflow. :raises ServiceUnavailable: not all were tried: repeat it.
        """
        if len(wishes) > MAX_SUBMITTED:
            raise ServiceLimit(f"{len(wishes)} jobs are more than {MAX_SUBMITTED}; submit them in parts.")
        workflow = self._workflows.get(principal, workflow_owner, workflow_name)
        parsed = [_either(Wish.parse, wish, via) for wish in wishes]
        with self._turns.of(_keyed(principal, [wish for wish in parsed if isinstance(wish, Wish)])):
            prepared = [
                wish if isinstance(wish, DmException) else _either(self._prepared, principal, workflow, wish)
                for wish in parsed
            ]
            answers = iter(self._accept([one for one in prepared if isinstance(one, Prepared)]))
        found = [one if isinstance(one, DmException) else next(answers) for one in prepared]
        if unavailable := next((one for one in found if isinstance(one, ServiceUnavailable)), None):
            raise unavailable
        return [
            one.to_wire() if isinstance(one, DmException) else documents.record(one, ["id", "owner", "status"])
            for one in found
        ]

    def _prepared(self, principal: Principal, workflow: Mapping[str, Any], wish: Wish) -> Prepared:
        """Check a wish, and return the document of its job."""
        owner = specs.check_owner(wish.owner or principal.username)
        if owner != principal.username and not self._rights.manages(principal):
            raise AuthorizationError(f"User {principal.username!r} may not submit jobs of {owner!r}.")
        job_id = wish.job_id(principal.username)
        if wish.key and (existing := self._store.job(job_id)):
            return Prepared(existing, None)
        wishes.check_arguments(wish.arguments)
        arguments = parameters.apply(workflow, wish.arguments)
        priority = wish.priority_of(workflow)
        usual = int(workflow.get("priority") or 0)
        if priority > usual and not self._rights.manages(principal):
            raise AuthorizationError(
                f"User {principal.username!r} may not raise the priority of a job from {usual} to {priority}; managers "
                "of the station may."
            )
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
            priority=priority,
        )
        entry = logbook.entry(
            document, arguments, submitted_by=principal.username, via=wish.via, idempotency_key=wish.key
        )
        return Prepared(document, entry)

    def _accept(self, prepared: Sequence[Prepared]) -> list[dict[str, Any] | DmException]:
        """Log and store new jobs and hand them to the engine; return the documents, or why there is none."""
        new: dict[str, Prepared] = {}  # once where the same key was given twice
        for one in prepared:
            if one.entry is not None:
                new.setdefault(one.document["_id"], one)
        self._logbook.append(*(one.entry for one in new.values() if one.entry is not None))
        stored = {job_id: self._engine.writer.add(one.document) for job_id, one in new.items()}
        accepted: dict[str, dict[str, Any] | DmException] = {}
        for job_id, one in new.items():
            accepted[job_id] = one.document
            try:
                if stored[job_id].result():
                    self._engine.submit(one.document)
                else:
                    self._logbook.withdraw(job_id, "The same job was submitted before.")
                    accepted[job_id] = self._store.job(job_id) or one.document
            except ServiceUnavailable as error:
                # Nobody knows whether it is stored. If it is, it runs: what the database says is true.
                self._engine.look_again()
                self._logbook.withdraw(job_id, f"Not confirmed: {error.message}")
                accepted[job_id] = ServiceUnavailable(
                    f"{error.message} The job may have been accepted; one with an idempotency key can be sent again."
                )
            except DmException as error:
                self._logbook.withdraw(job_id, error.message)
                accepted[job_id] = error
        return [one.document if one.entry is None else accepted[one.document["_id"]] for one in prepared]

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
            return inputs.files(arguments, limit, directory, os.geteuid() != 0, self._catalog), None
        except InvalidArgument as error:
            return [], error.message


def _keyed(principal: Principal, wishes: Sequence[Wish]) -> set[str]:
    """Return the ids of the jobs that have idempotency keys, as far as those can be."""
    ids = [_either(wish.job_id, principal.username) for wish in wishes if wish.key]
    return {job_id for job_id in ids if isinstance(job_id, str)}


def _either(call: Callable[..., T], *arguments: Any) -> T | DmException:
    """Return a result, or why there is none. :raises ServiceUnavailable: that is for all of them."""
    try:
        return call(*arguments)
    except ServiceUnavailable:
        raise
    except DmException as error:
        return error
