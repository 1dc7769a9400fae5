"""Output regexes: RE2, so that no pattern and no output can take more than linear time.

RE2's time is bounded by pattern size times text size; the product is bounded here as well, so that a search stays
below a second or two even for patterns built to be slow.
"""

from __future__ import annotations

import functools
from typing import Any

import re2

from dm.common.errors import InvalidArgument

MAX_PATTERN = 10_000
MAX_PROGRAM = 1_000
WORK = 200_000_000  # pattern instructions x bytes of text per stage, about 1.5 s in the slowest case
RESERVED_GROUPS = frozenset({"id", "owner", "stage", "workflow", "errorCode"})  # the last marks errors on the wire


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str | bytes) -> Any:
    options = re2.Options()
    options.log_errors = False
    if isinstance(pattern, bytes):
        options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(pattern, options)


def check(pattern: Any) -> None:
    """Check one regex of a stage.

    :raises InvalidArgument: naming the regex.
    """
    where = f"output regex {str(pattern)[:200]!r}"
    if not isinstance(pattern, str):
        raise InvalidArgument(f"{where} is not a text.")
    if len(pattern) > MAX_PATTERN or "\0" in pattern:
        raise InvalidArgument(f"{where} is longer than {MAX_PATTERN} characters or holds a NUL.")
    try:
        compiled = _compiled(pattern)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else error
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise InvalidArgument(
            f"{where} does not compile: {text} (look-around and back-references are not supported)."
        ) from None
    if compiled.programsize > MAX_PROGRAM:
        raise InvalidArgument(f"{where} is too complex; use smaller repeat counts.")
    reserved = RESERVED_GROUPS & set(compiled.groupindex)
    if reserved:
        raise InvalidArgument(f"{where} captures the reserved name {min(reserved)!r}; choose another group name.")


def groups(pattern: str) -> list[str]:
    """Return the named groups of a checked regex, in their order."""
    return sorted(_compiled(pattern).groupindex, key=_compiled(pattern).groupindex.get)


def capture(patterns: list[str], output: bytes) -> dict[str, str]:
    """Search each regex anywhere in the (multi-line) output.

    :param patterns: checked regexes. :param output: what the stage printed; any bytes.
    :returns: group name -> captured text (bytes that are not UTF-8 as surrogate escapes, NUL left out); groups that
        took no part in a match are absent. A final newline does not keep ``$`` from matching.
    """
    programs = [_compiled(pattern) for pattern in patterns]
    if not programs:
        return {}
    limit = max(1, WORK // sum(program.programsize for program in programs))
    subject: str | bytes = _whole(output[:limit])
    try:
        subject = subject.decode()  # type: ignore[union-attr]
    except UnicodeDecodeError:
        programs = [_compiled(pattern.encode()) for pattern in patterns]
    newline: Any = "\n" if isinstance(subject, str) else b"\n"
    found: dict[str, str] = {}
    for program in programs:
        match = program.search(subject)
        if match is None and subject.endswith(newline):
            match = program.search(subject[:-1])
        if match is not None:
            found.update({_text(key): _text(value) for key, value in match.groupdict().items() if value is not None})
    return found


def _whole(output: bytes) -> bytes:
    """Drop a character that a size limit cut in two."""
    try:
        output.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and len(output) - error.start < 4:
            return output[: error.start]
    return output


def _text(value: str | bytes) -> str:
    text = value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
    return text.replace("\0", "")
