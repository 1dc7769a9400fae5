"""The published Python API of the Processing Service: workflows and processing jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from dm.common.client import ApiClient, ServiceMonitorApi, segment
from dm.common.errors import CommunicationError, InvalidArgument, ObjectNotFound, ServiceUnavailable, TaskTimeout
from dm.common.records import DmObject
from dm.common.statuses import INACTIVE
from dm.common.wire import json_text

DEFAULT_LIMIT = 5_000
MAX_WAIT_TIME = 30.0
BULK_JOBS = 200
BULK_BYTES = 4 << 20
_PATIENCE = 60.0
_PAUSE = 1.0

KeyList = str | list[str]


class Workflow(DmObject):
    """A workflow: ``id``, ``name``, ``owner``, ``userAccount``, ``description``, ``stages`` in execution order."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["id", "name", "owner"]


class ChildProcess(DmObject):
    """One process of a job: command, status, exitStatus, stdOut, stdErr, times."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "childProcessNumber",
        "stageId",
        "status",
        "exitStatus",
        "startTime",
        "endTime",
        "runTime",
    ]


class ProcessingJob(DmObject):
    """A processing job.

    Besides what the engine knows (``id``, ``owner``, ``status``, ``stage``, times, ``countFiles``) it has every
    submitted argument and every captured variable at its top, and ``workflow`` with the processes of each stage.
    """

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "id",
        "owner",
        "status",
        "stage",
        "startTime",
        "endTime",
        "runTime",
        "startTimestamp",
        "endTimestamp",
        "errorMessage",
    ]

    @property
    def is_over(self) -> bool:
        """Whether the status is final."""
        return self.data.get("status") in INACTIVE

    def getWorkflowStage(self, stageId: str) -> dict[str, Any]:
        """Return a stage of the job's workflow with its ``childProcesses``.

        :raises ObjectNotFound: no such stage.
        """
        stages: dict[str, Any] = self.data.get("workflow", {}).get("stages", {})
        if stageId not in stages:
            known = ", ".join(stages) or "none (the record was listed without its workflow)"
            raise ObjectNotFound(f"Job {self.data.get('id')} has no stage {stageId!r}; its stages are {known}.")
        stage: dict[str, Any] = stages[stageId]
        return stage


class WorkflowProcApi(ApiClient):
    """Manage workflows, start and follow processing jobs."""

    URL_VARIABLE = "DM_PROC_WEB_SERVICE_URL"

    # --- workflows ------------------------------------------------------------------------------------------

    def addWorkflow(self, workflow: Mapping[str, Any]) -> Workflow:
        """Store a new workflow.

        :param workflow: ``name``, ``stages`` and perhaps ``owner`` (else the user), ``description`` ...
        :raises ObjectAlreadyExists: owner and name are taken. :raises InvalidArgument: what is wrong with it.
        """
        return Workflow(self.client.post("/workflows/addWorkflow", _spec(workflow)))

    def updateWorkflow(self, workflow: Mapping[str, Any]) -> Workflow:
        """Replace a workflow, found by ``id`` if given, else by owner and name. :raises ObjectNotFound: none."""
        return Workflow(self.client.put("/workflows/updateWorkflow", _spec(workflow)))

    def upsertWorkflow(self, workflow: Mapping[str, Any]) -> Workflow:
        """Replace a workflow, or add it when there is none."""
        return Workflow(self.client.put("/workflows/upsertWorkflow", _spec(workflow)))

    def getWorkflowByName(self, owner: str, name: str) -> Workflow:
        """Return a workflow. :raises ObjectNotFound: none the user may see."""
        return Workflow(self.client.get(f"/workflowsByOwner/{_owner(owner)}/{segment(name)}"))

    def getWorkflowById(self, owner: str, id: str) -> Workflow:
        """Return a workflow. :raises ObjectNotFound: none the user may see."""
        return Workflow(self.client.get(f"/workflowsById/{segment(id)}", owner=owner or None))

    def deleteWorkflowByName(self, owner: str, name: str) -> Workflow:
        """Delete a workflow and return it; jobs it started keep their copies. :raises ObjectNotFound: none."""
        return Workflow(self.client.delete(f"/workflowsByOwner/{_owner(owner)}/{segment(name)}"))

    def listWorkflows(self, owner: str | None = None, queryDict: Mapping[str, Any] | None = None) -> list[Workflow]:
        """Return the workflows of an owner (default: the user), by name.

        :param queryDict: conditions on their top-level keys.
        """
        path = f"/workflowsByOwner/{_owner(owner or self.username)}"
        return self._records(Workflow, self.client.get(path, queryDict=dict(queryDict or {})))

    # --- jobs -----------------------------------------------------------------------------------------------

    def startProcessingJob(
        self,
        workflowOwner: str,
        workflowName: str,
        argsDict: Mapping[str, Any] | None = None,
        idempotencyKey: str | None = None,
        jobOwner: str | None = None,
    ) -> ProcessingJob:
        """Start a job and return its record at once.

        :param argsDict: input files (``filePath``, ``filePathList``, ``filePathPattern`` or ``dataDir``), perhaps
            ``experimentName``, and the values of the workflow's variables: texts, numbers, truth values.
        :param idempotencyKey: sent again with the same key, e.g. after an interrupted call, the job is not started
            twice: the first one is returned.
        :param jobOwner: whose job it is; only managers of the station may name somebody else.
        :raises ObjectNotFound: no such workflow or experiment.
        """
        if argsDict is not None and not isinstance(argsDict, Mapping):
            raise InvalidArgument(f"argsDict is {argsDict!r:.80}; give a dictionary.")
        body: dict[str, Any] = {"argsDict": dict(argsDict or {})}
        if idempotencyKey:
            body["idempotencyKey"] = idempotencyKey
        if jobOwner:
            body["jobOwner"] = jobOwner
        path = f"/processingJobsByWorkflow/{_owner(workflowOwner)}/{segment(workflowName)}/startProcessingJob"
        return ProcessingJob(self.client.post(path, body))

    def startProcessingJobs(
        self, workflowOwner: str, workflowName: str, jobs: Sequence[Mapping[str, Any]]
    ) -> list[DmObject]:
        """Start many jobs of one workflow with few calls. One that is refused does not stop the others.

        :param jobs: of each ``argsDict`` and perhaps ``idempotencyKey`` and ``jobOwner``; see
            :meth:`startProcessingJob`. Jobs without a key may start twice when an interrupted call is repeated.
        :returns: of each, in the same order, ``id``, ``owner`` and ``status``, or ``errorCode``, ``errorClass`` and
            ``errorMessage``. :raises ObjectNotFound: no such workflow.
        """
        path = f"/processingJobsByWorkflow/{_owner(workflowOwner)}/{segment(workflowName)}/startProcessingJobs"
        answers: list[DmObject] = []
        for part in _parts(jobs):
            answers += self._records(DmObject, self.client.post(path, {"jobs": part}))
        return answers

    def getProcessingJobById(self, owner: str | None, id: str, waitTime: float | None = None) -> ProcessingJob:
        """Return a job with its processes.

        :param owner: its owner, or its workflow's; ``None`` for any the user may see.
        :param waitTime: seconds (at most 30) to wait for its end first.
        :raises ObjectNotFound: none the user may see.
        """
        where = f"/processingJobsByOwner/{_owner(owner)}/" if owner else "/processingJobsById/"
        return ProcessingJob(self.client.get(where + segment(id), waitTime=waitTime))

    def listProcessingJobs(
        self,
        owner: str | None = None,
        queryDict: Mapping[str, Any] | None = None,
        skip: int = 0,
        limit: int = DEFAULT_LIMIT,
        keyList: KeyList = "DEFAULT",
    ) -> list[ProcessingJob]:
        """Return jobs, oldest first: the last one is the newest.

        :param owner: whose; default: all the user may see. :param queryDict: conditions on job keys, arguments and
            captured variables. :param skip: :param limit: page, counted from the newest.
        :param keyList: ``"DEFAULT"``, ``"ALL"`` (also arguments and workflow), or a list of keys.
        """
        path = f"/processingJobsByOwner/{_owner(owner)}" if owner else "/processingJobs"
        keys = keyList.split(",") if isinstance(keyList, str) and "," in keyList else keyList
        found = self.client.get(path, queryDict=dict(queryDict or {}), skip=skip, limit=limit, keyList=keys)
        return self._records(ProcessingJob, found)

    def getLastProcessingJob(
        self, owner: str | None = None, queryDict: Mapping[str, Any] | None = None
    ) -> ProcessingJob:
        """Return the newest job; arguments as in :meth:`listProcessingJobs`. :raises ObjectNotFound: there is none."""
        found = self.listProcessingJobs(owner, queryDict, limit=1)
        if not found:
            raise ObjectNotFound("A processing job of that kind does not exist.")
        return self.getProcessingJobById(None, found[-1]["id"])

    def stopProcessingJob(self, owner: str | None, id: str) -> ProcessingJob:
        """Stop a job: its processes are asked to end, then killed.

        :param owner: its owner; ``None``: looked up.
        :returns: its record; the status becomes ``aborted`` soon. :raises InvalidObjectState: it has ended already.
        """
        return ProcessingJob(self.client.post(f"{self._path(owner, id)}/stopProcessingJob"))

    def deleteProcessingJob(self, owner: str | None, id: str) -> ProcessingJob:
        """Delete an ended job and return its last record. :raises InvalidObjectState: it has not ended."""
        return ProcessingJob(self.client.delete(self._path(owner, id)))

    def listChildProcesses(self, owner: str | None, id: str, skip: int = 0, limit: int = 1_000) -> list[ChildProcess]:
        """Return processes of a job by number; a job's record holds the newest 1,000 only.

        :param skip: :param limit: page, counted from the first.
        """
        found = self.client.get(f"{self._path(owner, id)}/childProcesses", skip=skip, limit=limit)
        return self._records(ChildProcess, found)

    def waitProcessingJob(
        self,
        owner: str | None,
        id: str,
        timeout: float | None = None,
        progress: Callable[[ProcessingJob], None] | None = None,
    ) -> ProcessingJob:
        """Wait for the end of a job. A restart of the service meanwhile is waited out.

        :param timeout: seconds; ``None`` waits as long as it takes.
        :param progress: called with the record about once a second.
        :returns: the final record; look at ``status``. :raises TaskTimeout: it has not ended in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = 1.0 if progress else MAX_WAIT_TIME
        last_answer = time.monotonic()
        status = "unknown"
        while True:
            left = MAX_WAIT_TIME if deadline is None else deadline - time.monotonic()
            try:
                job = self.getProcessingJobById(owner, id, waitTime=max(0.0, min(poll, left)))
                last_answer, status = time.monotonic(), job["status"]
                if progress:
                    progress(job)
                if job.is_over:
                    return job
            except (CommunicationError, ServiceUnavailable):
                if time.monotonic() - last_answer > _PATIENCE:
                    raise
                time.sleep(max(0.0, min(_PAUSE, left)))
            if deadline is not None and time.monotonic() >= deadline:
                raise TaskTimeout(f"Job {id} has not ended after {timeout:g} s: its status is {status!r}.")

    def _path(self, owner: str | None, id: str) -> str:
        owner = owner or self.getProcessingJobById(None, id)["owner"]
        return f"/processingJobsByOwner/{_owner(owner)}/{segment(id)}"


class ServiceMonitorProcApi(ServiceMonitorApi):
    """Health of the Processing Service."""

    URL_VARIABLE = "DM_PROC_WEB_SERVICE_URL"


def _owner(owner: str | None) -> str:
    """Return an owner as path segment; scripts look for the words *invalid owner name*."""
    if not owner or not isinstance(owner, str):
        raise InvalidArgument(f"Value {owner!r} is an invalid owner name.")
    return segment(owner)


def _parts(jobs: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield jobs in parts that fit into one request."""
    part: list[dict[str, Any]] = []
    size = 0
    for job in jobs:
        weight = len(json_text(dict(job)))
        if part and (len(part) >= BULK_JOBS or size + weight > BULK_BYTES):
            yield part
            part, size = [], 0
        part.append(dict(job))
        size += weight
    if part:
        yield part


def _spec(workflow: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(workflow, Mapping):
        raise InvalidArgument(f"A workflow is a dictionary, not {type(workflow).__name__}.")
    return {"workflow": dict(workflow), "allowCurrentUsername": True}
