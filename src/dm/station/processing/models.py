"""The workflow language as models: which keys a definition has, what they mean, what their values must be.

The checks of :mod:`dm.station.processing.specs` and the reference page are made from these models. A validator's
message is the end of a sentence whose beginning names the stage: *timeout -1 is not ...*.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from dm.common.errors import InvalidArgument
from dm.station.processing import expressions, regexes

MAX_NAME = 255
MAX_STAGES = 1_000
MAX_COMMAND = 256 << 10
MAX_REGEXES = 200
MAX_PATTERNS = 200
MAX_REPEATS = 10_000_000
MAX_PERIOD = 366 * 86_400
MAX_RETRIES = 100
MAX_ARGUMENTS = 500
MAX_CHOICES = 10_000
WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}", re.ASCII)
WORKFLOW_ID = re.compile(r"[0-9a-f]{24}", re.ASCII)
EXECUTOR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)

Check = Callable[[Any], Any]


def shown(value: Any, limit: int = 80) -> str:
    """Return a value as error texts show it: one short line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def refuse(text: str) -> PydanticCustomError:
    """Return the error of a validator; ``text`` ends a sentence that begins with the stage."""
    return PydanticCustomError("dm", "{text}", {"text": text})


def _number(key: str, low: int, high: int, *, unit: str = "", whole: bool = False, above: bool = False) -> Check:
    def check(value: Any) -> Any:
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        inside = low < number <= high if above else low <= number <= high
        if not inside or (whole and number != int(number)):
            kind = "a whole number" if whole else "a number"
            raise refuse(f"{key} {shown(value)} is not {kind} between {low} and {high}{unit}")
        return int(number) if whole else number

    return check


def _choice(key: str, *words: str) -> Check:
    def check(value: Any) -> Any:
        if value not in words:
            raise refuse(f"{key} {shown(value)} is neither {' nor '.join(repr(word) for word in words)}")
        return value

    return check


def _truth(key: str) -> Check:
    def check(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, bool | int | str) and (word := str(value).lower()) in WORDS:
            return WORDS[word]
        raise refuse(f"{key} {shown(value)} is neither true nor false")

    return check


def _texts(key: str, what: str, most: int) -> Check:
    """Accept a list of texts, or one text for a list of one."""

    def check(value: Any) -> Any:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or len(items) > most:
            raise refuse(f"{key} {shown(value)} is not a list of at most {most} {what}")
        for item in items:
            if not isinstance(item, str) or not item.strip() or "\0" in item:
                raise refuse(f"{key} holds {shown(item)}, which is no {what.removesuffix('s')}")
        return items

    return check


def _expression(key: str) -> Check:
    def check(value: Any) -> Any:
        if value is not None:
            try:
                expressions.check(value, key)
            except InvalidArgument as error:
                raise refuse(error.message.rstrip(".")) from None
        return value

    return check


