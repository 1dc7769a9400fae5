"""Replies: JSON, errors and byte streams as status, headers and body."""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from dm.common.errors import DmException, InvalidRequest
from dm.common.records import DmObject
from dm.common.web.routes import Stream

JSON_TYPE = "application/json"
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*\Z", re.IGNORECASE)


@dataclass
class Reply:
    """What goes back to the client.

    :param body: bytes, or an iterable of chunks whose sizes add up to ``length``.
    :param length: size of the body in bytes; -1 where only its end will tell.
    """

    status: int
    headers: dict[str, str]
    body: bytes | Iterable[bytes]
    length: int = field(default=-1)

    def __post_init__(self) -> None:
        if isinstance(self.body, bytes):
            self.length = len(self.body)


def json_reply(value: Any, status: int = 200, code: int = 0) -> Reply:
    """Return a value as a JSON reply.

    :param value: a record, model, dict, list or scalar; ``None`` becomes an empty object.
    :param code: for the header ``Dm-Status-Code``.
    """
    headers = {"Content-Type": JSON_TYPE, "Cache-Control": "no-store", "Dm-Status-Code": str(code)}
    return Reply(status, headers, to_json({} if value is None else value))


def error_reply(error: DmException, request_id: str, status: int | None = None) -> Reply:
    """Return an error as JSON with its HTTP status.

    :param status: another status than that of the error's class.
    """
    reply = json_reply(error.to_wire(request_id), status or error.http_status, error.error_code)
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        reply.headers["Retry-After"] = str(retry_after)
    return reply


def to_json(value: Any) -> bytes:
    """Return JSON bytes, ASCII only (other characters and undecodable path bytes as escapes).

    Numbers JSON does not know (``NaN``, infinities) become ``null``.
    """
    try:
        return json.dumps(value, default=_plain, allow_nan=False, separators=(",", ":")).encode("ascii")
    except ValueError:
        return json.dumps(_finite(value), default=_plain, separators=(",", ":")).encode("ascii")


def _plain(value: Any) -> Any:  # noqa: PLR0911 - a case list
    if isinstance(value, DmObject):
        return value.data
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, bytes | os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_plain(value))


def stream_reply(stream: Stream, headers: Mapping[str, str], request_id: str) -> Reply:
    """Return a stream, or the part or state of it that the request's headers ask for.

    ``Range`` (one range), ``If-Range``, ``If-Match``, ``If-None-Match`` and ``If-Modified-Since`` count.

    :param headers: lower-case name -> value of the request.
    """
    if stream.length is None:
        plain = {
            "Cache-Control": "no-store",
            "Dm-Status-Code": "0",
            "Content-Disposition": disposition(stream.filename),
            "Content-Type": stream.content_type,
        }
        return Reply(200, plain, stream.read(0, 0))
    etag = stream.etag if stream.etag.startswith('"') else f'"{stream.etag}"'
    common = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Dm-Status-Code": "0",
        "Content-Disposition": disposition(stream.filename),
    }
    if stream.modified is not None:
        common["Last-Modified"] = formatdate(stream.modified, usegmt=True)
    if "if-match" in headers and not _matches(headers["if-match"], etag, weak=False):
        return error_reply(InvalidRequest(f"The content is no longer {headers['if-match'][:80]}."), request_id, 412)
    if _not_modified(stream, headers, etag):
        return Reply(304, common, b"")
    first, length, status = 0, stream.length, 200
    span = _range(headers.get("range"), stream.length) if _range_applies(stream, headers, etag) else None
    if span is not None:
        if span[1] <= 0:
            error = InvalidRequest(f"Range {headers['range'][:80]!r} is outside the {stream.length} bytes there are.")
            reply = error_reply(error, request_id, 416)
            reply.headers["Content-Range"] = f"bytes */{stream.length}"
            return reply
        first, length = span
        status = 206
        common["Content-Range"] = f"bytes {first}-{first + length - 1}/{stream.length}"
    common["Content-Type"] = stream.content_type
    return Reply(status, common, exactly(stream, first, length), length)


def exactly(stream: Stream, first: int, length: int) -> Iterator[bytes]:
    """Yield the chunks of a part, never more bytes than promised.

    :raises EOFError: the stream ended early; the connection must break so that the client notices.
    """
    left = length
    chunks = iter(stream.read(first, length)) if length else iter(())
    try:
        for chunk in chunks:
            if left <= 0:
                break
            yield chunk if len(chunk) <= left else chunk[:left]
            left -= len(chunk)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    if left > 0:
        raise EOFError(f"{stream.filename!a} ended {left} bytes before its length of {stream.length}")


def disposition(filename: str) -> str:
    """Return a Content-Disposition for any file name (RFC 6266): an ASCII fallback and the exact bytes encoded."""
    raw = os.fsencode(filename)
    fallback = re.sub(r"[^ !#-\[\]-~]", "_", raw.decode("ascii", "replace")) or "_"
    if fallback.encode("ascii") == raw and "%" not in fallback:
        return f'attachment; filename="{fallback}"'
    return f"attachment; filename=\"{fallback}\"; filename*=UTF-8''{quote(raw, safe='')}"


def _matches(header: str, etag: str, weak: bool) -> bool:
    candidates = [part.strip() for part in header.split(",")]
    if weak:
        candidates = [part.removeprefix("W/") for part in candidates]
    return "*" in candidates or etag in candidates


def _not_modified(stream: Stream, headers: Mapping[str, str], etag: str) -> bool:
    if "if-none-match" in headers:
        return _matches(headers["if-none-match"], etag, weak=True)
    since = _date(headers.get("if-modified-since"))
    return since is not None and stream.modified is not None and int(stream.modified) <= since


def _range_applies(stream: Stream, headers: Mapping[str, str], etag: str) -> bool:
    condition = headers.get("if-range")
    if condition is None:
        return "range" in headers
    if condition.startswith('"'):
        return condition == etag
    date = _date(condition)
    return date is not None and stream.modified is not None and int(stream.modified) == date


def _date(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, OverflowError, TypeError):
        return None


def _range(header: str | None, total: int) -> tuple[int, int] | None:
    """Return (first, length) of a single byte range; ``None`` to ignore the header; length 0 when unsatisfiable."""
    match = _RANGE.match(header or "")
    if match is None or not (match[1] or match[2]) or max(len(match[1]), len(match[2])) > 19:
        return None
    if not match[1]:
        length = min(int(match[2]), total)
        return total - length, length
    first = int(match[1])
    last = min(int(match[2]), total - 1) if match[2] else total - 1
    if match[2] and int(match[2]) < first:
        return None
    return first, max(0, last - first + 1)
