"""The manifest of an experiment for others: every file that was published, and whether it is still there.

It is also what the site's own records of published files are made from again, after its database was restored from a
backup that is older than the files.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from sqlalchemy import RowMapping

from dm.common import digests, paths
from dm.common.errors import DmException
from dm.common.web.routes import Principal, Stream
from dm.site.database.store import PUBLISH_LOCK, Store, lock
from dm.site.identity import audit
from dm.site.storage import file_store, manifest
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
        directory, experiment = self._of(principal, reference)
        return Stream(
            read=lambda first, length: _lines(directory),
            length=None,
            filename=f"{experiment['name']}-manifest.jsonl",
            etag=f"manifest-{experiment['id']}",
            content_type="application/jsonl",
        )

    def _of(self, principal: Principal, reference: Reference) -> tuple[str, RowMapping]:
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
        return str(experiment["storage_directory"]), experiment

    def record_again(self, principal: Principal, reference: Reference, dry_run: bool = False) -> dict[str, Any]:
        """Put into the database what the manifest has, the disk has, and the database lost; repeatable.

        :returns: ``countRecorded`` (published and there), ``countGone``, ``countMissing`` (recorded again).
        """
        directory, experiment = self._of(principal, reference)
        report = {"experimentName": experiment["name"], "countRecorded": 0, "countGone": 0, "countMissing": 0}

        def there() -> Iterator[dict[str, Any]]:
            for entry in manifest.read(directory):
                present = _present(directory, entry)
                report["countRecorded" if present else "countGone"] += 1
                if present:
                    yield entry

        entries = there()
        while chunk := list(itertools.islice(entries, _LINES)):
            report["countMissing"] += self._record_again(experiment["id"], chunk, dry_run)
        if report["countMissing"] and not dry_run:
            with self._store.transaction() as connection:
                name = f"{experiment['name']}/{experiment['station_name']}"
                audit.record(connection, "files.recorded", name, count=report["countMissing"])
        return report

    def _record_again(self, experiment_id: int, entries: list[dict[str, Any]], dry_run: bool) -> int:
        """Record those of some entries that are not, or in an older version; return how many."""
        missing = 0
        with self._store.transaction() as connection:
            lock(connection, PUBLISH_LOCK, experiment_id)  # no publisher is between its look and its record
            known = {
                root: file_store.by_paths(
                    connection,
                    experiment_id,
                    root,
                    [paths.encode(one["path"]) for one in entries if one["root"] == root],
                )
                for root in {entry["root"] for entry in entries}
            }
            for entry in entries:
                path = paths.encode(entry["path"])
                row = known[entry["root"]].get(path)
                if row is not None and row["version"] >= entry["version"]:
                    continue
                missing += 1
                if not dry_run:
                    file_store.upsert(
                        connection, experiment_id, entry["root"], [_published(path, entry)],
                        source=entry["source"], batch_id=entry["batch"],
                    )  # fmt: skip
        return missing


def _published(path: bytes, entry: dict[str, Any]) -> file_store.Published:
    md5 = entry["digests"].get("md5")
    return file_store.Published(
        path=path,
        size=entry["size"],
        mtime_ns=entry["mtimeNs"],
        digest=bytes.fromhex(entry["digests"][digests.VERIFICATION]),
        md5=bytes.fromhex(md5) if md5 else None,
        version=entry["version"],
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
