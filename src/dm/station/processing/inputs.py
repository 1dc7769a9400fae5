"""The input specification of a job: which files its stages run on.

One of ``filePath``, ``filePathList``, ``filePathPattern`` (with or without ``dataDir``), ``dataDir``, ``fileQuery`` or
``datasetName`` is used, the first that is given in this order. A named file is not looked for: names that stand for
nothing (``/dev/null``) are in use. A stage may have files of its own (``dataDir`` of the stage).
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dm.common import paths
from dm.common.errors import DmException, InvalidArgument, InvalidObjectState, InvalidRequest, ObjectNotFound
from dm.station.processing import substitution, templates

KEYS = ("filePath", "filePathList", "filePathPattern", "dataDir", "fileQuery", "datasetName")
DATASET_KEYS = ("datasetName", "dataset")
INVALID = "Invalid input file specification."
MAX_ENTRIES = 1_000_000
MAX_TEXT = 1 << 20
MAX_QUERY = 64 << 10

Catalog = Callable[[str, str | None, Mapping[str, Any] | None, int], list[str]]
"""Called with experiment, dataset or query, and a limit; returns paths below the experiment's data directory."""


def files(
    arguments: Mapping[str, Any],
    limit: int,
    data_directory: str | None = None,
    allow_listing: bool = True,
    catalog: Catalog | None = None,
) -> list[str]:
    """Return the input files of a job, each as ``$filePath`` will name it.

    :param arguments: the job's arguments.
    :param limit: most files of a job.
    :param data_directory: data directory of the job's experiment; relative paths lie below it and may not leave it.
    :param allow_listing: whether directories outside an experiment may be listed (not for a service that is root,
        which could see what the user cannot).
    :param catalog: finds files in the metadata catalog; asked only about an experiment the caller may see. See
        :meth:`dm.station.processing.catalogfiles.CatalogFiles.find`.
    :raises InvalidArgument: the published *Invalid input file specification.*, then the reason.
    :raises ServiceUnavailable: the catalog does not answer.
    """
    try:
        return _bounded(_files(arguments, limit, data_directory, allow_listing, catalog))
    except InvalidArgument as error:
        raise InvalidArgument(f"{INVALID} {error.message}") from None


def stage_files(
    stage: Mapping[str, Any], variables: Mapping[str, Any], limit: int, data_directory: str | None = None
) -> list[str]:
    """Return the files of a stage that names directories of its own in ``dataDir``.

    :param stage: a stage with ``dataDir``: a directory or a list of them, with ``$name`` places in them.
    :param variables: what these stand for. :param limit: :param data_directory: as for :func:`files`.
    :returns: the files of the directories in the order of the list, sorted within each, hidden ones left out.
    :raises InvalidArgument: a directory that cannot be listed, or no file at all; one sentence.
    """
    given = stage["dataDir"]
    known = {name: str(value) for name, value in variables.items()}
    found: list[str] = []
    for directory in [given] if isinstance(given, str) else given:
        if unset := sorted(templates.names(directory) - known.keys()):
            raise InvalidArgument(f"Data directory {directory!r:.200} names {unset[0]!r}, which has no value.")
        place = substitution.shown(directory, known, paths.MAX_PATH)
        found += _listed("*", place, limit, data_directory, os.geteuid() != 0)
        if len(found) > limit:
            raise InvalidArgument(f"More than {limit} files lie in the data directories {given!r:.200}.")
    if not found:
        raise InvalidArgument(f"No file lies in the data directories {given!r:.200}.")
    return _bounded(list(dict.fromkeys(found)))


def _bounded(found: list[str]) -> list[str]:
    if sum(len(path) for path in found) > MAX_TEXT:
        raise InvalidArgument(f"The paths of {len(found)} files are longer than {MAX_TEXT} in all.")
    if not found:
        raise InvalidArgument("No file matches.")
    return found


