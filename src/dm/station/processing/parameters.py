"""The arguments that a workflow declares: checked when it is added, applied when a job is submitted.

A workflow's ``arguments`` say what a job may or must give. Arguments that a workflow does not declare are free, as in
workflows that declare none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dm.common.errors import InvalidArgument
from dm.station.processing.checks import one_edit
from dm.station.processing.expressions import as_text
from dm.station.processing.values import WORDS, shown

INPUT_KEYS = ("filePath", "filePathList", "filePathPattern", "dataDir", "datasetName", "dataset", "fileQuery")
SHOWN_CHOICES = 20

Specs = Mapping[str, Mapping[str, Any]]


def _is_int(value: Any) -> bool:
    if isinstance(value, str):
        text = value.strip()
        return len(text) <= 40 and text.lstrip("+-").isdecimal()
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


def _is_float(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, str | int | float) and float(value) == float(value)
    except (ValueError, OverflowError):
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or str(value).strip().lower() in WORDS


def _is_json(kind: type) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if isinstance(value, str):  # commands and forms send texts
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return False
        return isinstance(value, kind)

    return check


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("a text", _is_text),
    "int": ("a whole number", _is_int),
    "float": ("a number", _is_float),
    "bool": ("true or false", _is_truth),
    "path": ("a path", _is_path),
    "list": ("a list", lambda value: isinstance(value, str) or _is_json(list)(value)),
    "dict": ("an object", _is_json(dict)),
}
NAMES = {
    **{name: name for name in _KINDS},
    "string": "text",
    "str": "text",
    "integer": "int",
    "number": "float",
    "double": "float",
    "boolean": "bool",
    "flag": "bool",
    "file": "path",
    "directory": "path",
    "array": "list",
    "object": "dict",
    "json": "dict",
}
_CHOICE = frozenset({"multiple_choice", "choice", "multiplechoice", "multiple-choice"})


def problems(specs: Specs | None) -> Iterator[str]:
    """Yield what is wrong with checked ``arguments`` taken together.

    :param specs: in normal form; ``None`` for a workflow that declares none.
    """
    for name, spec in (specs or {}).items():
        where = f"Argument {name[:80]!r}"
        kind = _kind(spec)
        if kind in _CHOICE and not spec.get("choices"):
            yield f"{where} is of type {spec['type']!r} but has no choices; list them."
            continue
        if kind and kind not in _CHOICE and kind not in NAMES:
            near = next((known for known in (*NAMES, *_CHOICE) if len(known) > 3 and one_edit(kind, known)), None)
            if near:
                yield f"{where}: type {spec['type']!r} is unknown; did you mean {near!r}?"
        if spec.get("default") is not None and (reason := _unfit(spec, spec["default"])):
            yield f"{where}: default {shown(spec['default'])} {reason}."


def apply(workflow: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check a job's arguments against what its workflow declares.

    :param workflow: a checked workflow. :param arguments: as submitted.
    :returns: the arguments as they are, with the defaults of those that are missing (or ``None``).
    :raises InvalidArgument: one sentence: a required one is missing or empty, a value is not among the choices or not
        of the type.
    """
    specs: Specs = workflow.get("arguments") or {}
    result = dict(arguments)
    for name, spec in specs.items():
        value = result.get(name)
        if value is None and spec.get("default") is not None:
            value = result[name] = spec["default"]
        if value in (None, ""):
            if spec.get("required") and not _input(name, arguments):
                raise InvalidArgument(_missing(name, spec, workflow, specs, arguments))
        elif reason := _unfit(spec, value):
            raise InvalidArgument(f"Argument {name!r} has value {shown(value)}, which {reason}.")
    return result


def _kind(spec: Mapping[str, Any]) -> str:
    return str(spec.get("type") or "").strip().lower()


def _input(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether ``$filePath`` has a value because the job names its input in another way."""
    return name == "filePath" and any(arguments.get(key) not in (None, "", []) for key in INPUT_KEYS)


def _unfit(spec: Mapping[str, Any], value: Any) -> str | None:
    """Return why a value may not be, as the end of a sentence, or ``None``."""
    kind = _kind(spec)
    choices = spec.get("choices")
    if choices:
        known = {_comparable(choice) for choice in choices}
        values = value if isinstance(value, list) and kind in _CHOICE | {"list"} else [value]
        if not all(_comparable(item) in known for item in values):
            some = [shown(choice, 40) for choice in list(choices)[:SHOWN_CHOICES]]
            more = f" or one of {len(choices) - SHOWN_CHOICES} more" if len(choices) > SHOWN_CHOICES else ""
            return f"is not among its choices; give {', '.join(some)}{more}"
    elif kind in NAMES:
        what, fits = _KINDS[NAMES[kind]]
        if not fits(value):
            return f"is not {what}"
    return None


def _comparable(value: Any) -> str:
    """Return a value as choices are compared: 1, 1.0 and the text 1 are the same, true and True as well."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = as_text(value)
    return text.lower() if text in {"True", "False"} else text


def _missing(
    name: str, spec: Mapping[str, Any], workflow: Mapping[str, Any], specs: Specs, arguments: Mapping[str, Any]
) -> str:
    near = next((given for given in arguments if given not in specs and one_edit(given, name)), None)
    if near is not None:
        return f"Argument {name!r} of workflow {workflow['name']!r} is missing; {near!r} was given instead."
    choices = spec.get("choices")
    wanted = (
        f"; give one of {', '.join(shown(choice, 40) for choice in list(choices)[:SHOWN_CHOICES])}" if choices else ""
    )
    about = f" ({spec['description'][:200]})" if spec.get("description") else ""
    return f"Argument {name!r} of workflow {workflow['name']!r} is required{about} and was not given{wanted}."
