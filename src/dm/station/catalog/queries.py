"""Queries from outside: a fixed list of operators, checked, limited, and evaluated by us.

A query has MongoDB's form, ``{"fileSize": {"$gt": 1000}, "scan.number": 7}``. What it means is decided here, on the
records as callers see them: keys of free metadata may contain dots (``"a.b"`` names the key ``a.b`` as well as ``b``
inside ``a``), and regular expressions run in RE2, in linear time. Only conditions that every MongoDB evaluates alike
are handed to the database, to narrow down what it sends; the answer never depends on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import re2

from dm.common.errors import InvalidArgument, ServiceLimit
from dm.station.catalog import codec

MAX_TEXT = 256 << 10
MAX_LEVELS = 10
MAX_CONDITIONS = 500
MAX_CHOICES = 10_000
MAX_REGEX = 512
MAX_KEY_PARTS = 12

Record = Mapping[str, Any]
Matcher = Callable[[Record], bool]
Stored = Callable[[str], tuple[str, bool] | None]

_SAFE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_/: -]{0,127}")
_EXACT = 1 << 53
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda found, wanted: found > wanted,
    "$gte": lambda found, wanted: found >= wanted,
    "$lt": lambda found, wanted: found < wanted,
    "$lte": lambda found, wanted: found <= wanted,
}
_LOGICAL = ("$and", "$or", "$nor")
OPERATORS = ("$eq", "$ne", *_COMPARISONS, "$in", "$nin", "$exists", "$not", "$regex", "$options", *_LOGICAL)


class Query:
    """A checked query.

    :param query: the query; ``None`` or empty matches everything.
    :param stored: tells where the database keeps a key, and whether its value is always a number or text, never a
        list; ``None`` when the key cannot be narrowed down there.
    :raises InvalidArgument: an operator that is not allowed, or a malformed condition.
    :raises ServiceLimit: a query that is too large or too deep.
    """

    def __init__(self, query: Mapping[str, Any] | None, stored: Stored = lambda key: None) -> None:
        self._query = dict(query or {})
        self._conditions = 0
        self._stored = stored
        if len(json.dumps(self._query)) > MAX_TEXT:
            raise ServiceLimit(f"The query is longer than {MAX_TEXT} characters; ask for less at once.")
        self._matcher = self._all(self._query, 1)
        self.prefilter = self._narrow(self._query) or {}

    @property
    def is_empty(self) -> bool:
        """Whether everything matches."""
        return not self._query

    def matches(self, record: Record) -> bool:
        """Whether a record, as callers see it, fits."""
        return self._matcher(record)

    def required(self, *keys: str) -> str | None:
        """Return the text that one of the keys must equal for any match, if the query says so at its top."""
        for key in keys:
            condition = self._query.get(key)
            if isinstance(condition, Mapping):
                condition = condition.get("$eq")
            if isinstance(condition, str):
                return condition
        return None

    def _all(self, query: Any, level: int) -> Matcher:
        if not isinstance(query, Mapping):
            raise InvalidArgument(f"Query {_short(query)} is not an object of keys and conditions.")
        if level > MAX_LEVELS:
            raise ServiceLimit(f"The query is nested deeper than {MAX_LEVELS} levels.")
        parts = []
        for key, condition in query.items():
            self._count()
            if not isinstance(key, str):
                raise InvalidArgument(f"Query key {_short(key)} is not a text.")
            if key.startswith("$"):
                parts.append(self._logical(key, condition, level))
            else:
                parts.append(self._key(key, condition, level))
        return parts[0] if len(parts) == 1 else lambda record: all(part(record) for part in parts)

    def _logical(self, operator: str, condition: Any, level: int) -> Matcher:
        if operator not in _LOGICAL:
            raise _refused(operator)
        if not isinstance(condition, list) or not condition:
            raise InvalidArgument(f"Operator {operator} needs a list of queries, not {_short(condition)}.")
        parts = [self._all(part, level + 1) for part in condition]
        if operator == "$and":
            return lambda record: all(part(record) for part in parts)
        if operator == "$or":
            return lambda record: any(part(record) for part in parts)
        return lambda record: not any(part(record) for part in parts)

    def _key(self, key: str, condition: Any, level: int) -> Matcher:
        parts = key.split(".")
        if len(parts) > MAX_KEY_PARTS:
            raise ServiceLimit(f"Query key {_short(key)} has more than {MAX_KEY_PARTS} parts.")
        test = self._condition(condition, level)
        return lambda record: test(list(_found(record, parts)))

    def _condition(self, condition: Any, level: int) -> Callable[[list[Any]], bool]:
        """Return a test on the list of values found under a key (empty: the key is missing)."""
        if not _is_operators(condition):
            return lambda found: _equals(found, condition)
        if level > MAX_LEVELS:
            raise ServiceLimit(f"The query is nested deeper than {MAX_LEVELS} levels.")
        tests = []
        for operator, wanted in condition.items():
            self._count()
            if operator != "$options":
                tests.append(self._operator(operator, wanted, condition, level))
            elif "$regex" not in condition:
                raise InvalidArgument("Operator $options needs $regex beside it.")
        return lambda found: all(test(found) for test in tests)

    def _operator(
        self, operator: str, wanted: Any, condition: Mapping[str, Any], level: int
    ) -> Callable[[list[Any]], bool]:
        if operator == "$not":
            if not _is_operators(wanted):
                raise InvalidArgument(f"Operator $not needs an object of operators, not {_short(wanted)}.")
            inner = self._condition(wanted, level + 1)
            return lambda found: not inner(found)
        if operator == "$regex":
            return _regex(wanted, condition.get("$options", ""))
        if operator not in _TESTS:
            raise _refused(operator)
        return _TESTS[operator](operator, wanted)

    def _count(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise ServiceLimit(f"The query has more than {MAX_CONDITIONS} conditions; ask for less at once.")

    def _narrow(self, query: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return conditions for the database that every match fulfils; ``None`` when nothing can be said."""
        parts: list[dict[str, Any]] = []
        for key, condition in query.items():
            part: dict[str, Any] | None = None
            if key == "$and":
                inner = [found for found in map(self._narrow, condition) if found]
                part = {"$and": inner} if inner else None
            elif key == "$or":
                branches = [self._narrow(branch) for branch in condition]
                part = {"$or": branches} if all(branches) else None
            elif not key.startswith("$") and (place := self._stored(key)):
                narrowed = _narrowed(condition, ranges=place[1])
                part = None if narrowed is None else {place[0]: narrowed}
            if part:
                parts.append(part)
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else {"$and": parts}


