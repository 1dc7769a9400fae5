"""The workflow language as models: which keys a definition has, what they mean, what their values must be.

The checks of :mod:`dm.station.processing.specs` and the reference page are made from these models.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dm.station.processing import values


class Part(BaseModel):
    """Base of the models: keys that DM does not know are kept."""

    model_config = ConfigDict(extra="allow")


class Retry(Part):
    """How often a process that fails is tried again: key ``retry`` of a stage."""

    model_config = ConfigDict(extra="forbid")

    count: Annotated[int, BeforeValidator(values.number("retry.count", 0, values.MAX_RETRIES, whole=True))] = Field(
        description="Further attempts after the first; each is a process of its own in the record."
    )
    backoff: Annotated[float, BeforeValidator(values.number("retry.backoff", 0, 86_400, unit=" seconds"))] = Field(
        default=0.0, description="Seconds before the second attempt; doubled before each further one."
    )


class Argument(Part):
    """One argument: a member of the workflow's ``arguments``. All keys are optional."""

    required: Annotated[bool | None, BeforeValidator(values.truth("required"))] = Field(
        default=None, description="Whether a job without it (or with an empty text) is refused."
    )
    type: Annotated[str | None, BeforeValidator(values.type_name)] = Field(
        default=None,
        description="`text`, `int`, `float`, `bool`, `path`, `multiple_choice` (one of `choices`, or a list of them), "
        "`list` or `dict`; a value of another type is refused. Types of other names are kept and not checked.",
    )
    choices: Annotated[Any, BeforeValidator(values.choices)] = Field(
        default=None, description="The values it may have; compared as texts, so that 1 and `1` are the same."
    )
    default: Any = Field(default=None, description="Its value in jobs that do not give one.")
    description: Annotated[str | None, BeforeValidator(values.description)] = Field(
        default=None, description="Free text for people and forms."
    )


class Stage(Part):
    """One stage: a member of the workflow's ``stages``."""

    command: Annotated[str, BeforeValidator(values.command)] = Field(
        default="",
        validate_default=True,
        description="Shell text, run by `/bin/sh`, one process per input file. `$name` stands for a variable.",
    )
    workingDir: Annotated[str | None, BeforeValidator(values.path("workingDir"))] = Field(
        default=None,
        description="Where its processes run; default: the experiment's data directory for relative files, else the "
        "account's home. Variables may stand in it.",
    )
    dataDir: Annotated[
        list[str] | None,
        BeforeValidator(values.optional(values.texts("dataDir", "paths of directories", values.MAX_PATTERNS))),
    ] = Field(
        default=None,
        description="Directory, or list of directories, whose files the stage runs on instead of the job's input "
        "files; looked at when the stage begins. Relative ones lie below the experiment's data directory; variables "
        "may stand in them.",
    )
    outputVariableRegexList: Annotated[list[str] | None, BeforeValidator(values.patterns)] = Field(
        default=None,
        description="RE2 expressions searched in standard output; named groups become variables and keys of the job, "
        "and override arguments of the same name.",
    )
    runIf: Annotated[str | None, BeforeValidator(values.expression("runIf"))] = Field(
        default=None,
        description="Condition; when false the stage is skipped (for those input files for which it is false).",
    )
    repeatPeriod: Annotated[
        float | None,
        BeforeValidator(values.optional(values.number("repeatPeriod", 0, values.MAX_PERIOD, unit=" seconds"))),
    ] = Field(default=None, description="Seconds between repeats; with `repeatUntil` and `maxRepeats`.")
    repeatUntil: Annotated[str | None, BeforeValidator(values.expression("repeatUntil"))] = Field(
        default=None, description="Condition that ends the repeating; looked at after each execution."
    )
    maxRepeats: Annotated[
        int | None, BeforeValidator(values.optional(values.number("maxRepeats", 1, values.MAX_REPEATS, whole=True)))
    ] = Field(
        default=None, description="Most executions; when the condition has not come true by then, the stage fails."
    )
    parallelExec: Annotated[bool | None, BeforeValidator(values.truth("parallelExec"))] = Field(
        default=None, description="Whether the processes of several input files run at the same time."
    )
    timeout: Annotated[
        float | None,
        BeforeValidator(values.optional(values.number("timeout", 0, values.MAX_PERIOD, unit=" seconds", above=True))),
    ] = Field(
        default=None,
        description="Seconds a process may run; then it and all it started are stopped, and it has failed.",
    )
    retry: Annotated[Retry | None, BeforeValidator(values.retry)] = Field(
        default=None, description="How often a process that failed is tried again; see [retry](#retry)."
    )
    onFailure: Annotated[
        str | None, BeforeValidator(values.optional(values.choice("onFailure", "fail", "continue")))
    ] = Field(
        default=None,
        description="`fail` (default): the job fails with the stage. `continue`: the stage is failed, the job goes on.",
    )
    onLost: Annotated[str | None, BeforeValidator(values.optional(values.choice("onLost", "fail", "rerun")))] = Field(
        default=None,
        description="What becomes of a process whose end nobody saw, such as by a power cut: `fail`, or `rerun` for "
        "stages that may run twice. Default: the workflow's, else the setting `lost_stage`.",
    )
    cleanup: Annotated[bool | None, BeforeValidator(values.truth("cleanup"))] = Field(
        default=None,
        description="Whether it runs after all others whatever became of the job, also when it failed or was aborted. "
        "It sees `$jobStatus`, `$failedStage` and `$errorMessage`.",
    )
    dependsOn: Annotated[
        list[str] | None, BeforeValidator(values.optional(values.texts("dependsOn", "stage names", values.MAX_STAGES)))
    ] = Field(
        default=None,
        description="Names of the stages it waits for; `[]` for none. Stages with no path between them run at the "
        "same time. Default: the stage before it in the order of names.",
    )
    executor: Annotated[str | None, BeforeValidator(values.optional(values.executor))] = Field(
        default=None, description="Name of a configured executor that runs its processes; default: the setting."
    )
    artefacts: Annotated[
        list[str] | None,
        BeforeValidator(values.optional(values.texts("artefacts", "path patterns", values.MAX_PATTERNS))),
    ] = Field(
        default=None,
        description="Path patterns, absolute or relative to the stage's `workingDir`, of files that are uploaded into "
        "the experiment's `analysis` directory when the stage has succeeded. Variables may stand in them.",
    )


