"""The argument models of the Processing Service's routes."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dm.common.web.routes import Arguments
from dm.station.processing.jobs import MAX_PAGE
from dm.station.processing.logbook import MAX_ENTRIES

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


class WorkflowRevision(WorkflowName):
    """One revision of a workflow."""

    revision: int = Field(ge=1, le=99_999_999, description="Its number.")


class WorkflowDiff(WorkflowName):
    """Two revisions of a workflow."""

    from_revision: int | None = Field(
        default=None, ge=1, le=99_999_999, description="The earlier one; unset: the one before toRevision."
    )
    to_revision: int | None = Field(default=None, ge=1, le=99_999_999, description="The later one; unset: the newest.")


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


class JobCursorPage(Arguments):
    """Which jobs, which page by cursor, which keys."""

    query_dict: dict[str, Any] = Field(
        default={}, description="Conditions on job keys, arguments and captured variables, as JSON."
    )
    after: str | None = Field(default=None, description="Cursor of the page before.")
    limit: int = Field(default=1_000, ge=1, le=MAX_PAGE, description="Most jobs on the page.")
    key_list: str | list[str] | None = Field(default=None, description='Keys to return: "DEFAULT", "ALL" or a list.')


class JobCursorPageOfOwner(JobCursorPage, Owner):
    """The same of one owner."""


class JobId(Arguments):
    """One job."""

    job_id: str = Field(description="Job id.")


class JobIdOfOwner(JobId, Owner):
    """One job of an owner."""


class JobRestart(JobIdOfOwner):
    """From where to run a job again."""

    from_stage: str | None = Field(default=None, description="Name of the first stage to run again; default: all.")


class JobWait(JobId):
    """One job, perhaps waiting for its end."""

    wait_time: float = Field(default=0, ge=0, le=MAX_WAIT, description="Seconds to wait for the job's end first.")


class JobWaitOfOwner(JobWait, Owner):
    """The same with its owner."""


class Children(JobIdOfOwner):
    """Which processes of a job."""

    skip: int = Field(default=0, ge=0, le=10_000_000, description="Processes to leave out, counted from the first.")
    limit: int = Field(default=1_000, ge=0, le=10_000, description="Most processes to return.")


class ChildNumber(JobIdOfOwner):
    """One process of a job."""

    number: int = Field(ge=0, le=1 << 40, description="Number of the process in its job, from 0.")


class ChildOutput(ChildNumber):
    """Which part of what a process printed."""

    offset: int = Field(default=0, ge=0, le=1 << 60, description="Bytes to leave out at the beginning.")
    wait_time: float = Field(
        default=0,
        ge=0,
        le=MAX_WAIT,
        description="Seconds to wait first until there is more than the offset, or the process has ended.",
    )


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
    priority: int | None = Field(
        default=None, ge=-100, le=100, description="Jobs of a higher one go first; default: the workflow's, else 0."
    )


class JobsStart(Owner):
    """Many jobs of one workflow to start."""

    workflow: str = Field(description="Workflow name.")
    jobs: list[dict[str, Any]] = Field(
        description="Of each job argsDict and, as for a single one, perhaps idempotencyKey, jobOwner and priority."
    )


class LogPage(Arguments):
    """Which page of which day of the logbook."""

    date: str = Field(description="Day by the calendar of the station, e.g. 2026-03-05, or today.")
    after: str | None = Field(default=None, description="Cursor of the page before.")
    limit: int = Field(default=1_000, ge=1, le=MAX_ENTRIES, description="Most entries on the page.")
