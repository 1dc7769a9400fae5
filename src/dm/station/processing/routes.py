"""The routes table of the Processing Service."""

from __future__ import annotations

from typing import Any

from dm.common.health import Health
from dm.common.web.common import reset_alarms
from dm.common.web.routes import MANAGER, USER, Access, Request, Route, Who
from dm.station.processing import arguments as given
from dm.station.processing.jobs import Jobs
from dm.station.processing.workflow_routes import workflow_routes
from dm.station.processing.workflows import Workflows

OWNER = Access(Who.OWNER, "owner")
_CODED = frozenset({"queryDict", "keyList", "name", "workflow", "argsDict", "jobs"})
_SPEC_LIMIT = 4 << 20
_ARGUMENTS_LIMIT = 5 << 20

Record = dict[str, Any]


def routes(workflows: Workflows, jobs: Jobs, health: Health) -> list[Route]:
    """Return the table, bound to the use cases."""
    return [*workflow_routes(workflows), *_job_routes(jobs), reset_alarms(health, MANAGER)]


def _job_routes(jobs: Jobs) -> list[Route]:
    def find(request: Request, arguments: given.JobPage) -> list[Record]:
        return jobs.find(
            request.principal,
            owner=getattr(arguments, "owner", None),
            query=arguments.query_dict,
            skip=arguments.skip,
            limit=arguments.limit,
            keys=arguments.key_list,
        )

    def get(request: Request, arguments: given.JobWait) -> Record:
        owner = getattr(arguments, "owner", None)
        return jobs.get(request.principal, arguments.job_id, owner, arguments.wait_time)

    def children(request: Request, arguments: given.Children) -> list[Record]:
        return jobs.children(request.principal, arguments.job_id, arguments.owner, arguments.skip, arguments.limit)

    def start(request: Request, arguments: given.JobStart) -> Record:
        return jobs.submit(
            request.principal,
            arguments.owner,
            arguments.workflow,
            arguments.args_dict,
            job_owner=arguments.job_owner,
            idempotency_key=arguments.idempotency_key,
        )

    def start_many(request: Request, arguments: given.JobsStart) -> list[Record]:
        return jobs.submit_many(request.principal, arguments.owner, arguments.workflow, arguments.jobs)

    def stop(request: Request, arguments: given.JobIdOfOwner) -> Record:
        return jobs.stop(request.principal, arguments.job_id, arguments.owner)

    def delete(request: Request, arguments: given.JobIdOfOwner) -> Record:
        return jobs.delete(request.principal, arguments.job_id, arguments.owner)

    by_owner, by_id = "/processingJobsByOwner/{owner}", "/processingJobsByOwner/{owner}/{jobId}"
    submit = "/processingJobsByWorkflow/{owner}/{workflow}/startProcessingJob"
    many = "Start up to 500 jobs of a workflow; each answer is a job or an error."
    listed = "oldest first; skip and limit count from the newest."
    return [
        _route("GET", "/processingJobs", find, USER, f"List all jobs the caller may see, {listed}", given.JobPage),
        _route("GET", by_owner, find, OWNER, f"List the jobs of an owner, {listed}", given.JobPageOfOwner),
        _route("GET", "/processingJobsById/{jobId}", get, USER, "Get a job, whoever owns it.", given.JobWait),
        _route("GET", by_id, get, OWNER, "Get a job with its processes.", given.JobWaitOfOwner),
        _route("DELETE", by_id, delete, OWNER, "Delete a job that has ended.", given.JobIdOfOwner),
        _route("GET", f"{by_id}/childProcesses", children, OWNER, "List the processes of a job.", given.Children),
        _route("POST", f"{by_id}/stopProcessingJob", stop, OWNER, "Stop a job.", given.JobIdOfOwner),
        _route("POST", submit, start, OWNER, "Start a job of a workflow.", given.JobStart, _ARGUMENTS_LIMIT),
        _route("POST", f"{submit}s", start_many, OWNER, many, given.JobsStart, _ARGUMENTS_LIMIT),
    ]


def _route(  # noqa: PLR0917 - one row of the tables above
    method: str, path: str, handler: Any, access: Access, summary: str, arguments: Any, body_limit: int = _SPEC_LIMIT
) -> Route:
    names = {field.alias or name for name, field in arguments.model_fields.items()}
    return Route(method, path, handler, access, summary, arguments, _CODED & names, body_limit)