class Workflow(Part):
    """A workflow definition."""

    name: Annotated[str, BeforeValidator(values.name)] = Field(
        default="", validate_default=True, description="Its name, unique among the workflows of its owner."
    )
    owner: Annotated[str | None, BeforeValidator(values.owner("owner"))] = Field(
        default=None, description="User name of its owner; default: who adds it."
    )
    stages: Annotated[dict[str, Stage], BeforeValidator(values.stages)] = Field(
        default={},
        validate_default=True,
        description="Stage name -> [stage](#stage); executed in the order of the names.",
    )
    description: Annotated[str | None, BeforeValidator(values.description)] = Field(
        default=None, description="Free text."
    )
    userAccount: Annotated[str | None, BeforeValidator(values.owner("userAccount"))] = Field(
        default=None,
        description="Unix account that the stages run under; default: the owner, which stands for the stage account of "
        "the service. Others must be listed in its settings.",
    )
    version: Annotated[int | float | str | None, BeforeValidator(values.version)] = Field(
        default=None, description="Free number or text of the author; DM itself counts `revision`."
    )
    id: Annotated[str | None, BeforeValidator(values.workflow_id)] = Field(
        default=None, description="24 hexadecimal digits; made when the workflow is added without one."
    )
    arguments: Annotated[dict[str, Argument] | None, BeforeValidator(values.arguments)] = Field(
        default=None, description="Argument name -> [argument](#argument); jobs are checked against it when submitted."
    )
    priority: Annotated[
        int | None, BeforeValidator(values.optional(values.number("priority", -100, 100, whole=True)))
    ] = Field(default=None, description="-100 to 100, default 0: processes of jobs of higher priority start first.")
    maxConcurrentJobs: Annotated[
        int | None, BeforeValidator(values.optional(values.number("maxConcurrentJobs", 1, 1_000_000, whole=True)))
    ] = Field(default=None, description="Most jobs of it that run at the same time; more wait as pending.")
    onLost: Annotated[str | None, BeforeValidator(values.optional(values.choice("onLost", "fail", "rerun")))] = Field(
        default=None, description="The same for all stages that do not say it themselves."
    )
