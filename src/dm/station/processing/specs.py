"""Workflow specifications: reading spec files and checking what they say.

The published keys and rules are those of the workflow definition page; keys DM does not know are kept.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dm.common.errors import InvalidArgument, ObjectNotFound
from dm.station.processing import expressions, literals, regexes

MAX_NAME = 255
MAX_STAGES = 1_000
MAX_COMMAND = 256 << 10
MAX_REGEXES = 200
MAX_SPEC = 1 << 20
MAX_REPEATS = 10_000_000
MAX_PERIOD = 366 * 86_400
OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}", re.ASCII)
WORKFLOW_ID = re.compile(r"[0-9a-f]{24}", re.ASCII)
REPEAT_KEYS = ("repeatPeriod", "repeatUntil", "maxRepeats")
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

EXAMPLE: dict[str, Any] = {
    "name": "example-01",
    "owner": "dm",
    "description": "Shows variables, output regexes, a condition and a repeated stage.",
    "stages": {
        "01-START": {
            "command": "/bin/date +%Y%m%d%H%M%S",
            "outputVariableRegexList": ["(?P<timeStamp>[0-9]+)"],
        },
        "02-MKDIR": {"command": 'mkdir -p "/tmp/workflow.$id.$timeStamp"'},
        "03-ECHO": {
            "command": 'echo "START JOB ID: $id" > "/tmp/workflow.$id.$timeStamp/$timeStamp.out"',
        },
        "04-MD5SUM": {
            "command": 'echo "MD5: `md5sum < $filePath | cut -f1 -d\\" \\"`"',
            "outputVariableRegexList": ["MD5: (?P<md5Sum>.*)"],
        },
        "05-REPEAT": {
            "command": 'echo "COUNT: `date +%S | sed s/^0//`"; echo "WANTED: 0"',
            "outputVariableRegexList": ["COUNT: (?P<count>.*)", "WANTED: (?P<wanted>.*)"],
            "repeatPeriod": 1,
            "repeatUntil": "$count >= $wanted",
            "maxRepeats": 10,
        },
        "06-DONE": {"command": 'rm -r "/tmp/workflow.$id.$timeStamp"; echo "DONE: $md5Sum"'},
    },
}


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
    :returns: a copy with ``description`` and ``userAccount`` filled in and the stages in execution order; ``id`` only
        where the spec had a usable one (24 hexadecimal digits).
    :raises InvalidArgument: one sentence naming stage and value.
    """
    if not isinstance(spec, dict):
        raise InvalidArgument(f"A workflow is a dictionary, not {type(spec).__name__}.")
    result = {**spec}
    result["name"] = _name(spec.get("name"))
    if not spec.get("owner") and default_owner is None:
        raise InvalidArgument(f"Workflow {result['name']!r} names no owner.")
    result["owner"] = check_owner(spec.get("owner") or default_owner)
    result["description"] = _text(spec.get("description"), "description")
    result["userAccount"] = check_owner(spec.get("userAccount") or result["owner"])
    _version(result)
    if not spec.get("id"):  # dmax cannot leave it out and sends an empty text
        result.pop("id", None)
    elif not isinstance(spec["id"], str) or not WORKFLOW_ID.fullmatch(spec["id"]):
        raise InvalidArgument(f"Workflow id {str(spec['id'])[:80]!r} is not of 24 hexadecimal digits.")
    arguments = spec.get("arguments")
    if isinstance(arguments, dict) and "workflow" in arguments:
        raise InvalidArgument("Argument name 'workflow' is reserved; choose another.")
    result["stages"] = _stages(spec.get("stages"), result["name"])
    try:
        size = len(json.dumps(result, allow_nan=False))
        json.dumps(result, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"Workflow {result['name']!r} holds a value that is not JSON: {error}.") from None
    if size > MAX_SPEC:
        raise InvalidArgument(f"Workflow {result['name']!r} is larger than {MAX_SPEC} bytes.")
    return result


def _version(result: dict[str, Any]) -> None:
    version = result.get("version")
    if version is None:
        result.pop("version", None)
    elif isinstance(version, bool) or not isinstance(version, int | float | str):
        raise InvalidArgument(f"Workflow version {str(version)[:80]!r} is neither a number nor a text.")


