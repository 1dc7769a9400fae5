"""The routes of processing jobs, of what their processes printed, and of the logbook."""

from __future__ import annotations

from typing import Any

from dm.common.web.routes import MANAGER, USER, Request, Route, Stream
from dm.station.processing import arguments as given
from dm.station.processing.jobs import Jobs
from dm.station.processing.logbook import Logbook
from dm.station.processing.outputs import Outputs
from dm.station.processing.rows import ARGUMENTS_LIMIT, OWNER, row
from dm.station.processing.submissions import Submissions

Record = dict[str, Any]
_BY_OWNER = "/processingJobsByOwner/{owner}"
_BY_ID = f"{_BY_OWNER}/{{jobId}}"


def job_routes(submissions: Submissions, jobs: Jobs, outputs: Outputs, logbook: Logbook) -> list[Route]:
    """Return the rows, bound to the use cases."""
    return [*_listing(jobs), *_starting(submissions), *_changing(jobs), *_processes(jobs, outputs), *_log(logbook)]


def _listing(jobs: Jobs) -> list[Route]:
    def find(request: Request, arguments: given.JobPage) -> list[Record]:
        return jobs.find(
            request.principal,
            owner=getattr(arguments, "owner", None),
            query=arguments.query_dict,
            skip=arguments.skip,
            limit=arguments.limit,
            keys=arguments.key_list,
        )

    def page(request: Request, arguments: given.JobCursorPage) -> Record:
        return jobs.page(
            request.principal,
            owner=getattr(arguments, "owner", None),
            query=arguments.query_dict,
            after=arguments.after,
            limit=arguments.limit,
            keys=arguments.key_list,
        )

    def get(request: Request, arguments: given.JobWait) -> Record:
        owner = getattr(arguments, "owner", None)
        return jobs.get(request.principal, arguments.job_id, owner, arguments.wait_time)

    listed = "oldest first; skip and limit count from the newest."
    pages = "newest first, by cursor; after is null on the last page."
    return [
        row("GET", "/processingJobs", find, USER, f"List all jobs the caller may see, {listed}", given.JobPage),
        row("GET", _BY_OWNER, find, OWNER, f"List the jobs of an owner, {listed}", given.JobPageOfOwner),
        row(
            "GET", "/processingJobPages", page, USER, f"Page through all jobs one may see, {pages}", given.JobCursorPage
        ),
        row(
            "GET",
            "/processingJobPagesByOwner/{owner}",
            page,
            OWNER,
            f"Page through the jobs of an owner, {pages}",
            given.JobCursorPageOfOwner,
        ),
        row("GET", "/processingJobsById/{jobId}", get, USER, "Get a job, whoever owns it.", given.JobWait),
        row("GET", _BY_ID, get, OWNER, "Get a job with its processes.", given.JobWaitOfOwner),
    ]


def _starting(submissions: Submissions) -> list[Route]:
    def start(request: Request, arguments: given.JobStart) -> Record:
        return submissions.submit(
            request.principal,
            arguments.owner,
            arguments.workflow,
            arguments.args_dict,
            job_owner=arguments.job_owner,
            idempotency_key=arguments.idempotency_key,
            priority=arguments.priority,
            via=request.interface,
        )

    def start_many(request: Request, arguments: given.JobsStart) -> list[Record]:
        return submissions.submit_many(
            request.principal, arguments.owner, arguments.workflow, arguments.jobs, via=request.interface
        )

    submit = "/processingJobsByWorkflow/{owner}/{workflow}/startProcessingJob"
    many = "Start up to 500 jobs of a workflow; each answer is a job or an error."
    return [
        row("POST", submit, start, OWNER, "Start a job of a workflow.", given.JobStart, ARGUMENTS_LIMIT),
        row("POST", f"{submit}s", start_many, OWNER, many, given.JobsStart, ARGUMENTS_LIMIT),
    ]


def _changing(jobs: Jobs) -> list[Route]:
    def stop(request: Request, arguments: given.JobIdOfOwner) -> Record:
        return jobs.stop(request.principal, arguments.job_id, arguments.owner)

    def resume(request: Request, arguments: given.JobIdOfOwner) -> Record:
        return jobs.resume(request.principal, arguments.job_id, arguments.owner)

    def restart(request: Request, arguments: given.JobRestart) -> Record:
        return jobs.restart(request.principal, arguments.job_id, arguments.owner, arguments.from_stage)

    def delete(request: Request, arguments: given.JobIdOfOwner) -> Record:
        return jobs.delete(request.principal, arguments.job_id, arguments.owner)

    resumed = "Let a failed or aborted job go on where it stopped; what is done is not run again."
    restarted = "Run a stage of an ended job and all later ones anew."
    one = given.JobIdOfOwner
    return [
        row("POST", f"{_BY_ID}/stopProcessingJob", stop, OWNER, "Stop a job.", one),
        row("POST", f"{_BY_ID}/abortProcessingJob", stop, OWNER, "Stop a job, by another name.", one),
        row("POST", f"{_BY_ID}/resumeProcessingJob", resume, OWNER, resumed, one),
        row("POST", f"{_BY_ID}/restartProcessingJob", restart, OWNER, restarted, given.JobRestart),
        row("DELETE", _BY_ID, delete, OWNER, "Delete a job that has ended.", one),
    ]


def _processes(jobs: Jobs, outputs: Outputs) -> list[Route]:
    def children(request: Request, arguments: given.Children) -> list[Record]:
        return jobs.children(request.principal, arguments.job_id, arguments.owner, arguments.skip, arguments.limit)

    def child(request: Request, arguments: given.ChildNumber) -> Record:
        return jobs.child_record(request.principal, arguments.job_id, arguments.owner, arguments.number)

    def stdout(request: Request, arguments: given.ChildOutput) -> Stream:
        return output(request, arguments, "stdOut")

    def stderr(request: Request, arguments: given.ChildOutput) -> Stream:
        return output(request, arguments, "stdErr")

    def output(request: Request, arguments: given.ChildOutput, name: str) -> Stream:
        who, wait = request.principal, arguments.wait_time
        return outputs.stream(who, arguments.job_id, arguments.owner, arguments.number, name, arguments.offset, wait)

    one = f"{_BY_ID}/childProcesses/{{number}}"
    printed = "Get all that a process printed to standard {}, as bytes; also while it runs."
    return [
        row("GET", f"{_BY_ID}/childProcesses", children, OWNER, "List the processes of a job.", given.Children),
        row("GET", one, child, OWNER, "Get one process of a job, also while it runs.", given.ChildNumber),
        row("GET", f"{one}/stdOut", stdout, OWNER, printed.format("output"), given.ChildOutput),
        row("GET", f"{one}/stdErr", stderr, OWNER, printed.format("error"), given.ChildOutput),
    ]


def _log(logbook: Logbook) -> list[Route]:
    def page(_request: Request, arguments: given.LogPage) -> Record:
        return logbook.page(arguments.date, arguments.after, arguments.limit)

    summary = "Page through the jobs that were accepted on a day, first to last."
    return [row("GET", "/logbook/{date}", page, MANAGER, summary, given.LogPage)]
