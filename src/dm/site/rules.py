"""What names, paths and dates may be: checks without any state."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Any

from dm.common import timestamps
from dm.common.errors import InvalidArgument
from dm.common.tokens import is_token

MAX_NAME_BYTES = 128
MAX_TEXT = 10_000
MAX_METADATA_BYTES = 1 << 20
MAX_METADATA_DEPTH = 50
EXPERIMENT_ROLES = ("User", "PI")
STATION_ROLES = ("manager", "service")
SYSTEM_ROLES = ("administrator",)

_PUNCTUATION = "_-.+=~"
_USERNAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_BADGE = re.compile(r"d0*([1-9][0-9]{0,8})")


def object_name(value: str, what: str = "Experiment name") -> str:
    """Check the name of an experiment, station, storage or type.

    Names become directory names and shell words. Letters (of any script, in composed form), digits and ``_-.+=~`` are
    fine, at most 128 bytes; not in front: dot, dash, tilde.

    :raises InvalidArgument: naming the first thing wrong.
    """
    shown = ascii(value if len(value) <= 80 else value[:77] + "...")
    if not value:
        raise InvalidArgument(f"{what} is empty.")
    for character in value:
        if not (character.isalnum() or character in _PUNCTUATION or unicodedata.category(character) in ("Mn", "Mc")):
            raise InvalidArgument(
                f"{what} {shown} contains {character!a}; use letters, digits and {' '.join(_PUNCTUATION)} only."
            )
    if value[0] in ".-~" or unicodedata.category(value[0]).startswith("M"):
        raise InvalidArgument(f"{what} {shown} starts with {value[0]!a}; start with a letter or digit.")
    if unicodedata.normalize("NFC", value) != value:
        raise InvalidArgument(f"{what} {shown} has characters in decomposed form; type them anew (NFC).")
    size = len(value.encode("utf-8"))
    if size > MAX_NAME_BYTES:
        raise InvalidArgument(f"{what} {shown} has {size} bytes; {MAX_NAME_BYTES} is the limit.")
    return value


def root_path(value: str | None) -> str:
    """Check an experiment's root path, the directories between station and experiment, e.g. ``2026-03``.

    :returns: the canonical text, empty for none. :raises InvalidArgument: absolute, ``..``, a bad name, too deep.
    """
    if not value:
        return ""
    if value.startswith("/"):
        raise InvalidArgument(f"Root path {value!a} is absolute; give it relative to the station's directory.")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"Root path {value!a} leaves the station's directory by '..'.")
    if len(parts) > 8:
        raise InvalidArgument(f"Root path {value!a} has {len(parts)} levels; 8 is the limit.")
    for part in parts:
        object_name(part, "Root path component")
    return "/".join(parts)


def username(value: str) -> str:
    """Check a login name. :raises InvalidArgument: not 1-64 letters, digits, ``_.-``, starting with a letter."""
    if not _USERNAME.fullmatch(value):
        raise InvalidArgument(
            f"User name {value[:80]!a} is not acceptable; use up to 64 letters, digits, '_', '.', '-', letter first."
        )
    return value


def badge_of(name: str) -> int | None:
    """Return the badge number in a ``d<badge>`` user name, or ``None``."""
    match = _BADGE.fullmatch(name)
    return int(match.group(1)) if match else None


def password(value: str) -> str:
    """Check a new password: 8 to 1,000 characters, none of them ``|`` or control (a login file must hold it).

    :raises InvalidArgument: otherwise; the password itself is never named.
    """
    if not 8 <= len(value) <= 1000:
        raise InvalidArgument(f"The password has {len(value)} characters; take 8 to 1000.")
    if "|" in value or any(unicodedata.category(character).startswith("C") for character in value):
        raise InvalidArgument("The password contains '|' or a control character, which login files cannot hold.")
    if is_token(value):
        raise InvalidArgument("The password looks like an API token, and would be taken for one; choose another.")
    return value


def plain_text(value: str | None, what: str) -> str:
    """Check free text (descriptions, people's names): storable and at most 10,000 characters.

    :raises InvalidArgument: a NUL, undecodable bytes, or too long.
    """
    checked = value or ""
    if len(checked) > MAX_TEXT:
        raise InvalidArgument(f"{what} has {len(checked)} characters; {MAX_TEXT} is the limit.")
    if "\0" in checked or any("\ud800" <= character <= "\udfff" for character in checked):
        raise InvalidArgument(f"{what} {checked[:80]!a} contains a NUL or bytes that are no text.")
    return checked


def date(value: str | float | datetime | None, what: str) -> datetime | None:
    """Read a date (``05-Mar-26`` or ISO); ``None`` and empty text mean none.

    :raises InvalidArgument: not a date, or outside 1970 to 2261.
    """
    if value is None or value == "":
        return None
    moment = timestamps.parse(value)
    if not 1970 <= moment.year <= 2261:
        raise InvalidArgument(f"{what} {value!r} is outside the years 1970 to 2261.")
    return moment


def role(value: str, known: tuple[str, ...]) -> str:
    """Return the role in its published spelling, whatever letter case it came in.

    :raises InvalidArgument: unknown.
    """
    for candidate in known:
        if candidate.lower() == value.lower():
            return candidate
    raise InvalidArgument(f"Role {value[:80]!a} is unknown; choose one of {', '.join(known)}.")


def metadata_value(key: str, value: Any) -> None:
    """Check a metadata value: JSON that PostgreSQL can store.

    :raises InvalidArgument: NUL or undecodable text in it, not a number JSON knows, or nested too deep.
    """
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_METADATA_DEPTH:
            raise InvalidArgument(f"Metadata {key!a} is nested more than {MAX_METADATA_DEPTH} levels deep.")
        if isinstance(item, str):
            plain_metadata_text(key, item)
        elif isinstance(item, dict):
            for name, inner in item.items():
                plain_metadata_text(key, name)
                pending.append((inner, depth + 1))
        elif isinstance(item, list):
            pending.extend((inner, depth + 1) for inner in item)
        elif isinstance(item, float) and item - item != 0:
            raise InvalidArgument(f"Metadata {key!a} contains {item}, which is no JSON number.")


def plain_metadata_text(key: str, value: str) -> None:
    """Check one text within metadata. :raises InvalidArgument: a NUL or undecodable bytes."""
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidArgument(f"Metadata {key!a} contains a NUL or bytes that are no text.")
