"""The forms of a data directory (6.2), and which transport can read one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from dm.common.errors import InvalidArgument
from dm.common.paths import display, encode
from dm.station.acquisition import stored
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.spec import check_text_bytes
from dm.station.acquisition.transports.base import Source, Transport
from dm.station.acquisition.transports.choice import Choice


@dataclass(frozen=True)
class Place:
    """A data directory, understood.

    :param in_place: the data lies on storage already: cataloged, not moved.
    """

    source: Source
    in_place: bool = False


def parse(text: str, settings: AcquisitionSettings, experiment: dict[str, Any], root: str) -> Place:
    """Read a data directory text.

    :param text: an absolute path, ``@host:/path``, ``@alias`` or ``@alias:/path`` (see :mod:`.stored`), or a URL such
        as ``ftp://host:2811/path``.
    :param experiment: its record, for ``@alias``.
    :param root: ``data`` or ``analysis``.
    :raises InvalidArgument: none of these.
    """
    raw = check_text_bytes(text)
    if text.startswith("@"):
        return _at(text, settings, experiment, root)
    if "://" in text:
        return Place(_url(text, settings.allowed_directories))
    if not raw.startswith(b"/"):
        raise InvalidArgument(f"Data directory {text!r} is not an absolute path; begin it with '/', or with '@host:/'.")
    return Place(_local(text, raw, settings.allowed_directories))


def _at(text: str, settings: AcquisitionSettings, experiment: dict[str, Any], root: str) -> Place:
    host, path = _host_and_path(text[1:])
    found = stored.locate(host, path, settings.storage_aliases, experiment, root)
    if found is not None:
        return Place(_local(text, *found), in_place=True)
    if not path.startswith("/"):
        known = sorted({*settings.storage_aliases, *stored.names(experiment)} - {""})
        raise InvalidArgument(
            f"Data directory {text!r} is neither '@host:/path' nor data on storage already "
            f"(known: {', '.join(f'@{name}' for name in known) or 'none'})."
        )
    # The host becomes an argument of the mover's command: nothing that could be read as an option.
    if not host or host.startswith("-") or any(not (sign.isalnum() or sign in "._-@[:]") for sign in host):
        raise InvalidArgument(f"Data directory {text!r} names no valid host.")
    return Place(Source(text, _clean(encode(path)), host, "ssh"))


def _host_and_path(text: str) -> tuple[str, str]:
    """Cut ``host:path`` at its first colon, which of an IPv6 address (``user@[::1]:/path``) is the one behind it."""
    address, bracket, rest = text.partition("]:")
    if bracket and "[" in address:
        return address + "]", rest
    host, _colon, path = text.partition(":")
    return host, path


def _url(text: str, allowed: list[Path]) -> Source:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"Data directory {text!r} is not a valid URL: {error}.") from None
    path = unquote_to_bytes(parts.path.encode("utf-8", "surrogateescape"))
    if not path.startswith(b"/") or b"\0" in path:
        raise InvalidArgument(f"Data directory {text!r} has no absolute path.")
    if parts.scheme == "file" and parts.hostname in (None, "localhost"):
        return _local(text, path, allowed)
    if not parts.hostname or parts.hostname.startswith("-"):
        raise InvalidArgument(f"Data directory {text!r} names no host.")
    if parts.password is not None:
        raise InvalidArgument("The data directory URL holds a password; set it up in acquisition.transports instead.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Source(text, _clean(path), f"{parts.username}@{host}" if parts.username else host, parts.scheme, port)


def _local(text: str, raw: bytes, allowed: list[Path]) -> Source:
    root = _clean(raw)
    if allowed:
        real = Path(os.fsdecode(os.path.realpath(root)))
        if not any(real.is_relative_to(directory.resolve()) for directory in allowed):
            places = ", ".join(str(directory) for directory in allowed)
            raise InvalidArgument(f"Data directory {display(root)!r} is not below {places}.")
    return Source(text, root)


def refuse_secrets(place: Place, secrets: Iterable[Path]) -> None:
    """Refuse a local directory in which the service itself keeps what nobody may read through it.

    The service reads with its own rights, which are more than those of the user who asks.

    :param secrets: key, login file, settings file, and the directory of its databases and logs.
    :raises InvalidArgument: one of them lies in the directory, or the directory below one of them.
    """
    if not place.source.is_local:
        return
    real = Path(os.fsdecode(os.path.realpath(place.source.root)))
    for secret in secrets:
        kept = secret.resolve()
        if kept.is_relative_to(real) or real.is_relative_to(kept):
            raise InvalidArgument(
                f"Data directory {display(place.source.root)!r} holds files of the DM installation itself, such as "
                "keys or login files; name a directory with data only."
            )


def _clean(path: bytes) -> bytes:
    return path.rstrip(b"/") or b"/"


def choose(source: Source, transports: list[Transport]) -> Choice:
    """Return the transport of a source, which picks for every batch the one that reaches its staging directory.

    :raises InvalidArgument: none can read the source.
    """
    choice = Choice(transports)
    choice.reader(source)
    return choice