def _text(value: Any, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidArgument(f"Workflow {what} {str(value)[:80]!r} is not a text.")
    return value


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InvalidArgument("A workflow needs a name.")
    if len(name) > MAX_NAME or not name.isprintable():
        raise InvalidArgument(f"Workflow name {name[:80]!r} is longer than {MAX_NAME} or holds control characters.")
    return name


def _stages(stages: Any, workflow: str) -> dict[str, dict[str, Any]]:
    if not isinstance(stages, dict) or not stages:
        raise InvalidArgument(f"Workflow {workflow!r} has no stages; give at least one with a command.")
    if len(stages) > MAX_STAGES:
        raise InvalidArgument(f"Workflow {workflow!r} has more than {MAX_STAGES} stages.")
    for name in stages:
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or not name.isprintable():
            raise InvalidArgument(f"Stage name {str(name)[:80]!r} is not a text of 1 to {MAX_NAME} characters.")
    return {name: _stage(name, stages[name]) for name in sorted(stages)}


def _stage(name: str, stage: Any) -> dict[str, Any]:
    where = f"Stage {name[:80]!r}"
    if not isinstance(stage, dict):
        raise InvalidArgument(f"{where} is not a dictionary.")
    result = {key: value for key, value in stage.items() if key not in EXECUTION_KEYS}
    command = stage.get("command")
    if not isinstance(command, str) or not command.strip():
        raise InvalidArgument(f"{where} has no command.")
    if len(command) > MAX_COMMAND or "\0" in command:
        raise InvalidArgument(f"{where}: the command is longer than {MAX_COMMAND} characters or holds a NUL.")
    directory = stage.get("workingDir")
    if directory is not None and (not isinstance(directory, str) or "\0" in directory):
        raise InvalidArgument(f"{where}: workingDir {str(directory)[:80]!r} is not a path.")
    patterns = stage.get("outputVariableRegexList")
    if patterns is not None:
        if not isinstance(patterns, list) or len(patterns) > MAX_REGEXES:
            raise InvalidArgument(f"{where}: outputVariableRegexList is not a list of at most {MAX_REGEXES} regexes.")
        for pattern in patterns:
            regexes.check(pattern, name)
    if stage.get("runIf") is not None:
        expressions.check(stage["runIf"], f"{where}: runIf")
    _repeat(where, result)
    _timeout(where, result)
    _parallel(where, result)
    return result


def _timeout(where: str, stage: dict[str, Any]) -> None:
    value = stage.get("timeout")
    if value is None:
        return
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= MAX_PERIOD:
        raise InvalidArgument(f"{where}: timeout {str(value)[:80]!r} is not between 0 and {MAX_PERIOD} seconds.")


def _parallel(where: str, stage: dict[str, Any]) -> None:
    value = stage.get("parallelExec")
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value is None:
        stage.pop("parallelExec", None)
    elif str(value).lower() in words:
        stage["parallelExec"] = words[str(value).lower()]
    else:
        raise InvalidArgument(f"{where}: parallelExec {str(value)[:80]!r} is neither true nor false.")


def _repeat(where: str, stage: dict[str, Any]) -> None:
    given = [key for key in REPEAT_KEYS if stage.get(key) is not None]
    if not given:
        return
    if len(given) != len(REPEAT_KEYS):
        missing = ", ".join(key for key in REPEAT_KEYS if key not in given)
        raise InvalidArgument(f"{where} has {given[0]} but not {missing}; give all three.")
    try:
        period, count = float(stage["repeatPeriod"]), int(stage["maxRepeats"])
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(f"{where}: repeatPeriod and maxRepeats must be numbers.") from None
    if not 0 <= period <= MAX_PERIOD:
        raise InvalidArgument(f"{where}: repeatPeriod {period:g} is not between 0 and {MAX_PERIOD} seconds.")
    if not 1 <= count <= MAX_REPEATS:
        raise InvalidArgument(f"{where}: maxRepeats {count} is not between 1 and {MAX_REPEATS}.")
    expressions.check(stage["repeatUntil"], f"{where}: repeatUntil")
