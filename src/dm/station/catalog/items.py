"""One incoming file record, checked, and how it joins what the catalog already has.

Records arrive at least once and in any order. They are ordered by version, then by modification time: a newer one
replaces what belongs to the file's contents, an equal one fills in, an older one changes nothing - but where a copy is
(its replicas) is always learned, each replica tagged with the version it holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bson import Binary

from dm.common import paths, timestamps
from dm.common.errors import InvalidArgument, ServiceLimit
from dm.station.catalog import codec
from dm.station.catalog.store import Document, ExperimentRef, list_key

ROOTS = ("data", "analysis")
FOLDER = "m"
"""Sub-document of free metadata, apart from the system's own fields."""

SYSTEM_KEYS = (
    "id",
    "fileName",
    "experimentFilePath",
    "experimentName",
    "experimentId",
    "root",
    "fileSize",
    "fileModificationTime",
    "fileModificationTimestamp",
    "md5Sum",
    "compression",
    "localFilePath",
    "digests",
    "version",
    "replicas",
    "catalogTime",
    "updateTime",
)
DEFAULT_KEYS = (
    "id",
    "fileName",
    "experimentFilePath",
    "experimentName",
    "fileSize",
    "fileModificationTime",
    "fileModificationTimestamp",
    "md5Sum",
    "compression",
)
SHADOWED = "userMetadata"
"""Record key that holds free metadata whose names the system uses itself."""

MAX_REPLICAS = 100
MAX_BYTES = 1 << 20
"""Largest document of one file: there may be millions of them."""

_CONTENT = ("fileSize", "fileModificationTime", "md5Sum", "digests", "compression", "localPathBytes")
_NOT_METADATA = {*SYSTEM_KEYS, SHADOWED, "_id", "path", "metadata"}
_HIDING = {*SYSTEM_KEYS, SHADOWED}
_INT64 = 1 << 63
_HEX = re.compile(r"[0-9a-f]+")
_MD5_LENGTH = 32