def metadata_field(key: str, folder: str) -> tuple[str, bool] | None:
    """Return where free metadata of a plain key is stored, or ``None`` for keys the database might misread."""
    return (f"{folder}.{codec.escape_key(key)}", False) if _SAFE_KEY.fullmatch(key) else None


def _narrowed(condition: Any, ranges: bool) -> Any:
    """Return the part of a condition on one key that the database may evaluate, or ``None``.

    Databases do not agree on how a list compares with a number, only on what it contains.
    """
    if not _is_operators(condition):
        return condition if _is_plain(condition) else None
    kept: dict[str, Any] = {}
    for operator, wanted in condition.items():
        if operator == "$eq" and _is_plain(wanted):
            kept["$eq"] = wanted
        elif ranges and operator in _COMPARISONS and _is_plain(wanted) and not isinstance(wanted, str | bool):
            kept[operator] = wanted
        elif operator == "$in" and all(_is_plain(choice) for choice in wanted):
            kept["$in"] = wanted
    return kept or None


def _is_plain(value: Any) -> bool:
    """Whether databases agree on this value: text and numbers that are exact in every representation."""
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return value.isprintable() and len(value) <= 4096
    return isinstance(value, int | float) and abs(value) < _EXACT


def _is_operators(condition: Any) -> bool:
    """Whether a condition is an object of operators rather than a value to be equal to."""
    if not isinstance(condition, Mapping) or not condition:
        return False
    marked = [key.startswith("$") for key in condition]
    if any(marked) and not all(marked):
        raise InvalidArgument(f"Query condition {_short(condition)} mixes operators and plain keys.")
    return marked[0]


