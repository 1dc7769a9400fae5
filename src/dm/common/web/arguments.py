"""Arguments: from path, query, form or JSON body to a checked argument model.

One value can arrive as plain percent-encoded text (any bytes, kept by surrogateescape), as the double-base64 text
``b'...'`` of published clients (both dialects), or in a JSON body.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import types
import typing
from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError

from dm.common.errors import InvalidRequest
from dm.common.web.routes import Arguments, Route

MAX_DEPTH = 100
MAX_PAIRS = 1000
SHOWN = 60
_CODED = re.compile(r"""\s*b(['"])(.*)\1\s*\Z""", re.DOTALL)
_SECRET_NAMES = re.compile(r"password|secret|token", re.IGNORECASE)


def unquote(raw: bytes | str) -> str:
    """Return percent-encoded text decoded; bytes that are not UTF-8 survive as lone surrogates."""
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


def decode(text: str, name: str = "text") -> str:
    """Decode one value that may be double base64.

    Text in the dress ``b'...'`` or ``b"..."`` is base64 of base64 of UTF-8 text, the inner layer possibly wrapped
    into lines; everything else is plain text and returned as it is.

    :param name: the argument's name for the error.
    :raises InvalidRequest: the dress is there but what it holds is not double base64 of UTF-8 text.
    """
    match = _CODED.match(text)
    if match is None:
        return text
    try:
        inner = base64.b64decode("".join(match[2].split()).encode("ascii"), validate=True)
        return base64.b64decode(b"".join(inner.split()), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeError):
        raise InvalidRequest(
            f"Argument {name!r} has value {shorten(text)} which is not valid double base64 of UTF-8 text; "
            "send plain percent-encoded text or encode it twice."
        ) from None


def encode(text: str) -> str:
    """Return the text as published clients write it: double base64 in the dress ``b'...'``."""
    return repr(base64.b64encode(base64.b64encode(text.encode("utf-8"))))


def shorten(value: Any, limit: int = SHOWN) -> str:
    """Return a value for an error message: its ASCII repr, cut in the middle when long."""
    text = value if not isinstance(value, str) else value[: limit * 2]
    shown = ascii(text)
    if len(shown) > limit:
        shown = f"{shown[: limit - 3]}..."
    return shown


def parse_json(text: str | bytes, what: str) -> Any:
    """Parse strict JSON.

    :param what: what the text is, to begin the error sentence with (``"The body"``, ``"Argument 'x'"``).
    :raises InvalidRequest: not UTF-8, not JSON, ``NaN`` or ``Infinity``, a number beyond a double, duplicate keys,
        or nested deeper than 100.
    """

    def constant(literal: str) -> Any:
        raise ValueError(f"{literal} is not JSON")

    def number(literal: str) -> float:
        value = float(literal)
        if value in (float("inf"), float("-inf")):
            raise ValueError(f"number {literal[:20]} is too large")
        return value

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise ValueError(f"key {shorten(twice)} occurs twice")
        return result

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=record)
    except RecursionError:
        raise InvalidRequest(f"{what} is nested deeper than {MAX_DEPTH}.") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{what} is not UTF-8 text.") from None
    except ValueError as error:
        raise InvalidRequest(f"{what} is not valid JSON: {error}.") from None
    if _too_deep(value):
        raise InvalidRequest(f"{what} is nested deeper than {MAX_DEPTH}.")
    return value


def _too_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
    return False


def parse_pairs(text: bytes, what: str) -> list[tuple[str, str]]:
    """Split ``a=1&b=2`` into decoded pairs, in order.

    :raises InvalidRequest: more than 1,000 pairs.
    """
    if text.count(b"&") >= MAX_PAIRS:
        raise InvalidRequest(f"{what} has more than {MAX_PAIRS} arguments.")
    pairs = []
    for part in text.split(b"&"):
        if part:
            key, _, value = part.replace(b"+", b" ").partition(b"=")
            pairs.append((unquote(key), unquote(value)))
    return pairs


def parse_body(body: bytes, content_type: str) -> dict[str, Any] | list[tuple[str, str]]:
    """Return the arguments in a request body: a dict from JSON, pairs from a form.

    What counts is the content: text that begins with ``{`` is JSON (``curl -d`` calls everything a form, a published
    client sends the invalid media type ``html``), unless the type says JSON, then it must be an object.

    :raises InvalidRequest: malformed, a JSON value other than an object, or a multipart form.
    """
    stripped = body.strip()
    if not stripped:
        return {}
    media = content_type.partition(";")[0].strip().lower()
    if media.startswith("multipart/"):
        raise InvalidRequest(f"Content type {shorten(media)} is not supported; send a form or a JSON object.")
    if media == "application/json" or media.endswith("+json") or stripped[:1] in b"{[":
        value = parse_json(stripped, "The request body")
        if not isinstance(value, dict):
            raise InvalidRequest(f"The request body is {shorten(value)}, not a JSON object of arguments.")
        return value
    return parse_pairs(stripped, "The request body")


def _kinds(annotation: Any) -> set[str]:  # noqa: PLR0911 - a case list
    """Say what a field's type admits: any of ``text``, ``json``, ``list`` and ``any``."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_kinds(part) for part in typing.get_args(annotation)))
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return _kinds(typing.get_args(annotation)[0])
    base = origin or annotation
    if base is Any or base is object:
        return {"any"}
    if isinstance(base, type):
        if issubclass(base, str | bytes):
            return {"text"}
        if issubclass(base, list | tuple | set | frozenset):
            return {"json", "list"}
        if issubclass(base, dict | BaseModel) or base.__module__ == "collections.abc":
            return {"json"}
    return set()


class Binder:
    """Turns the raw arguments of one route into its argument model.

    :param route: the row of the routes table.
    """

    def __init__(self, route: Route) -> None:
        self.model = route.arguments
        self.coded = route.coded
        self.names: dict[str, str] = {}
        self._kinds: dict[str, set[str]] = {}
        self._blank_is_absent: set[str] = set()
        for name, field in self.model.model_fields.items():
            alias = field.alias or name
            self.names[alias] = self.names[name] = alias
            kinds = self._kinds[alias] = _kinds(field.annotation)
            if not field.is_required() and not kinds & {"text", "any"}:
                self._blank_is_absent.add(alias)

    def bind(
        self,
        path: dict[str, str],
        query: Iterable[tuple[str, str]],
        body: dict[str, Any] | list[tuple[str, str]],
    ) -> Arguments:
        """Merge (path wins, then query, then body), decode, validate.

        :raises InvalidRequest: one sentence naming the argument and its value.
        """
        merged: dict[str, Any] = {}
        if isinstance(body, dict):
            for name, value in body.items():
                if isinstance(value, str):
                    self._check_text(name, value)
                merged[self.names.get(name, name)] = value
        else:
            merged.update(self._from_pairs(body))
        merged.update(self._from_pairs(query))
        merged.update(self._from_pairs(path.items()))
        try:
            return self.model.model_validate(merged)
        except ValidationError as error:
            raise InvalidRequest(self._sentence(error)) from None

    def _from_pairs(self, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        repeated: dict[str, list[str]] = {}
        for name, text in pairs:
            alias = self.names.get(name, name)
            value = decode(text, alias) if alias in self.coded else text
            if not self.model.ANY_TEXT:
                self._check_text(alias, value)
            repeated.setdefault(alias, []).append(value)
        for alias, texts in repeated.items():
            kinds = self._kinds.get(alias, set())
            if len(texts) > 1:
                if "list" not in kinds:
                    raise InvalidRequest(f"Argument {shorten(alias)} is given {len(texts)} times; give it once.")
                values[alias] = texts
            elif not (texts[0].strip() == "" and alias in self._blank_is_absent):
                values[alias] = self._value(alias, texts[0], kinds)
        return values

    @staticmethod
    def _value(alias: str, text: str, kinds: set[str]) -> Any:
        """Read text for a field that holds structure as JSON; where text is fine too, only when it looks like it."""
        if "json" in kinds and not kinds & {"text", "any"}:
            return parse_json(text, f"Argument {alias!r}")
        if kinds & {"json", "any"} and text.lstrip()[:1] in ("{", "[", '"'):
            return parse_json(text, f"Argument {alias!r}")
        return text

    @staticmethod
    def _check_text(alias: str, value: str) -> None:
        if "\0" in value:
            raise InvalidRequest(f"Argument {shorten(alias)} contains a NUL character; remove it.")

    def _sentence(self, error: ValidationError) -> str:
        problems = error.errors(include_url=False, include_context=False)
        first = problems[0]
        where = ".".join(str(part) for part in first["loc"]) or "arguments"
        more = f" ({len(problems) - 1} more problems.)" if len(problems) > 1 else ""
        known = ", ".join(sorted(set(self.names.values()))) or "none"
        if first["type"] == "extra_forbidden":
            return f"Argument {shorten(where)} is unknown; known arguments: {known}.{more}"
        if first["type"] == "missing":
            return f"Argument {shorten(where)} is missing.{more}"
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
        reason = reason[:1].lower() + reason[1:]
        if _SECRET_NAMES.search(where):
            return f"Argument {shorten(where)} has an unusable value: {reason}.{more}"
        return f"Argument {shorten(where)} has value {shorten(first['input'])}: {reason}.{more}"
