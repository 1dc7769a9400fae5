"""Workflow specifications: reading spec files and checking what they say.

The keys are those of :mod:`dm.station.processing.models`; keys DM does not know are kept.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dm.common.errors import InvalidArgument, ObjectNotFound
from dm.station.processing import checks, literals, parameters
from dm.station.processing.example import EXAMPLE
from dm.station.processing.models import Workflow
from dm.station.processing.values import OWNER, WORKFLOW_ID

__all__ = ["EXAMPLE", "WORKFLOW_ID", "check_owner", "checked", "new_id", "problems", "read"]

MAX_SPEC = 1 << 20
EXECUTION_KEYS = frozenset(
    {
        "childProcesses",
        "nRunningChildProcesses",
        "nQueuedChildProcesses",
        "nCompletedChildProcesses",
        "nFailedChildProcesses",
        "nAbortedChildProcesses",
        "status",
    }
)
KEPT_KEYS = frozenset({"revision", "revisionTime", "revisionTimestamp", "revisionUser"})
"""What the service itself says of a workflow; not part of its definition."""
_NORMAL = (
    ("stages", ("parallelExec", "timeout", "retry", "cleanup", "dependsOn", "artefacts", "onFailure", "onLost")),
    ("arguments", ("required",)),
)


def read(path: str | Path, reader: Callable[[bytes, str], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Read a spec file: ``.json`` as JSON, anything else as a Python dictionary literal; never executed.

    :param reader: reads it instead, whatever its name.

    :raises ObjectNotFound: no such file. :raises InvalidArgument: not readable as a spec.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(literals.MAX_BYTES + 1)
    except FileNotFoundError:
        raise ObjectNotFound(f"Workflow specification file {str(path)!r} does not exist.") from None
    except OSError as error:
        raise InvalidArgument(f"Workflow specification file {str(path)!r} cannot be read: {error.strerror}.") from None
    if reader is None:
        reader = literals.read_json if path.suffix.lower() == ".json" else literals.read_python
    return reader(content, str(path))


def check_owner(owner: Any) -> str:
    """Return an owner name.

    :raises InvalidArgument: with the published words *invalid owner name*.
    """
    if not isinstance(owner, str) or not OWNER.fullmatch(owner):
        raise InvalidArgument(f"Value {str(owner)[:80]!r} is an invalid owner name.")
    return owner


def new_id() -> str:
    """Return a fresh workflow id: 24 hexadecimal digits."""
    return secrets.token_hex(12)


def checked(spec: Any, default_owner: str | None = None) -> dict[str, Any]:
    """Check a specification and return it in normal form.

    :param spec: the dictionary as submitted; not changed.
    :param default_owner: taken when the spec names no owner.
    :returns: a copy with ``description`` and ``userAccount`` filled in and the stages in execution order, without what
        the service adds to records; ``id`` only where the spec had a usable one (24 hexadecimal digits). Keys that
        have a default are not filled in.
    :raises InvalidArgument: the first thing that is wrong, in one sentence naming stage, key and value.
    """
    workflow, wrong = _examined(spec, default_owner)
    if wrong:
        raise InvalidArgument(wrong[0])
    return workflow


def problems(spec: Any, default_owner: str | None = None) -> list[str]:
    """Return all that is wrong with a specification, one sentence each; none when :func:`checked` accepts it."""
    return _examined(spec, default_owner)[1]


def _examined(spec: Any, default_owner: str | None) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(spec, dict):
        return {}, [f"A workflow is a dictionary, not {type(spec).__name__}."]
    given = _stripped(spec)
    name = str(given.get("name"))
    try:
        model = Workflow.model_validate(given)
    except ValidationError as error:
        wrong = checks.sentences(error, name)
        return {}, [*wrong, *checks.misspelt(given)]
    wrong = list(checks.misspelt(given))
    if not model.owner and default_owner is None:
        wrong.append(f"Workflow {name[:80]!r} names no owner.")
    workflow = _normal(given, model, default_owner)
    wrong += checks.together(workflow["stages"])
    wrong += parameters.problems(workflow.get("arguments"))
    wrong += _not_json(workflow)
    return workflow, wrong


def _stripped(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a definition without what the service adds to records, which clients send again with it."""
    result = {key: value for key, value in spec.items() if key not in KEPT_KEYS}
    stages = spec.get("stages")
    if isinstance(stages, dict):
        result["stages"] = {
            name: {key: value for key, value in stage.items() if key not in EXECUTION_KEYS}
            if isinstance(stage, dict)
            else stage
            for name, stage in stages.items()
        }
    return result


def _normal(given: dict[str, Any], model: Workflow, default_owner: str | None) -> dict[str, Any]:
    owner = model.owner or default_owner
    result = {**given, "owner": owner and check_owner(owner)}
    result["description"] = model.description or ""
    result["userAccount"] = model.userAccount or result["owner"]
    for key in ("version", "id", "priority", "maxConcurrentJobs", "onLost"):
        value = getattr(model, key)
        if value is None:
            result.pop(key, None)
        elif key in {"priority", "maxConcurrentJobs"}:
            result[key] = value
    result["stages"] = dict(sorted(given["stages"].items()))
    if isinstance(given.get("arguments"), dict):
        result["arguments"] = {
            name: {"description": item} if isinstance(item, str) else (item or {})
            for name, item in given["arguments"].items()
        }
    for place, keys in _NORMAL:
        models = getattr(model, place)
        for name, part in result.get(place, {}).items() if models else ():
            result[place][name] = _part(part, models[name], keys)
    return result


def _part(part: dict[str, Any], model: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a stage or argument with these keys as the model has them; without those that are ``None``."""
    result = dict(part)
    for key in keys:
        if key not in part:
            continue
        value = getattr(model, key)
        if value is None:
            del result[key]
        else:
            result[key] = value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value
    return result


def _not_json(workflow: dict[str, Any]) -> list[str]:
    name = workflow["name"]
    try:
        size = len(json.dumps(workflow, allow_nan=False))
        json.dumps(workflow, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return [f"Workflow {name!r} holds a value that is not JSON: {error}."]
    return [f"Workflow {name!r} is larger than {MAX_SPEC} bytes."] if size > MAX_SPEC else []
