"""Checksum audit: what an experiment's catalog says, compared with what lies in its storage directories."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dm.common import digests, paths
from dm.common.errors import DmException, InvalidArgument, ObjectNotFound
from dm.station.workflows.tools import results

ROOTS = {"data": "dataDirectory", "analysis": "analysisDirectory"}
MAX_TOLD = 10_000
_KEYS = ["experimentFilePath", "root", "fileSize", "md5Sum", "compression"]


def run(experiment: str, output: Path, check_digests: bool = True) -> dict[str, Any]:
    """Write ``<experiment>.audit.json``: each file that is missing, different, unreadable, or not in the catalog.

    The services are asked as any command does: addresses and login come from the environment.

    :param experiment: its name. :param output: directory. :param check_digests: read every file and compare its MD5;
        otherwise sizes only.
    :returns: what :func:`results.tell` shows: how many of each, how many are fine, bytes read.
    :raises ObjectNotFound: no such experiment. :raises InvalidArgument: its directories are not here.
    """
    from dm.site.storage.api import ExperimentDsApi
    from dm.station.catalog.api import FileCatApi

    storage, catalog = ExperimentDsApi(), FileCatApi()
    try:
        record = dict(storage.getExperimentByName(experiment))
        directories = {root: str(record[key]) for root, key in ROOTS.items() if record.get(key)}
        found = compared(catalog.iterateExperimentFiles(experiment, keyList=_KEYS), directories, check_digests)
    finally:
        storage.close()
        catalog.close()
    target = output / results.named(experiment, ".audit.json")
    results.write_json(target, {"experimentName": experiment, "directories": directories, **found})
    return {**{name: value for name, value in found.items() if isinstance(value, int)}, "report": target.name}


def compared(
    records: Iterable[Mapping[str, Any]], directories: Mapping[str, str], check_digests: bool = True
) -> dict[str, Any]:
    """Compare records with files.

    :param records: of the catalog. :param directories: root -> directory in storage.
    :returns: ``nFiles`` (of the catalog), ``nFine``, ``nUnverified`` (of these, known by their size only),
        ``nMissing``, ``nDifferent``, ``nUnreadable``, ``nExtra``, ``nBytesRead``, and lists of the first of each kind.
    :raises InvalidArgument: the data directory is not here, so that everything would count as missing.
    """
    if not Path(directories.get("data", "")).is_dir() or not directories.get("data"):
        raise InvalidArgument(
            f"The data directory {directories.get('data', '')!r} is not to be seen from here; run the audit on a host "
            "that has the storage, under an account that may read it."
        )
    counts = dict.fromkeys(
        ("nFiles", "nFine", "nUnverified", "nMissing", "nDifferent", "nUnreadable", "nExtra", "nBytesRead"), 0
    )
    told: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ("missing", "different", "unreadable", "extra")}
    known: set[tuple[str, str]] = set()

    def note(kind: str, **values: Any) -> None:
        counts[f"n{kind.title()}"] += 1
        if len(told[kind]) < MAX_TOLD:
            told[kind].append({**values, "path": paths.display(paths.encode(values["path"]))})

    for record in records:
        root, path = str(record.get("root") or "data"), str(record["experimentFilePath"])
        counts["nFiles"] += 1
        known.add((root, path))
        verdict, values = _looked_at(record, directories.get(root), path, check_digests)
        counts["nBytesRead"] += values.pop("read", 0)
        if verdict in ("fine", "unverified"):
            counts["nFine"] += 1
            counts["nUnverified"] += verdict == "unverified"
        else:
            note(verdict, root=root, path=path, **values)
    for root, directory in directories.items():
        for path in _files(directory):
            if (root, path) not in known:
                note("extra", root=root, path=path)
    return {**counts, **told}


def _looked_at(
    record: Mapping[str, Any], directory: str | None, path: str, check_digests: bool
) -> tuple[str, dict[str, Any]]:
    """Return what is the matter with one file, and what to tell of it."""
    size, digest = record.get("fileSize"), record.get("md5Sum")
    if directory is None:
        return "missing", {}
    try:
        with paths.opened_file(directory, paths.encode(path)) as handle, open(handle, "rb", closefd=False) as file:
            there = os.fstat(handle).st_size
            if size is not None and there != int(size):
                return "different", {"reason": "size", "expected": int(size), "found": there}
            if not check_digests or not digest:
                return "unverified", {}
            read, found = digests.digest_stream(file, ["md5"])
            verdict = {"expected": digest, "found": found["md5"]} if found["md5"] != digest else {}
            return ("different", {"reason": "md5Sum", **verdict, "read": read}) if verdict else ("fine", {"read": read})
    except ObjectNotFound:
        return "missing", {}
    except (DmException, OSError) as error:
        return "unreadable", {"reason": str(error)}


def _files(directory: str) -> Iterator[str]:
    """Yield the files below a directory by the paths the catalog would have; links are not followed."""
    top = os.fsencode(directory)
    for folder, _, names in os.walk(top):
        for name in names:
            yield paths.decode(os.path.relpath(os.path.join(folder, name), top))  # noqa: PTH118