def _found(value: Any, parts: list[str]) -> Iterator[Any]:
    """Yield what a dotted key names, trying every way of reading the dots."""
    if not parts:
        yield value
    elif isinstance(value, Mapping):
        for length in range(1, len(parts) + 1):
            key = ".".join(parts[:length])
            if key in value:
                yield from _found(value[key], parts[length:])
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                yield from _found(item, parts)
        if parts[0].isdigit() and len(parts[0]) < 9 and int(parts[0]) < len(value):
            yield from _found(value[int(parts[0])], parts[1:])


def _each(found: list[Any]) -> Iterator[Any]:
    """Yield the values and, as MongoDB does, the members of values that are lists."""
    for value in found:
        yield value
        if isinstance(value, list):
            yield from value


def _kind(value: Any) -> type:
    """Return the class of values comparable with this one: JSON's true is not its 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return type(value)
    return float


def _same(found: Any, wanted: Any) -> bool:
    if _kind(found) is not _kind(wanted):
        return False
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[key], wanted[key]) for key in wanted)
    return bool(found == wanted)


def _equals(found: list[Any], wanted: Any) -> bool:
    if wanted is None and not found:
        return True
    return any(_same(value, wanted) for value in _each(found))


def _equality(operator: str, wanted: Any) -> Callable[[list[Any]], bool]:
    return lambda found: _equals(found, wanted) == (operator == "$eq")


def _existence(operator: str, wanted: Any) -> Callable[[list[Any]], bool]:
    if not isinstance(wanted, bool) and wanted not in (0, 1):
        raise InvalidArgument(f"Operator {operator} needs true or false, not {_short(wanted)}.")
    return lambda found: bool(found) == bool(wanted)


def _comparison(operator: str, wanted: Any) -> Callable[[list[Any]], bool]:
    if isinstance(wanted, bool) or not isinstance(wanted, str | int | float):
        raise InvalidArgument(f"Operator {operator} needs a number or a text, not {_short(wanted)}.")
    compare = _COMPARISONS[operator]
    kind = _kind(wanted)
    return lambda found: any(_kind(value) is kind and compare(value, wanted) for value in _each(found))


def _choice(operator: str, wanted: Any) -> Callable[[list[Any]], bool]:
    if not isinstance(wanted, list):
        raise InvalidArgument(f"Operator {operator} needs a list, not {_short(wanted)}.")
    if len(wanted) > MAX_CHOICES:
        raise ServiceLimit(f"Operator {operator} has {len(wanted)} choices, more than {MAX_CHOICES}.")
    scalars = {(_kind(choice), choice) for choice in wanted if not isinstance(choice, list | dict)}
    nested = [choice for choice in wanted if isinstance(choice, list | dict)]

    def chosen(found: list[Any]) -> bool:
        if not found and (type(None), None) in scalars:
            return True
        return any(
            any(_same(value, choice) for choice in nested)
            if isinstance(value, list | dict)
            else (_kind(value), value) in scalars
            for value in _each(found)
        )

    return chosen if operator == "$in" else lambda found: not chosen(found)


_TESTS: dict[str, Callable[[str, Any], Callable[[list[Any]], bool]]] = {
    "$eq": _equality,
    "$ne": _equality,
    **dict.fromkeys(_COMPARISONS, _comparison),
    "$in": _choice,
    "$nin": _choice,
    "$exists": _existence,
}


def _regex(pattern: Any, options: Any) -> Callable[[list[Any]], bool]:
    if not isinstance(pattern, str) or len(pattern) > MAX_REGEX:
        raise InvalidArgument(f"Operator $regex needs a text of at most {MAX_REGEX} characters, not {_short(pattern)}.")
    if not isinstance(options, str) or set(options) - set("ims"):
        raise InvalidArgument(f"Operator $options knows the letters i, m and s, not {_short(options)}.")
    settings = re2.Options()
    settings.log_errors = False
    settings.max_mem = 1 << 20
    try:
        compiled = re2.compile(f"(?{options}:{pattern})" if options else pattern, settings)
    except (re2.error, UnicodeEncodeError) as error:
        raise InvalidArgument(f"Regular expression {_short(pattern)} is not usable: {_reason(error)}.") from None
    return lambda found: any(
        isinstance(value, str) and compiled.search(_clean(value)) is not None for value in _each(found)
    )


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _refused(operator: str) -> InvalidArgument:
    return InvalidArgument(f"Operator {_short(operator)} is not allowed in a query; use one of {', '.join(OPERATORS)}.")


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
