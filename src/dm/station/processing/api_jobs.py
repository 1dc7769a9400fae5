"""The job methods of the Processing Service's published Python API: start, follow, stop, repeat, list."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from dm.common.client import ApiClient, segment
from dm.common.errors import CommunicationError, InvalidArgument, ObjectNotFound, ServiceUnavailable, TaskTimeout
from dm.common.records import DmObject
from dm.common.statuses import INACTIVE
from dm.common.wire import json_text

DEFAULT_LIMIT = 5_000
MAX_WAIT_TIME = 30.0
BULK_JOBS = 200
BULK_BYTES = 4 << 20
PAGE = 1_000
_PATIENCE = 60.0
_PAUSE = 1.0
_ANSWER_SECONDS = 60.0

KeyList = str | list[str]
OutputName = Literal["stdOut", "stdErr"]


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


class LogEntry(DmObject):
    """A line of the logbook: a job that was accepted, or that it was ``withdrawn`` after all."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "timestamp",
        "id",
        "owner",
        "submittedBy",
        "via",
        "workflowName",
        "workflowOwner",
        "countFiles",
        "priority",
        "withdrawn",
    ]


class ProcessingJobs(ApiClient):
    """Start and follow processing jobs."""

    # --- jobs -----------------------------------------------------------------------------------------------

    def startProcessingJob(  # noqa: PLR0917 - published order
        self,
        workflowOwner: str,
        workflowName: str,
        argsDict: Mapping[str, Any] | None = None,
        idempotencyKey: str | None = None,
        jobOwner: str | None = None,
        priority: int | None = None,
    ) -> ProcessingJob:
        """Start a job and return its record at once.

        :param argsDict: input files (``filePath``, ``filePathList``, ``filePathPattern``, ``dataDir``, or of
            ``experimentName`` those of ``datasetName`` or ``fileQuery``, a catalog query), perhaps ``experimentName``,
            and the values of the workflow's variables: texts, numbers, truth values.
        :param idempotencyKey: sent again with the same key, e.g. after an interrupted call, the job is not started
            twice: the first one is returned.
        :param jobOwner: whose job it is; only managers of the station may name somebody else.
        :param priority: -100 to 100; jobs of a higher one go first. Default: the workflow's, else 0.
        :raises ObjectNotFound: no such workflow or experiment. :raises InvalidArgument: an argument that the workflow
            declares is missing, or not of its type or choices.
        """
        if argsDict is not None and not isinstance(argsDict, Mapping):
            raise InvalidArgument(f"argsDict is {argsDict!r:.80}; give a dictionary.")
        body: dict[str, Any] = {"argsDict": dict(argsDict or {})}
        if idempotencyKey:
            body["idempotencyKey"] = idempotencyKey
        if jobOwner:
            body["jobOwner"] = jobOwner
        if priority is not None:
            body["priority"] = priority
        path = f"/processingJobsByWorkflow/{owner_segment(workflowOwner)}/{segment(workflowName)}/startProcessingJob"
        return ProcessingJob(self.client.post(path, body))

    def startProcessingJobs(
        self, workflowOwner: str, workflowName: str, jobs: Sequence[Mapping[str, Any]]
    ) -> list[DmObject]:
        """Start many jobs of one workflow with few calls. One that is refused does not stop the others.

        :param jobs: of each ``argsDict`` and perhaps ``idempotencyKey``, ``jobOwner`` and ``priority``; see
            :meth:`startProcessingJob`. Jobs without a key may start twice when an interrupted call is repeated.
        :returns: of each, in the same order, ``id``, ``owner`` and ``status``, or ``errorCode``, ``errorClass`` and
            ``errorMessage``. :raises ObjectNotFound: no such workflow.
        """
        path = f"/processingJobsByWorkflow/{owner_segment(workflowOwner)}/{segment(workflowName)}/startProcessingJobs"
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
        where = f"/processingJobsByOwner/{owner_segment(owner)}/" if owner else "/processingJobsById/"
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
        path = f"/processingJobsByOwner/{owner_segment(owner)}" if owner else "/processingJobs"
        query = dict(queryDict or {})
        found = self.client.get(path, queryDict=query, skip=skip, limit=limit, keyList=_keys(keyList))
        return self._records(ProcessingJob, found)

    def iterateProcessingJobs(
        self,
        owner: str | None = None,
        queryDict: Mapping[str, Any] | None = None,
        limit: int | None = None,
        keyList: KeyList = "DEFAULT",
    ) -> Iterator[ProcessingJob]:
        """Yield jobs, newest first, page by page: any number of them, at the same cost from first to last.

        :param limit: how many at most; ``None``: all. Other arguments as in :meth:`listProcessingJobs`.
        """
        path = f"/processingJobPagesByOwner/{owner_segment(owner)}" if owner else "/processingJobPages"
        arguments: dict[str, Any] = {"queryDict": dict(queryDict or {}), "keyList": _keys(keyList)}
        left, after = limit, None
        while left is None or left > 0:
            wanted = PAGE if left is None else min(left, PAGE)
            page = self.client.get(path, after=after, limit=wanted, **arguments)
            yield from self._records(ProcessingJob, page["jobs"])
            left = None if left is None else left - len(page["jobs"])
            after = page["after"]
            if after is None:
                return

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

    def abortProcessingJob(self, owner: str | None, id: str) -> ProcessingJob:
        """The same as :meth:`stopProcessingJob`, by another name."""
        return self.stopProcessingJob(owner, id)

    def resumeProcessingJob(self, owner: str | None, id: str) -> ProcessingJob:
        """Let a failed or aborted job go on where it stopped; processes that are done are not run again.

        :param owner: its owner; ``None``: looked up.
        :returns: its record; the id stays. :raises InvalidObjectState: it has not ended, or is done.
        """
        return ProcessingJob(self.client.post(f"{self._path(owner, id)}/resumeProcessingJob"))

    def restartProcessingJob(self, owner: str | None, id: str, fromStage: str | None = None) -> ProcessingJob:
        """Run a stage of an ended job and all later ones anew.

        :param owner: its owner; ``None``: looked up. :param fromStage: name of the first stage to run again;
            ``None``: the whole job.
        :returns: its record; the id stays. :raises InvalidObjectState: it has not ended, or a stage before that one is
            not done. :raises ObjectNotFound: it has no such stage.
        """
        body = {"fromStage": fromStage} if fromStage else {}
        return ProcessingJob(self.client.post(f"{self._path(owner, id)}/restartProcessingJob", body))

    def deleteProcessingJob(self, owner: str | None, id: str) -> ProcessingJob:
        """Delete an ended job and return its last record. :raises InvalidObjectState: it has not ended."""
        return ProcessingJob(self.client.delete(self._path(owner, id)))

    def listChildProcesses(self, owner: str | None, id: str, skip: int = 0, limit: int = 1_000) -> list[ChildProcess]:
        """Return processes of a job by number; a job's record holds the newest 1,000 only.

        :param skip: :param limit: page, counted from the first.
        """
        found = self.client.get(f"{self._path(owner, id)}/childProcesses", skip=skip, limit=limit)
        return self._records(ChildProcess, found)

    def getChildProcess(self, owner: str | None, id: str, childProcessNumber: int) -> ChildProcess:
        """Return one process of a job, also one that still runs: its ``exitStatus`` and ``endTime`` are ``None`` then.

        :raises ObjectNotFound: no such job, or it has not begun a process of this number.
        """
        return ChildProcess(self.client.get(f"{self._path(owner, id)}/childProcesses/{int(childProcessNumber)}"))

    def getProcessingJobOutput(
        self,
        owner: str | None,
        id: str,
        childProcessNumber: int,
        stream: OutputName = "stdOut",
        follow: bool = False,
    ) -> Iterator[bytes]:
        """Yield all that a process of a job printed, as it is: the job's record has only beginning and end of much.

        A reply that breaks off is continued where it broke; a restart of the service is waited out.

        :param stream: ``stdOut`` or ``stdErr``.
        :param follow: yield also what the process has yet to print, until it ends; it need not have begun.
        :raises ObjectNotFound: no such job or process.
        """
        if stream not in ("stdOut", "stdErr"):
            raise InvalidArgument(f"Stream {stream!r} is unknown; take stdOut or stdErr.")
        base = f"{self._path(owner, id)}/childProcesses/{int(childProcessNumber)}"
        offset, last_answer, over = 0, time.monotonic(), not follow
        while True:
            try:
                before, begun = offset, time.monotonic()
                wait = None if over else MAX_WAIT_TIME
                query = {"offset": offset, "waitTime": wait}
                for piece in self.client.stream(f"{base}/{stream}", timeout=_ANSWER_SECONDS, **query):
                    offset, last_answer = offset + len(piece), time.monotonic()
                    yield piece
                last_answer = time.monotonic()
                if over:
                    return
                if offset == before:  # what is printed last comes before the end is told
                    over = self.client.get(base)["endTime"] is not None
                    if not over and last_answer - begun < _PAUSE:  # too many wait at the service already
                        time.sleep(_PAUSE)
            except ObjectNotFound:
                if not follow or self.getProcessingJobById(None, id).is_over:
                    raise
                time.sleep(_PAUSE)
            except (CommunicationError, ServiceUnavailable):
                if time.monotonic() - last_answer > _PATIENCE:
                    raise
                time.sleep(_PAUSE)

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
            asked, begun = max(0.0, min(poll, left)), time.monotonic()
            try:
                job = self.getProcessingJobById(owner, id, waitTime=asked)
                last_answer, status = time.monotonic(), job["status"]
                if progress:
                    progress(job)
                if job.is_over:
                    return job
                if last_answer - begun < asked / 2:  # too many wait at the service already: it answers at once
                    time.sleep(min(_PAUSE, asked))
            except (CommunicationError, ServiceUnavailable):
                if time.monotonic() - last_answer > _PATIENCE:
                    raise
                time.sleep(max(0.0, min(_PAUSE, left)))
            if deadline is not None and time.monotonic() >= deadline:
                raise TaskTimeout(f"Job {id} has not ended after {timeout:g} s: its status is {status!r}.")

    # --- logbook --------------------------------------------------------------------------------------------

    def listProcessingLog(self, date: str = "today") -> Iterator[LogEntry]:
        """Yield the logbook of a day: which jobs were accepted when, from whom and with what input. For managers.

        :param date: ``2026-03-05`` or ``today``, by the calendar of the station.
        :raises InvalidArgument: not a date. :raises AuthorizationError: the user does not manage the station.
        """
        after = None
        while True:
            page = self.client.get(f"/logbook/{segment(date)}", after=after, limit=PAGE)
            yield from self._records(LogEntry, page["entries"])
            after = page["after"]
            if after is None:
                return

    def _path(self, owner: str | None, id: str) -> str:
        owner = owner or self.getProcessingJobById(None, id)["owner"]
        return f"/processingJobsByOwner/{owner_segment(owner)}/{segment(id)}"


def owner_segment(owner: str | None) -> str:
    """Return an owner as path segment; scripts look for the words *invalid owner name*."""
    if not owner or not isinstance(owner, str):
        raise InvalidArgument(f"Value {owner!r} is an invalid owner name.")
    return segment(owner)


def _keys(key_list: KeyList) -> KeyList:
    return key_list.split(",") if isinstance(key_list, str) and "," in key_list else key_list


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
