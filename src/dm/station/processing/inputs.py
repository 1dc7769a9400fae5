"""The input specification of a job: which files its stages run on.

Exactly one of ``filePath``, ``filePathList``, ``filePathPattern`` (with or without ``dataDir``) or ``dataDir`` is
used, in this order. A named file is not looked for: names that stand for nothing (``/dev/null``) are in use.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dm.common import paths
from dm.common.errors import DmException, InvalidArgument

KEYS = ("filePath", "filePathList", "filePathPattern", "dataDir")
INVALID = "Invalid input specification"
MAX_ENTRIES = 1_000_000
MAX_TEXT = 1 << 20


def files(
    arguments: Mapping[str, Any], limit: int, data_directory: str | None = None, allow_listing: bool = True
) -> list[str]:
    """Return the input files of a job, each as ``$filePath`` will name it.

    :param arguments: the job's arguments.
    :param limit: most files of a job.
    :param data_directory: data directory of the job's experiment; relative paths lie below it and may not leave it.
    :param allow_listing: whether directories outside an experiment may be listed (not for a service that is root,
        which could see what the user cannot).
    :raises InvalidArgument: the published *invalid input specification*, with the reason.
    """
    try:
        found = _files(arguments, limit, data_directory, allow_listing)
    except InvalidArgument as error:
        raise InvalidArgument(f"{INVALID}: {error.message}") from None
    if sum(len(path) for path in found) > MAX_TEXT:
        raise InvalidArgument(f"{INVALID}: the paths of {len(found)} files are longer than {MAX_TEXT} in all.")
    if not found:
        raise InvalidArgument(f"{INVALID}: no file matches.")
    return found


def _files(arguments: Mapping[str, Any], limit: int, root: str | None, allow_listing: bool) -> list[str]:
    if (path := arguments.get("filePath")) not in (None, ""):
        return [_named(path, root)]
    if (given := arguments.get("filePathList")) not in (None, "", []):
        items = [item.strip() for item in given.split(",") if item.strip()] if isinstance(given, str) else given
        if not isinstance(items, list):
            raise InvalidArgument(f"filePathList {str(given)[:80]!r} is not a list of paths.")
        if len(items) > limit:
            raise InvalidArgument(f"filePathList holds more than {limit} files.")
        return [_named(item, root) for item in items]
    pattern, directory = arguments.get("filePathPattern"), arguments.get("dataDir")
    if pattern in (None, "") and directory in (None, ""):
        raise InvalidArgument(f"give one of {', '.join(KEYS)}.")
    return _listed(pattern or "*", directory, limit, root, allow_listing)


def _named(path: Any, root: str | None) -> str:
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidArgument(f"{str(path)[:80]!r} is not a file path.")
    if root is not None and not path.startswith("/"):
        _relative(path)
    return path


def _relative(path: str) -> str:
    try:
        return paths.decode(paths.relative(path))
    except DmException as error:
        raise InvalidArgument(error.message) from None


def _listed(pattern: Any, directory: Any, limit: int, root: str | None, allow_listing: bool) -> list[str]:
    for value in (pattern, directory):
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise InvalidArgument(f"{str(value)[:80]!r} is not a path.")
    base, wildcard = os.path.split(pattern)
    place = Path(directory or "") / base  # an absolute pattern stands for itself
    if not place.is_absolute():
        if root is None:
            raise InvalidArgument(f"directory {str(place)!r} is relative; name its experiment or give it in full.")
        below = "" if str(place) == "." else _relative(str(place))
        found = _scan(Path(root) / below, wildcard, Path(root).resolve())
        names = [f"{below}/{name}" if below else name for name in _some(found, limit)]
    else:
        if not allow_listing:
            raise InvalidArgument(
                f"directory {str(place)!r} lies outside an experiment; this service does not list it."
            )
        names = [str(place / name) for name in _some(_scan(place, wildcard, None), limit)]
    return sorted(names)


def _some(found: Iterator[str], limit: int) -> list[str]:
    names = []
    for name in found:
        names.append(name)
        if len(names) > limit:
            raise InvalidArgument(f"more than {limit} files match.")
    return names


def _scan(directory: Path, wildcard: str, inside: Path | None) -> Iterator[str]:
    if any(mark in str(directory) for mark in "*?["):
        raise InvalidArgument(f"wildcards are for the file name only, not for {str(directory)!r}.")
    if inside is not None and not directory.resolve().is_relative_to(inside):
        raise InvalidArgument(f"directory {str(directory)!r} leads out of the experiment.")
    try:
        with os.scandir(directory) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_ENTRIES:
                    raise InvalidArgument(f"directory {str(directory)!r} has more than {MAX_ENTRIES} entries.")
                hidden = entry.name.startswith(".") and not wildcard.startswith(".")
                if not hidden and fnmatch.fnmatchcase(entry.name, wildcard) and entry.is_file(follow_symlinks=False):
                    yield entry.name
    except OSError as error:
        raise InvalidArgument(f"directory {str(directory)!r} cannot be read: {error.strerror}.") from None
