"""The reference page of the workflow language, made from its models and limits."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from dm.station.processing import expressions, literals, models, regexes, specs, structured, values, versionstore
from dm.station.processing.executors.base import OUTPUT_FILE
from dm.station.processing.parameters import NAMES

_KINDS: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Any: "anything",
}
_PARTS: dict[str, type[BaseModel]] = {
    "Workflow": models.Workflow,
    "Stage": models.Stage,
    "Retry": models.Retry,
    "Argument": models.Argument,
}
_ONE_FOR_LIST = {"dataDir", "artefacts", "dependsOn"}
_NEEDED = {"name", "stages", "command", "count"}

_INTRODUCTION = """\
A workflow is a dictionary in a `.py` or `.json` file, or the same as JSON over REST.
[Write workflows](../how-to/workflows.md) shows how to use it. A definition is checked when it is added;
`dm-check-workflow` checks a file without a service and tells all that is wrong with it. Keys that are not in these
tables are kept and mean nothing to DM, but one that is misspelt by a single character is refused. Keys marked with *
are needed."""

_VARIABLES = """\
## Variables

`$name` or `${{name}}` in commands, conditions and paths stands for (of several the first of this table):

| name | value |
|---|---|
| `id`, `owner`, `stage` | job id, owner of the job, name of the stage |
| `jobStatus`, `failedStage`, `errorMessage` | in cleanup stages: what has become of the job, or empty |
| captured ones | named groups of output regexes and members of structured output, of the stages it waits for |
| `filePath` | the input file of the process |
| any other | the job's argument of this name, else the default that the workflow declares |

A name that is none of these is left to the shell, for which it is empty; in conditions it equals nothing. A captured
value is a key of the job's record. The names {reserved} cannot be captured.

## Conditions

Python's comparisons (`==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `not in`), `and`, `or`, `not`, brackets, lists,
`+ - * / // %`, `... if ... else ...`, functions ({functions}) and methods of texts ({methods}).
A `$name` in quotes becomes part of the text; one without quotes is the value itself: a number or truth value where it
looks like one. Nothing else is evaluated.

## Structured output

A process may write one JSON object to the file that the variable `{output}` of its environment names. Its members
become variables and keys of the job: texts, numbers and truth values as they are, lists and objects as JSON text;
`null` is left out. What is not such an object fails the stage. Where a regex and the object give the same name, the
object's value is taken.

## Limits

| what | at most |
|---|---|
{limits}
"""


def page() -> str:
    """Return the page in Markdown."""
    lines = ["# Workflows", "", _INTRODUCTION]
    for title, model in _PARTS.items():
        lines += [
            "",
            f"## {title}",
            "",
            " ".join((model.__doc__ or "").replace("``", "`").split()),
            "",
            "| key | value | meaning |",
        ]
        lines += ["|---|---|---|", *_rows(model)]
    limits = "\n".join(f"| {what} | {most:,} |" for what, most in _LIMITS.items())
    rest = _VARIABLES.format(
        reserved=", ".join(f"`{name}`" for name in sorted(regexes.RESERVED_GROUPS)),
        functions=", ".join(f"`{name}()`" for name in sorted(expressions.FUNCTIONS)),
        methods=", ".join(f"`{name}`" for name in sorted(expressions.METHODS)),
        output=OUTPUT_FILE,
        limits=limits,
    )
    others = [f"`{name}` ({meaning})" for name, meaning in NAMES.items() if name != meaning]
    lines += ["", f"Other names of types that are understood: {', '.join(others)}.", "", rest]
    return "\n".join(lines)


def _rows(model: type[BaseModel]) -> list[str]:
    rows = []
    for name, info in model.model_fields.items():
        mark = "*" if name in _NEEDED else ""
        value = ("text or " if name in _ONE_FOR_LIST else "") + _value(info.annotation)
        rows.append(f"| `{name}`{mark} | {value} | {info.description} |")
    return rows


def _value(annotation: Any) -> str:
    """Return what a value is, in words."""
    if get_origin(annotation) in {Union, UnionType}:
        parts = [part for part in get_args(annotation) if part is not NoneType]
        return " or ".join(dict.fromkeys(_value(part) for part in parts))
    if get_origin(annotation) is list:
        return f"list of {_value(get_args(annotation)[0])}s"
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "object"
    return _KINDS[annotation]


_LIMITS = {
    "bytes of a specification file, and of a definition": specs.MAX_SPEC,
    "values in a `.py` file": literals.MAX_VALUES,
    "levels of a definition": literals.MAX_DEPTH,
    "stages": values.MAX_STAGES,
    "characters of a name": values.MAX_NAME,
    "characters of a command": values.MAX_COMMAND,
    "characters of a condition": expressions.MAX_LENGTH,
    "output regexes of a stage": values.MAX_REGEXES,
    "characters of an output regex": regexes.MAX_PATTERN,
    "`dataDir`, and `artefacts`, of a stage": values.MAX_PATTERNS,
    "`maxRepeats`": values.MAX_REPEATS,
    "`repeatPeriod` and `timeout` in seconds": values.MAX_PERIOD,
    "`retry.count`": values.MAX_RETRIES,
    "declared arguments": values.MAX_ARGUMENTS,
    "choices of an argument": values.MAX_CHOICES,
    "bytes of structured output": structured.MAX_BYTES,
    "members of structured output": structured.MAX_MEMBERS,
    "revisions kept of a workflow": versionstore.KEPT,
}