def _command(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        raise refuse("has no command")
    if len(value) > MAX_COMMAND or "\0" in value:
        raise refuse(f"the command is longer than {MAX_COMMAND} characters or holds a NUL")
    return value


def _path(key: str) -> Check:
    def check(value: Any) -> Any:
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise refuse(f"{key} {shown(value)} is not a path")
        return value

    return check


def _patterns(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_REGEXES:
        raise refuse(f"outputVariableRegexList is not a list of at most {MAX_REGEXES} regexes")
    for pattern in value:
        try:
            regexes.check(pattern)
        except InvalidArgument as error:
            raise refuse(error.message.rstrip(".")) from None
    return value


def _executor(value: Any) -> Any:
    if not isinstance(value, str) or not EXECUTOR.fullmatch(value):
        raise refuse(f"executor {shown(value)} is not the name of an executor, such as 'local'")
    return value


def _unless_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _retry(value: Any) -> Any:
    if value is not None and not isinstance(value, dict):
        raise refuse(f'retry {shown(value)} is not an object; write {{"count": 3, "backoff": 10}}')
    return value


def _kind(value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise refuse(f"type {shown(value)} is not the name of a type")
    return value


def _choices(value: Any) -> Any:
    """Accept a list of simple values, or an object whose keys are the values (its members being labels)."""
    if value is None:
        return None
    items = list(value) if isinstance(value, dict) else value
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_CHOICES:
        raise refuse(f"choices {shown(value)} is not a list of 1 to {MAX_CHOICES} values")
    for item in items:
        if not isinstance(item, str | int | float | bool):
            raise refuse(f"choices holds {shown(item)}, which is neither text, number nor truth value")
    return value


def _description(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise refuse(f"description {shown(value)} is not a text")
    return value


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        raise refuse("A workflow needs a name")
    if len(value) > MAX_NAME or not value.isprintable():
        raise refuse(f"name {shown(value)} is longer than {MAX_NAME} or holds control characters")
    return value


def _owner(key: str) -> Check:
    def check(value: Any) -> Any:
        if value and (not isinstance(value, str) or not OWNER.fullmatch(value)):
            raise refuse(f"{key} {shown(value)} is an invalid owner name")
        return value or None

    return check


def _version(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | str)):
        raise refuse(f"version {shown(value)} is neither a number nor a text")
    return value


def _id(value: Any) -> Any:
    if value and (not isinstance(value, str) or not WORKFLOW_ID.fullmatch(value)):
        raise refuse(f"id {shown(value)} is not of 24 hexadecimal digits")
    return value or None  # dmax cannot leave it out and sends an empty text


def _stages(value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        raise refuse("has no stages; give at least one with a command")
    if len(value) > MAX_STAGES:
        raise refuse(f"has more than {MAX_STAGES} stages")
    for name in value:
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or not name.isprintable():
            raise refuse(f"Stage name {shown(name)} is not a text of 1 to {MAX_NAME} characters")
    return value


def _arguments(value: Any) -> Any:
    """Accept name -> description for name -> {"description": ...}, and ``None`` for an argument without properties."""
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_ARGUMENTS:
        raise refuse(f"arguments {shown(value)} is not an object of at most {MAX_ARGUMENTS} names and their properties")
    for name in value:
        if not isinstance(name, str) or not name or len(name) > MAX_NAME or not name.isprintable():
            raise refuse(f"Argument name {shown(name)} is not a text of 1 to {MAX_NAME} characters")
    if "workflow" in value:
        raise refuse("Argument name 'workflow' is reserved; choose another")
    return {
        name: {"description": item} if isinstance(item, str) else ({} if item is None else item)
        for name, item in value.items()
    }


class Part(BaseModel):
    """Base of the models: keys that DM does not know are kept."""

    model_config = ConfigDict(extra="allow")


class Retry(Part):
    """How often a process that fails is tried again: key ``retry`` of a stage."""

    model_config = ConfigDict(extra="forbid")

    count: Annotated[int, BeforeValidator(_number("retry.count", 0, MAX_RETRIES, whole=True))] = Field(
        description="Further attempts after the first; each is a process of its own in the record."
    )
    backoff: Annotated[float, BeforeValidator(_number("retry.backoff", 0, 86_400, unit=" seconds"))] = Field(
        default=0.0, description="Seconds before the second attempt; doubled before each further one."
    )


class Argument(Part):
    """One argument: a member of the workflow's ``arguments``. All keys are optional."""

    required: Annotated[bool | None, BeforeValidator(_truth("required"))] = Field(
        default=None, description="Whether a job without it (or with an empty text) is refused."
    )
    type: Annotated[str | None, BeforeValidator(_kind)] = Field(
        default=None,
        description="`text`, `int`, `float`, `bool`, `path`, `multiple_choice` (one of `choices`, or a list of them), "
        "`list` or `dict`; a value of another type is refused. Types of other names are kept and not checked.",
    )
    choices: Annotated[Any, BeforeValidator(_choices)] = Field(
        default=None, description="The values it may have; compared as texts, so that 1 and `1` are the same."
    )
    default: Any = Field(default=None, description="Its value in jobs that do not give one.")
    description: Annotated[str | None, BeforeValidator(_description)] = Field(
        default=None, description="Free text for people and forms."
    )


class Stage(Part):
    """One stage: a member of the workflow's ``stages``."""

    command: Annotated[str, BeforeValidator(_command)] = Field(
        default="",
        validate_default=True,
        description="Shell text, run by `/bin/sh`, one process per input file. `$name` stands for a variable.",
    )
    workingDir: Annotated[str | None, BeforeValidator(_path("workingDir"))] = Field(
        default=None,
        description="Where its processes run; default: the experiment's data directory for relative files, else the "
        "account's home. Variables may stand in it.",
    )
    dataDir: Annotated[
        list[str] | None, BeforeValidator(_unless_none(_texts("dataDir", "paths of directories", MAX_PATTERNS)))
    ] = Field(
        default=None,
        description="Directory, or list of directories, whose files the stage runs on instead of the job's input "
        "files; looked at when the stage begins. Relative ones lie below the experiment's data directory; variables "
        "may stand in them.",
    )
    outputVariableRegexList: Annotated[list[str] | None, BeforeValidator(_patterns)] = Field(
        default=None,
        description="RE2 expressions searched in standard output; named groups become variables and keys of the job, "
        "and override arguments of the same name.",
    )
    runIf: Annotated[str | None, BeforeValidator(_expression("runIf"))] = Field(
        default=None,
        description="Condition; when false the stage is skipped (for those input files for which it is false).",
    )
    repeatPeriod: Annotated[
        float | None, BeforeValidator(_unless_none(_number("repeatPeriod", 0, MAX_PERIOD, unit=" seconds")))
    ] = Field(default=None, description="Seconds between repeats; with `repeatUntil` and `maxRepeats`.")
    repeatUntil: Annotated[str | None, BeforeValidator(_expression("repeatUntil"))] = Field(
        default=None, description="Condition that ends the repeating; looked at after each execution."
    )
    maxRepeats: Annotated[
        int | None, BeforeValidator(_unless_none(_number("maxRepeats", 1, MAX_REPEATS, whole=True)))
    ] = Field(
        default=None, description="Most executions; when the condition has not come true by then, the stage fails."
    )
    parallelExec: Annotated[bool | None, BeforeValidator(_truth("parallelExec"))] = Field(
        default=None, description="Whether the processes of several input files run at the same time."
    )
    timeout: Annotated[
        float | None, BeforeValidator(_unless_none(_number("timeout", 0, MAX_PERIOD, unit=" seconds", above=True)))
    ] = Field(
        default=None,
        description="Seconds a process may run; then it and all it started are stopped, and it has failed.",
    )
    retry: Annotated[Retry | None, BeforeValidator(_retry)] = Field(
        default=None, description="How often a process that failed is tried again; see [retry](#retry)."
    )
    onFailure: Annotated[str | None, BeforeValidator(_unless_none(_choice("onFailure", "fail", "continue")))] = Field(
        default=None,
        description="`fail` (default): the job fails with the stage. `continue`: the stage is failed, the job goes on.",
    )
    onLost: Annotated[str | None, BeforeValidator(_unless_none(_choice("onLost", "fail", "rerun")))] = Field(
        default=None,
        description="What becomes of a process whose end nobody saw, such as by a power cut: `fail`, or `rerun` for "
        "stages that may run twice. Default: the workflow's, else the setting `lost_stage`.",
    )
    cleanup: Annotated[bool | None, BeforeValidator(_truth("cleanup"))] = Field(
        default=None,
        description="Whether it runs after all others whatever became of the job, also when it failed or was aborted. "
        "It sees `$jobStatus`, `$failedStage` and `$errorMessage`.",
    )
    dependsOn: Annotated[
        list[str] | None, BeforeValidator(_unless_none(_texts("dependsOn", "stage names", MAX_STAGES)))
    ] = Field(
        default=None,
        description="Names of the stages it waits for; `[]` for none. Stages with no path between them run at the "
        "same time. Default: the stage before it in the order of names.",
    )
    executor: Annotated[str | None, BeforeValidator(_unless_none(_executor))] = Field(
        default=None, description="Name of a configured executor that runs its processes; default: the setting."
    )
    artefacts: Annotated[
        list[str] | None, BeforeValidator(_unless_none(_texts("artefacts", "path patterns", MAX_PATTERNS)))
    ] = Field(
        default=None,
        description="Path patterns, absolute or relative to the stage's `workingDir`, of files that are uploaded into "
        "the experiment's `analysis` directory when the stage has succeeded. Variables may stand in them.",
    )


class Workflow(Part):
    """A workflow definition."""

    name: Annotated[str, BeforeValidator(_name)] = Field(
        default="", validate_default=True, description="Its name, unique among the workflows of its owner."
    )
    owner: Annotated[str | None, BeforeValidator(_owner("owner"))] = Field(
        default=None, description="User name of its owner; default: who adds it."
    )
    stages: Annotated[dict[str, Stage], BeforeValidator(_stages)] = Field(
        default={},
        validate_default=True,
        description="Stage name -> [stage](#stage); executed in the order of the names.",
    )
    description: Annotated[str | None, BeforeValidator(_description)] = Field(default=None, description="Free text.")
    userAccount: Annotated[str | None, BeforeValidator(_owner("userAccount"))] = Field(
        default=None,
        description="Unix account that the stages run under; default: the owner, which stands for the stage account of "
        "the service. Others must be listed in its settings.",
    )
    version: Annotated[int | float | str | None, BeforeValidator(_version)] = Field(
        default=None, description="Free number or text of the author; DM itself counts `revision`."
    )
    id: Annotated[str | None, BeforeValidator(_id)] = Field(
        default=None, description="24 hexadecimal digits; made when the workflow is added without one."
    )
    arguments: Annotated[dict[str, Argument] | None, BeforeValidator(_arguments)] = Field(
        default=None, description="Argument name -> [argument](#argument); jobs are checked against it when submitted."
    )
    priority: Annotated[int | None, BeforeValidator(_unless_none(_number("priority", -100, 100, whole=True)))] = Field(
        default=None, description="-100 to 100, default 0: processes of jobs of higher priority start first."
    )
    maxConcurrentJobs: Annotated[
        int | None, BeforeValidator(_unless_none(_number("maxConcurrentJobs", 1, 1_000_000, whole=True)))
    ] = Field(default=None, description="Most jobs of it that run at the same time; more wait as pending.")
    onLost: Annotated[str | None, BeforeValidator(_unless_none(_choice("onLost", "fail", "rerun")))] = Field(
        default=None, description="The same for all stages that do not say it themselves."
    )