def _files(
    arguments: Mapping[str, Any], limit: int, root: str | None, allow_listing: bool, catalog: Catalog | None
) -> list[str]:
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
    if pattern not in (None, "") or directory not in (None, ""):
        return _listed(pattern or "*", directory, limit, root, allow_listing)
    return _cataloged(arguments, limit, catalog)


def _cataloged(arguments: Mapping[str, Any], limit: int, catalog: Catalog | None) -> list[str]:
    query = arguments.get("fileQuery")
    key = next((key for key in DATASET_KEYS if arguments.get(key) not in (None, "")), None)
    if query in (None, "") and key is None:
        raise InvalidArgument(f"Give one of {', '.join(KEYS)}.")
    experiment = arguments.get("experimentName")
    if not isinstance(experiment, str) or not experiment:
        raise InvalidArgument(f"{key or 'fileQuery'} needs an experimentName beside it.")
    if catalog is None:
        raise InvalidArgument("This service has no catalog to ask for files; name them.")
    dataset = None
    if query in (None, ""):
        query, dataset = None, arguments[key or ""]
        if not isinstance(dataset, str):
            raise InvalidArgument(f"{key} {str(dataset)[:80]!r} is not the name of a dataset.")
    else:
        query = _query(query)
    try:
        found = catalog(experiment, dataset, query, limit)
    except (InvalidRequest, InvalidObjectState, ObjectNotFound) as error:
        raise InvalidArgument(error.message) from None
    if len(found) > limit:
        raise InvalidArgument(f"More than {limit} files match.")
    return [_relative(path) for path in found]


def _query(query: Any) -> Mapping[str, Any]:
    """Return a file query, which commands send as JSON text."""
    if isinstance(query, str):
        if len(query) > MAX_QUERY:
            raise InvalidArgument(f"fileQuery is longer than {MAX_QUERY} characters.")
        try:
            query = json.loads(query)
        except (ValueError, RecursionError):
            raise InvalidArgument(
                f'fileQuery {query[:80]!r} is not JSON; write it like {{"fileSize": {{"$gt": 1000}}}}.'
            ) from None
    if not isinstance(query, Mapping):
        raise InvalidArgument(f"fileQuery {str(query)[:80]!r} is not an object of keys and conditions.")
    return query


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
            raise InvalidArgument(f"Directory {str(place)!r} is relative; name its experiment or give it in full.")
        below = "" if str(place) == "." else _relative(str(place))
        found = _scan(Path(root) / below, wildcard, Path(root).resolve())
        names = [f"{below}/{name}" if below else name for name in _some(found, limit)]
    else:
        inside = Path(root).resolve() if root is not None and place.is_relative_to(root) else None
        if inside is None and not allow_listing:
            raise InvalidArgument(
                f"Directory {str(place)!r} lies outside an experiment; this service does not list it."
            )
        names = [str(place / name) for name in _some(_scan(place, wildcard, inside), limit)]
    return sorted(names)


def _some(found: Iterator[str], limit: int) -> list[str]:
    names = []
    for name in found:
        names.append(name)
        if len(names) > limit:
            raise InvalidArgument(f"More than {limit} files match.")
    return names


def _scan(directory: Path, wildcard: str, inside: Path | None) -> Iterator[str]:
    if any(mark in str(directory) for mark in "*?["):
        raise InvalidArgument(f"Wildcards are for the file name only, not for {str(directory)!r}.")
    if inside is not None and not directory.resolve().is_relative_to(inside):
        raise InvalidArgument(f"Directory {str(directory)!r} leads out of the experiment.")
    try:
        with os.scandir(directory) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_ENTRIES:
                    raise InvalidArgument(f"Directory {str(directory)!r} has more than {MAX_ENTRIES} entries.")
                hidden = entry.name.startswith(".") and not wildcard.startswith(".")
                if not hidden and fnmatch.fnmatchcase(entry.name, wildcard) and entry.is_file(follow_symlinks=False):
                    yield entry.name
    except OSError as error:
        raise InvalidArgument(f"Directory {str(directory)!r} cannot be read: {error.strerror}.") from None