@dataclass(frozen=True)
class FileItem:
    """A checked incoming record.

    :param path: canonical path below the root directory.
    :param content: stored names of what the file's contents determine (size, time, digests ...) and where its local
        copy is; only what was given.
    :param version: version the storage service counted, or ``None``.
    :param replicas: stored form.
    :param metadata: stored form.
    """

    experiment: ExperimentRef
    root: str
    path: bytes
    content: Mapping[str, Any]
    version: int | None = None
    replicas: tuple[Document, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The document's ``_id``."""
        return file_id(self.experiment.id, self.root, self.path)

    @property
    def order(self) -> tuple[int | None, float | None]:
        """Version and modification time."""
        return self.version, self.content.get("fileModificationTime")


def file_id(experiment_id: int, root: str, path: bytes) -> str:
    """Return the key of a file: ``<experiment id>:<root>:<sha256 of the path>``."""
    return f"{experiment_id}:{root}:{hashlib.sha256(path).hexdigest()}"


def parse(record: Mapping[str, Any], experiment: ExperimentRef) -> FileItem:
    """Check a record as callers give it.

    :param record: ``experimentFilePath`` (or ``path``) below ``root`` (``data`` unless said), any of ``fileSize``,
        ``fileModificationTime`` (epoch seconds), ``md5Sum``, ``digests``, ``compression``, ``localFilePath``,
        ``version`` and ``replicas``; ``metadata`` (an object) and every other key is free metadata.
    :raises InvalidArgument: naming the key and value. :raises ServiceLimit: too large or too deep.
    """
    root, path = location(record)
    content = {name: value for name, value in _content(record).items() if value is not None}
    version = _whole(record, "version", 1)
    return FileItem(
        experiment, root, path, content, version, _replicas(record.get("replicas"), version), _metadata(record)
    )


def location(record: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return root and canonical path a record names.

    :raises InvalidArgument: no path, or one that leaves its root.
    """
    path = record.get("experimentFilePath", record.get("path"))
    if not isinstance(path, str):
        raise InvalidArgument(f"File record {_short(dict(record))} has no experimentFilePath; name the file.")
    return checked_root(record.get("root") or ROOTS[0]), paths.relative(path)


def checked_root(root: Any) -> str:
    """Return the root if it is one.

    :raises InvalidArgument: it is not.
    """
    if root not in ROOTS:
        raise InvalidArgument(f"Root {_short(root)} is unknown; use {' or '.join(ROOTS)}.")
    return str(root)


def _content(record: Mapping[str, Any]) -> Document:
    local = record.get("localFilePath")
    if local is not None and (not isinstance(local, str) or "\0" in local):
        raise InvalidArgument(f"localFilePath {_short(local)} is not a path.")
    compression = record.get("compression")
    if compression is not None and (not isinstance(compression, str) or len(compression) > 32):
        raise InvalidArgument(f"compression {_short(compression)} is not a compression name.")
    return {
        "fileSize": _whole(record, "fileSize", 0),
        "fileModificationTime": _time(record),
        "md5Sum": _md5(record.get("md5Sum")),
        "digests": _digests(record.get("digests")),
        "compression": None if compression is None else codec.escape(compression),
        "localPathBytes": None if local is None else Binary(paths.encode(local)),
    }


def _whole(record: Mapping[str, Any], key: str, least: int) -> int | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _INT64:
        raise InvalidArgument(f"{key} {_short(value)} is not a whole number of at least {least}.")
    return value


def _time(record: Mapping[str, Any]) -> float | None:
    value = record.get("fileModificationTime")
    if value is None and record.get("fileModificationTimestamp"):
        return timestamps.parse(record["fileModificationTimestamp"]).timestamp()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 1e11:
        raise InvalidArgument(f"fileModificationTime {_short(value)} is not a time in epoch seconds.")
    return float(value)


def _md5(value: Any) -> str | None:
    if value is None or value == "":
        return None
    text = value.lower() if isinstance(value, str) else ""
    if len(text) != _MD5_LENGTH or not _HEX.fullmatch(text):
        raise InvalidArgument(f"md5Sum {_short(value)} is not 32 hexadecimal digits.")
    return text


def _digests(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) > 10:
        raise InvalidArgument(f"digests {_short(value)} is not an object of digest names and hexadecimal values.")
    result = {}
    for name, digest in value.items():
        text = digest.lower() if isinstance(digest, str) else ""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", str(name)) or not _HEX.fullmatch(text) or len(text) > 256:
            raise InvalidArgument(f"Digest {_short(name)}: {_short(digest)} is not hexadecimal digits.")
        result[str(name)] = text
    return result


def _replicas(value: Any, version: int | None) -> tuple[Document, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(replica, Mapping) and replica for replica in value):
        raise InvalidArgument(f"replicas {_short(value)} is not a list of objects.")
    if len(value) > MAX_REPLICAS:
        raise ServiceLimit(f"The record has {len(value)} replicas, more than {MAX_REPLICAS}.")
    tag = {} if version is None else {"version": version}
    return tuple({**tag, **codec.escape(replica)} for replica in value)


def _metadata(record: Mapping[str, Any]) -> Document:
    free = {key: value for key, value in record.items() if key not in _NOT_METADATA}
    for key in (SHADOWED, "metadata"):
        nested = record.get(key)
        if isinstance(nested, Mapping):
            free.update(nested)
        elif nested is not None:
            free[key] = nested
    stored: Document = codec.escape(free)
    return stored


def new_document(item: FileItem, sequence: int, now: float) -> Document:
    """Return the document of a file not seen before.

    :raises ServiceLimit: too large.
    """
    document = {
        "_id": item.id,
        "rev": 1,
        "experimentId": item.experiment.id,
        "experimentName": item.experiment.name,
        "listKey": list_key(item.experiment.id, sequence),
        "root": item.root,
        "pathBytes": Binary(item.path),
        "experimentFilePath": paths.display(item.path),
        "fileName": paths.display(item.path.rpartition(b"/")[2]),
        "fileSize": 0,
        **item.content,
        "version": item.version or 1,
        "replicas": _joined([], item.replicas, True),
        "catalogTime": now,
        "updateTime": now,
        FOLDER: dict(item.metadata),
    }
    return codec.measured(document, f"File {paths.display(item.path)!r}", MAX_BYTES)


def changes(document: Mapping[str, Any], item: FileItem, now: float, *, ordered: bool = True) -> Document:
    """Return the fields an item changes in the document of its file; empty when it brings nothing new.

    :param ordered: ``False`` for an edit somebody asks for, which applies whatever its age.
    :raises ServiceLimit: the result would be too large.
    """
    sign = _compare(item, document) if ordered else 0
    wanted: Document = {"replicas": _joined(document.get("replicas", []), item.replicas, sign >= 0)}
    if sign > 0 and _is_rewrite(item, document):
        wanted.update(dict.fromkeys(_CONTENT))
        wanted["fileSize"] = 0
        wanted["version"] = item.version or int(document.get("version", 1)) + 1
    elif item.version is not None and sign >= 0:
        wanted["version"] = item.version
    if sign >= 0:
        wanted.update(item.content)
        wanted[FOLDER] = {**document.get(FOLDER, {}), **item.metadata}
    changed = {name: value for name, value in wanted.items() if differs(document.get(name), value)}
    if changed:
        if document.get("experimentName") != item.experiment.name:
            changed["experimentName"] = item.experiment.name
        changed["updateTime"] = now
        what = f"File {paths.display(item.path)!r}"
        changed["bytes"] = codec.measured({**document, **changed}, what, MAX_BYTES)["bytes"]
    return changed


def differs(known: Any, wanted: Any) -> bool:
    """Whether two stored values differ as JSON does (Python holds 1, 1.0 and true for equal)."""
    return bool(known != wanted) or (isinstance(wanted, dict | list) and repr(known) != repr(wanted))


def _compare(item: FileItem, document: Mapping[str, Any]) -> int:
    """Return 1, 0 or -1: the item is newer than, as old as, or older than the document."""
    version, modified = item.order
    known_version, known_modified = document.get("version", 1), document.get("fileModificationTime")
    if version is not None and version != known_version:
        return 1 if version > known_version else -1
    if modified is None or modified == known_modified:
        return 0
    return 1 if known_modified is None or modified > known_modified else -1


def _is_rewrite(item: FileItem, document: Mapping[str, Any]) -> bool:
    """Whether a newer item tells of other contents, rather than of a new date or a first look."""
    if item.version is not None:
        return bool(item.version != document.get("version", 1))
    if document.get("fileModificationTime") is None:
        return False
    given = [name for name in ("fileSize", "md5Sum") if name in item.content]
    return any(item.content[name] != document.get(name) for name in given) or not given


def _joined(known: list[Document], incoming: tuple[Document, ...], replace: bool) -> list[Document]:
    """Merge replicas by where they are."""
    result = {_place(replica): replica for replica in known}
    for replica in incoming:
        place = _place(replica)
        if place not in result or (replace and replica.get("version", 0) >= result[place].get("version", 0)):
            result[place] = replica
    if len(result) > MAX_REPLICAS:
        raise ServiceLimit(f"The file has {len(result)} replicas, more than {MAX_REPLICAS}; remove some.")
    return list(result.values())


def _place(replica: Mapping[str, Any]) -> str:
    if "url" in replica:
        return json.dumps(replica["url"])
    keys = [key for key in sorted(replica) if key not in ("version", "time", "md5Sum", "digests", "fileSize")]
    return json.dumps({key: replica[key] for key in keys})


def as_record(document: Mapping[str, Any], experiment: ExperimentRef) -> dict[str, Any]:
    """Return a document as callers see it: the system's keys, then the free metadata beside them.

    Free metadata named like one of the system's keys does not hide it; it is found in ``userMetadata``.
    """
    path = bytes(document["pathBytes"])
    modified = document.get("fileModificationTime")
    local = document.get("localPathBytes")
    record: dict[str, Any] = {
        "id": document["_id"],
        "fileName": paths.decode(path.rpartition(b"/")[2]),
        "experimentFilePath": paths.decode(path),
        "experimentName": experiment.name,
        "experimentId": experiment.id,
        "root": document["root"],
        "fileSize": int(document.get("fileSize") or 0),
        "fileModificationTime": modified,
        "fileModificationTimestamp": None if modified is None else timestamps.text(modified),
        "md5Sum": document.get("md5Sum"),
        "compression": codec.unescape(document.get("compression")) or "",
        "digests": document.get("digests") or {},
        "version": document.get("version", 1),
        "replicas": codec.unescape(document.get("replicas", [])),
        "catalogTime": document.get("catalogTime"),
        "updateTime": document.get("updateTime"),
    }
    if local is not None:
        record["localFilePath"] = paths.decode(bytes(local))
    shadowed = {}
    for key, value in codec.unescape(document.get(FOLDER, {})).items():
        if key in record or key in _HIDING:
            shadowed[key] = value
        else:
            record[key] = value
    if shadowed:
        record[SHADOWED] = shadowed
    return record


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
