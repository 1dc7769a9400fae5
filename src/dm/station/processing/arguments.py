"""The argument models of the Processing Service's routes."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dm.common.web.routes import Arguments
from dm.station.processing.jobs import MAX_PAGE

MAX_WAIT = 30.0


class Owner(Arguments):
    """Whose things."""

    owner: str = Field(description="User name of the owner.")


class WorkflowList(Owner):
    """Which workflows."""

    query_dict: dict[str, Any] = Field(default={}, description="Conditions on keys of the workflow, as JSON.")


class WorkflowName(Owner):
    """One workflow by name."""

    name: str = Field(description="Workflow name.")


class WorkflowId(Arguments):
    """One workflow by id."""

    id: str = Field(description="Workflow id, 24 hexadecimal digits.")
    owner: str | None = Field(default=None, description="Its owner.")


class WorkflowSpec(Arguments):
    """A workflow specification."""

    workflow: dict[str, Any] = Field(description="The specification, as JSON.")
    allow_current_username: bool = Field(
        default=False, description="Whether the caller becomes the owner when the specification names none."
    )


class JobPage(Arguments):
    """Which jobs, which page, which keys."""

    query_dict: dict[str, Any] = Field(
        default={}, description="Conditions on job keys, arguments and captured variables, as JSON."
    )
    skip: int = Field(default=0, ge=0, le=10_000_000, description="Jobs to leave out, counted from the newest.")
    limit: int = Field(
        default=MAX_PAGE, ge=0, description=f"Most jobs to return, counted from the newest; {MAX_PAGE} at most."
    )
    key_list: str | list[str] | None = Field(default=None, description='Keys to return: "DEFAULT", "ALL" or a list.')


class JobPageOfOwner(JobPage, Owner):
    """The same of one owner."""


class JobId(Arguments):
    """One job."""

    job_id: str = Field(description="Job id.")


class JobIdOfOwner(JobId, Owner):
    """One job of an owner."""


class JobWait(JobId):
    """One job, perhaps waiting for its end."""

    wait_time: float = Field(default=0, ge=0, le=MAX_WAIT, description="Seconds to wait for the job's end first.")


class JobWaitOfOwner(JobWait, Owner):
    """The same with its owner."""


class Children(JobIdOfOwner):
    """Which processes of a job."""

    skip: int = Field(default=0, ge=0, le=10_000_000, description="Processes to leave out, counted from the first.")
    limit: int = Field(default=1_000, ge=0, le=10_000, description="Most processes to return.")


class JobStart(Owner):
    """A job to start."""

    workflow: str = Field(description="Workflow name.")
    args_dict: dict[str, Any] = Field(
        default={}, description="Input specification (filePath ...) and values of variables, as JSON."
    )
    idempotency_key: str | None = Field(
        default=None, description="The same key of the same caller gives the same job, however often it is sent."
    )
    job_owner: str | None = Field(
        default=None, description="Whose job it is, when not the caller's; for managers of the station."
    )


class JobsStart(Owner):
    """Many jobs of one workflow to start."""

    workflow: str = Field(description="Workflow name.")
    jobs: list[dict[str, Any]] = Field(
        description="Of each job argsDict and, as for a single one, perhaps idempotencyKey and jobOwner."
    )
