"""What the values of a workflow's keys must be: validators of the models.

A validator's message is the end of a sentence whose beginning names the stage: *timeout -1 is not ...*.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

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


def number(key: str, low: int, high: int, *, unit: str = "", whole: bool = False, above: bool = False) -> Check:
    """Return a check that accepts numbers within bounds, also as text; ``above``: beyond ``low`` only."""

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


def choice(key: str, *words: str) -> Check:
    """Return a check that accepts some words."""

    def check(value: Any) -> Any:
        if value not in words:
            raise refuse(f"{key} {shown(value)} is neither {' nor '.join(repr(word) for word in words)}")
        return value

    return check


def truth(key: str) -> Check:
    """Return a check that accepts truth values, also as words."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, bool | int | str) and (word := str(value).lower()) in WORDS:
            return WORDS[word]
        raise refuse(f"{key} {shown(value)} is neither true nor false")

    return check


def texts(key: str, what: str, most: int) -> Check:
    """Return a check that accepts a list of texts, or one text for a list of one."""

    def check(value: Any) -> Any:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or len(items) > most:
            raise refuse(f"{key} {shown(value)} is not a list of at most {most} {what}")
        for item in items:
            if not isinstance(item, str) or not item.strip() or "\0" in item:
                raise refuse(f"{key} holds {shown(item)}, which is no {what.removesuffix('s')}")
        return items

    return check


def expression(key: str) -> Check:
    """Return a check that accepts conditions; see :mod:`dm.station.processing.expressions`."""

    def check(value: Any) -> Any:
        if value is not None:
            try:
                expressions.check(value, key)
            except InvalidArgument as error:
                raise refuse(error.message.rstrip(".")) from None
        return value

    return check


def command(value: Any) -> Any:
    """Accept shell text."""
    if not isinstance(value, str) or not value.strip():
        raise refuse("has no command")
    if len(value) > MAX_COMMAND or "\0" in value:
        raise refuse(f"the command is longer than {MAX_COMMAND} characters or holds a NUL")
    return value


def path(key: str) -> Check:
    """Return a check that accepts a path as text."""

    def check(value: Any) -> Any:
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise refuse(f"{key} {shown(value)} is not a path")
        return value

    return check


def patterns(value: Any) -> Any:
    """Accept a list of output regexes."""
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


def executor(value: Any) -> Any:
    """Accept a name as executors have."""
    if not isinstance(value, str) or not EXECUTOR.fullmatch(value):
        raise refuse(f"executor {shown(value)} is not the name of an executor, such as 'local'")
    return value


def optional(check: Check) -> Check:
    """Return a check that accepts ``None`` as well."""
    return lambda value: None if value is None else check(value)


def retry(value: Any) -> Any:
    """Accept an object; the model of retries looks into it."""
    if value is not None and not isinstance(value, dict):
        raise refuse(f'retry {shown(value)} is not an object; write {{"count": 3, "backoff": 10}}')
    return value


def type_name(value: Any) -> Any:
    """Accept any word: forms elsewhere may know types that DM does not."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise refuse(f"type {shown(value)} is not the name of a type")
    return value


def choices(value: Any) -> Any:
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


def description(value: Any) -> Any:
    """Accept a text."""
    if value is not None and not isinstance(value, str):
        raise refuse(f"description {shown(value)} is not a text")
    return value


def name(value: Any) -> Any:
    """Accept the name of a workflow."""
    if not isinstance(value, str) or not value.strip():
        raise refuse("A workflow needs a name")
    if len(value) > MAX_NAME or not value.isprintable():
        raise refuse(f"name {shown(value)} is longer than {MAX_NAME} or holds control characters")
    return value


def owner(key: str) -> Check:
    """Return a check that accepts a user name; nothing and an empty text are none."""

    def check(value: Any) -> Any:
        if value and (not isinstance(value, str) or not OWNER.fullmatch(value)):
            raise refuse(f"{key} {shown(value)} is an invalid owner name")
        return value or None

    return check


def version(value: Any) -> Any:
    """Accept a number or a text."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | str)):
        raise refuse(f"version {shown(value)} is neither a number nor a text")
    return value


def workflow_id(value: Any) -> Any:
    """Accept 24 hexadecimal digits; nothing and an empty text are none."""
    if value and (not isinstance(value, str) or not WORKFLOW_ID.fullmatch(value)):
        raise refuse(f"id {shown(value)} is not of 24 hexadecimal digits")
    return value or None  # dmax cannot leave it out and sends an empty text


def stages(value: Any) -> Any:
    """Accept an object of named stages; the model of stages looks into them."""
    if not isinstance(value, dict) or not value:
        raise refuse("has no stages; give at least one with a command")
    if len(value) > MAX_STAGES:
        raise refuse(f"has more than {MAX_STAGES} stages")
    for name in value:
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or not name.isprintable():
            raise refuse(f"Stage name {shown(name)} is not a text of 1 to {MAX_NAME} characters")
    return value


def arguments(value: Any) -> Any:
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
