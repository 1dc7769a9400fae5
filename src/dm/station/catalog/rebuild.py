"""Making catalog records anew from what storage wrote down about every file it published.

Path, size, times, digests, version and the replica in storage come back. Free metadata, datasets, runs and replicas
elsewhere were only in the catalog: they come back from a backup of its database, or by reading the files again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from dm.common.errors import DmException
from dm.common.paths import encode

Record = dict[str, Any]
BATCH = 1000
_MISSING = -1


class CatalogApi(Protocol):
    """What is needed of the catalog's API classes."""

    def upsertFiles(self, files: list[Mapping[str, Any]]) -> Record:
        """Store what file records bring."""
        ...


def wanted(entries: Iterable[Record], known: Mapping[tuple[str, str], int | None], report: Record) -> Iterator[Record]:
    """Yield the manifest entries whose catalog record is missing or older, and count the others in ``report``.

    :param known: root and path of every catalog record -> its version.
    """
    for entry in entries:
        if not entry["present"]:
            report["countGone"] += 1
            continue
        report["countFiles"] += 1
        version = known.get((entry["root"], entry["path"]), _MISSING)
        if version == _MISSING or (version is not None and version < entry["version"]):
            yield entry
        else:
            report["nUnchanged"] += 1


def record(experiment: Mapping[str, Any], entry: Record) -> Record:
    """Return a manifest entry as the catalog's bulk route takes it."""
    base = str(experiment.get("storageUrl") or f"file://{experiment.get('storageHost') or ''}").rstrip("/")
    url = f"{base}/{entry['root']}/{quote(encode(entry['path']))}"
    digests = dict(entry["digests"])
    return {
        "experimentId": experiment["id"],
        "experimentName": experiment["name"],
        "root": entry["root"],
        "path": entry["path"],
        "fileSize": entry["size"],
        "fileModificationTime": entry["mtimeNs"] / 1e9,
        "md5Sum": digests.pop("md5", None),
        "digests": digests,
        "version": entry["version"],
        "replicas": [{"type": "storage", "url": url, "host": experiment.get("storageHost") or ""}],
    }


def rebuild(
    experiment: Mapping[str, Any],
    entries: Iterable[Record],
    known: Mapping[tuple[str, str], int | None],
    catalog: CatalogApi,
    *,
    dry_run: bool = False,
    told: Callable[[str, Record], None] = lambda what, entry: None,
) -> Record:
    """Store the missing records of one experiment.

    :param experiment: its record. :param entries: of its manifest, in order. :param told: called for each file that is
        (or would be) written, and each that is refused.
    :returns: ``experimentName``, ``countFiles`` (published and there), ``countGone`` (published, but not there as
        recorded), ``nAdded``, ``nUpdated``, ``nUnchanged``, ``nErrors``.
    """
    report: Record = {"experimentName": experiment["name"], "countFiles": 0, "countGone": 0, "nAdded": 0}
    report |= {"nUpdated": 0, "nUnchanged": 0, "nErrors": 0}
    batch: list[Record] = []

    def send() -> None:
        found = catalog.upsertFiles([record(experiment, entry) for entry in batch])
        for key in ("nAdded", "nUpdated", "nUnchanged", "nErrors"):
            report[key] += int(found[key])
        for problem in found["errors"]:
            told(f"refused ({problem['errorMessage']})", batch[int(problem["index"])])
        batch.clear()

    for entry in wanted(entries, known, report):
        new = (entry["root"], entry["path"]) not in known
        told("missing" if new else "older", entry)
        if dry_run:
            report["nAdded" if new else "nUpdated"] += 1
            continue
        batch.append(entry)
        if len(batch) >= BATCH:
            send()
    if batch:
        send()
    return report


def complete(lines: Iterable[Record]) -> Iterator[Record]:
    """Yield the entries of a manifest that came whole. :raises DmException: it was cut off."""
    count = 0
    for entry in lines:
        if entry.get("event") == "end":
            if entry.get("countFiles") == count:
                return
            break
        count += 1
        yield entry
    raise DmException(f"The manifest broke off after {count} entries; run the command again.")
