"""The manifest of an experiment for others: every file that was published, and whether it is still there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from dm.common import paths
from dm.common.errors import DmException
from dm.common.web.routes import Principal, Stream
from dm.site.database.store import Store
from dm.site.storage import manifest
from dm.site.storage.experiments import Reference, find_visible

_KEYS = ("root", "path", "size", "mtimeNs", "digests", "version", "source", "time")
_LINES = 500


class Recorded:
    """The use case."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def stream(self, principal: Principal, reference: Reference) -> Stream:
        """Return the ``file`` entries of an experiment's manifest as JSON lines, in order of publication.

        Each has ``root``, ``path``, ``size``, ``mtimeNs``, ``digests``, ``version``, ``source``, ``time`` and
        ``present``: whether the file is on disk with that size and time. A file that was replaced has several entries,
        the last one counts. The last line is ``{"event": "end", "countFiles": n}``; without it something was cut off.
        """
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
        directory = str(experiment["storage_directory"])
        return Stream(
            read=lambda first, length: _lines(directory),
            length=None,
            filename=f"{experiment['name']}-manifest.jsonl",
            etag=f"manifest-{experiment['id']}",
            content_type="application/jsonl",
        )


def _lines(directory: str) -> Iterator[bytes]:
    """Yield the lines in larger pieces."""
    waiting: list[str] = []
    count = 0
    for entry in manifest.read(directory):
        known: dict[str, Any] = {key: entry.get(key) for key in _KEYS}
        waiting.append(json.dumps(known | {"present": _present(directory, entry)}, separators=(",", ":")))
        count += 1
        if len(waiting) >= _LINES:
            yield ("\n".join(waiting) + "\n").encode("ascii")
            waiting.clear()
    waiting.append(json.dumps({"event": "end", "countFiles": count}))
    yield ("\n".join(waiting) + "\n").encode("ascii")


def _present(directory: str, entry: dict[str, Any]) -> bool:
    """Whether the file is there as the entry says; nothing is followed out of the experiment."""
    try:
        with paths.opened_file(f"{directory}/{entry['root']}", paths.encode(entry["path"])) as descriptor:
            status = os.fstat(descriptor)
    except (DmException, OSError):
        return False
    return (status.st_size, status.st_mtime_ns) == (entry["size"], entry["mtimeNs"])
