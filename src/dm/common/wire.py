"""What goes over the wire and comes back: path segments, query texts, JSON, session ids, errors in replies."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from dm.common.errors import CommunicationError, ConfigurationError, DmException, InvalidArgument, from_wire
from dm.common.records import DmObject

if TYPE_CHECKING:
    import httpx

SESSION_COOKIE = "SESSIONID"
_COOKIE = re.compile(rf'(?:^|[;,])\s*{SESSION_COOKIE}="?([^\s;,"]*)')
_DRESSED = re.compile(rb"""\s*b(['"]).*\1\s*\Z""", re.DOTALL)
_BARE_ID = re.compile(r"[A-Za-z0-9._~+/=-]+")
_HTTP_CODES = {400: 7, 401: 6, 403: 5, 404: 14, 409: 16, 413: 19, 414: 19, 429: 19, 431: 19, 503: 9, 504: 22}


def segment(value: str | bytes | int) -> str:
    """Return one path segment, percent-encoded so that any bytes survive (also slashes and lone dots).

    :raises InvalidArgument: empty; an empty segment would name another resource.
    """
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    if not raw:
        raise InvalidArgument("A name or id is empty; give one.")
    quoted = quote(raw, safe="")
    return quoted.replace(".", "%2E") if raw in (b".", b"..") else quoted


def literal(value: str | bytes) -> str | bytes:
    """Return a text as it is to be sent where double base64 is understood, so that it is read as itself.

    A file may be called ``b'YQ=='``; only such texts are dressed, all others stay readable.
    """
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    if not _DRESSED.match(raw):
        return value
    return repr(base64.b64encode(base64.b64encode(raw)))


def query_text(query: Mapping[str, Any]) -> str:
    """Return a query string: ``None`` left out, true/false, lists and dicts as JSON, any bytes percent-encoded."""
    given = {name: value for name, value in query.items() if value is not None}
    return "&".join(f"{quote(name, safe='')}={quote(_query_bytes(value), safe='')}" for name, value in given.items())


def _query_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, dict | list | tuple | DmObject):
        return json_text(value).encode()
    return str(value).encode("utf-8", "surrogateescape")


def json_text(value: Any) -> str:
    """Return a value as JSON text; records and paths are accepted.

    :raises InvalidArgument: something that JSON cannot carry (NaN, an object of another class).
    """
    try:
        return json.dumps(value, default=_json_default, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"The value cannot be sent as JSON: {error}.") from None


def _json_default(value: Any) -> Any:
    if isinstance(value, DmObject):
        return value.data
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} ({value!r:.60}) is no JSON value")


def base_url(url: str) -> str:
    """Return the URL that ends in ``/dm``. :raises ConfigurationError: not an http(s) URL with a host."""
    text = str(url).strip().rstrip("/")
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(f"Service address {str(url)!r} is not usable; write it like https://host:22237.")
    return text if text.endswith("/dm") else f"{text}/dm"


def decoded(response: httpx.Response) -> Any:
    """Return the JSON of a response, or raise what it reports.

    An error is an ``errorCode`` in a JSON object, whatever the HTTP status; else a non-zero ``Dm-Status-Code``; else
    an HTTP status from 400 on, unless ``Dm-Status-Code: 0`` says that the reply is good all the same (a critical
    ``/status``).
    """
    where = str(response.url).partition("?")[0]
    try:
        body = response.json() if response.content else None
    except ValueError:
        body = response.text
        readable = False
    else:
        readable = True
    if (error := fault(response, body)) is not None:
        raise error
    if not readable:
        kind = response.headers.get("content-type", "an unnamed type")
        raise CommunicationError(f"{where} answered with {kind} instead of JSON; is it a DM service?")
    return body


def fault(response: httpx.Response, body: Any) -> DmException | None:
    """Return the error a response reports, or ``None``."""
    if isinstance(body, dict) and body.get("errorCode"):
        return from_wire(body)
    where = str(response.url).partition("?")[0]
    said = f"{where} answered HTTP {response.status_code} {response.reason_phrase}"
    given = response.headers.get("dm-status-code", "").strip()
    if given.isdecimal() and int(given):
        text = body if isinstance(body, str) and 0 < len(body) <= 500 and "<" not in body else f"{said}."
        return from_wire({"errorCode": int(given), "errorMessage": text.strip()})
    if response.status_code < 300 or (given == "0" and response.status_code >= 400):
        return None
    code = _HTTP_CODES.get(response.status_code)
    return from_wire({"errorCode": code, "errorMessage": f"{said}."}) if code else CommunicationError(f"{said}.")


def session_id(text: str, bare: bool = True) -> str | None:
    """Return the session id of ``SESSIONID=...`` text (a whole Set-Cookie header too), or of the bare id."""
    if match := _COOKIE.search(text):
        return match[1] or None
    return text.strip() if bare and _BARE_ID.fullmatch(text.strip()) else None


def lower_first(reason: str) -> str:
    """Lower the first letter, so that the reason reads on in a sentence (and scripts find ``connection refused``)."""
    return reason[:1].lower() + reason[1:]
