"""Queries for jobs: a fixed list of operators on known fields, translated for the database.

Keys are those of the job record: what the engine knows (``status``, ``owner``, ``stage``, ``submissionTime`` ...),
``workflow.name`` and ``workflow.owner``, and any argument or captured variable of a plain name with a simple value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dm.common.errors import InvalidArgument

OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists")
MAX_CONDITIONS = 50
MAX_CHOICES = 1_000
MAX_TEXT = 1_024
_FIELDS = {
    "id": "_id",
    "_id": "_id",
    "workflow.name": "workflowName",
    "workflow.owner": "workflowOwner",
    "workflowName": "workflowName",
    "workflowOwner": "workflowOwner",
    **{
        name: name
        for name in (
            "owner",
            "status",
            "stage",
            "submissionTime",
            "startTime",
            "endTime",
            "countFiles",
            "errorMessage",
            "priority",
            "restarts",
        )
    },
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


def translated(query: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the database's form of a query.

    :raises InvalidArgument: naming the operator, key or value that is not allowed.
    """
    if not query:
        return {}
    if not isinstance(query, Mapping):
        raise InvalidArgument(f"Query {query!r:.80} is not an object of keys and values.")
    if len(query) > MAX_CONDITIONS:
        raise InvalidArgument(f"The query has more than {MAX_CONDITIONS} conditions.")
    return {_field(key): _condition(key, value) for key, value in query.items()}


def _field(key: str) -> str:
    if key in _FIELDS:
        return _FIELDS[key]
    if not _NAME.fullmatch(key):
        raise InvalidArgument(f"Query key {key[:80]!r} is not allowed; give names of job keys or arguments.")
    return f"values.{key}"


def _condition(key: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _simple(key, value)
    if not value:
        raise InvalidArgument(f"Query key {key!r} has an empty condition.")
    condition = {}
    for operator, operand in value.items():
        if operator not in OPERATORS:
            raise InvalidArgument(
                f"Operator {str(operator)[:80]!r} is not allowed in a query; use one of {', '.join(OPERATORS)}."
            )
        condition[operator] = _OPERANDS.get(operator, _simple)(key, operand)
    return condition


def _simple(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 62):
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT:
        return value.encode("utf-8", "backslashreplace").decode()
    raise InvalidArgument(f"Query value {value!r:.80} of {key!r} is not a number, truth value or text.")


def _choices(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_CHOICES:
        raise InvalidArgument(f"Query key {key!r} needs a list of at most {MAX_CHOICES} values for $in and $nin.")
    return [_simple(key, item) for item in value]


def _truth(key: str, value: Any) -> bool:
    return bool(_simple(key, value))


_OPERANDS: dict[str, Callable[[str, Any], Any]] = {"$in": _choices, "$nin": _choices, "$exists": _truth}

_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda found, wanted: bool(found == wanted),
    "$ne": lambda found, wanted: bool(found != wanted),
    "$gt": lambda found, wanted: bool(found > wanted),
    "$gte": lambda found, wanted: bool(found >= wanted),
    "$lt": lambda found, wanted: bool(found < wanted),
    "$lte": lambda found, wanted: bool(found <= wanted),
    "$in": lambda found, wanted: found in wanted,
    "$nin": lambda found, wanted: found not in wanted,
}


def matcher(query: Mapping[str, Any] | None) -> Callable[[Mapping[str, Any]], bool]:
    """Return a test for records of which there are few (workflows): same operators, top-level keys.

    :raises InvalidArgument: see :func:`translated`.
    """
    translated(query)
    return lambda record: all(_matches(record, key, condition) for key, condition in (query or {}).items())


def _matches(record: Mapping[str, Any], key: str, condition: Any) -> bool:
    found = record.get(key)
    if not isinstance(condition, Mapping):
        return bool(found == condition)
    for operator, wanted in condition.items():
        if operator == "$exists":
            if (key in record) != bool(wanted):
                return False
            continue
        try:
            if not _TESTS[operator](found, wanted):
                return False
        except TypeError:  # a text is neither above nor below a number
            return False
    return True
