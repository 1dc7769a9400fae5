"""What the demo claimed, checked against the disk: nothing here believes a service that the disk can be asked about."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dm.station.acquisition.plugins.metadata_reader import Reader

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Check:
    """One thing that was claimed.

    :param claim: in words. :param count: how many times it was found true. :param wrong: where it was not, in words.
    """

    claim: str
    count: int = 0
    wrong: list[str] = field(default_factory=list)

    def see(self, ok: bool, otherwise: str) -> None:
        """Count one observation, or note what was seen instead."""
        if ok:
            self.count += 1
        else:
            self.wrong.append(otherwise)

    @property
    def ok(self) -> bool:
        """Whether it holds everywhere."""
        return not self.wrong


@dataclass
class Claims:
    """What the services said.

    :param sources: path below the watched folder -> the source file.
    :param experiment: its record. :param data_records: :param analysis_records: path -> catalog record.
    :param jobs: all job records. :param plain: paths of files with nothing to draw, e.g. texts.
    :param owner: :param group: uid and gid that published files should have.
    """

    sources: Mapping[str, Path]
    experiment: Mapping[str, Any]
    data_records: Mapping[str, Mapping[str, Any]]
    analysis_records: Mapping[str, Mapping[str, Any]]
    jobs: list[Mapping[str, Any]]
    plain: set[str]
    group: int
    owner: int


def md5(path: Path) -> str:
    """Return a file's MD5, lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def verify(claims: Claims) -> list[Check]:
    """Return all checks, done."""
    return [
        _stored(claims),
        _cataloged(claims),
        _protected(claims),
        _described(claims),
        _processed(claims),
        _results(claims),
        _nothing_else(claims),
    ]


def _stored(claims: Claims) -> Check:
    check = Check("files stored, MD5 equal to the source")
    folder = Path(claims.experiment["dataDirectory"])
    for name, source in claims.sources.items():
        target = folder / name
        if not target.is_file():
            check.see(False, f"{target} is missing")
        else:
            check.see(md5(target) == md5(source), f"{target} differs from {source}")
    return check


def _cataloged(claims: Claims) -> Check:
    check = Check("files cataloged with size and MD5 of the disk")
    folder = Path(claims.experiment["dataDirectory"])
    for name in claims.sources:
        record, target = claims.data_records.get(name), folder / name
        if record is None:
            check.see(False, f"{name} is not in the catalog")
        elif target.is_file():
            seen = (target.stat().st_size, md5(target))
            check.see((record.get("fileSize"), record.get("md5Sum")) == seen, f"{name}: the catalog has other values")
    extra = set(claims.data_records) - set(claims.sources)
    for name in sorted(extra):
        check.see(False, f"{name} is in the catalog but was never written")
    return check


def _protected(claims: Claims) -> Check:
    check = Check("stored files owned by storage, closed to others, not writable by the group")
    for folder in (claims.experiment["dataDirectory"], claims.experiment["analysisDirectory"]):
        for path in sorted(Path(folder).rglob("*")):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            good = (
                stat.S_ISREG(status.st_mode)
                and not status.st_mode & 0o027
                and status.st_uid == claims.owner
                and status.st_gid == claims.group
            )
            check.see(good, f"{path} is {stat.filemode(status.st_mode)} of {status.st_uid}:{status.st_gid}")
    return check


def _described(claims: Claims) -> Check:
    check = Check("metadata found inside the source files equal to the catalog's")
    reader = Reader()
    try:
        for name, source in claims.sources.items():
            record, wanted = claims.data_records.get(name, {}), reader.extract(os.fspath(source))
            other = sorted(key for key, value in wanted.items() if record.get(key) != value)
            told = len(wanted) > 1 or name in claims.plain
            check.see(told and not other and "metadataError" not in wanted, f"{name}: {other or wanted}")
    finally:
        reader.close()
    return check


def _processed(claims: Claims) -> Check:
    check = Check("jobs done, numbers found by their output regexes")
    by_name = jobs_by_name(claims.sources, claims.jobs)
    for name in claims.sources:
        mine = by_name.get(name, [])
        if not mine:
            check.see(False, f"{name}: no job")
        for job in mine:
            numbers = (
                job.get("kind") == "other" if name in claims.plain else bool(job.get("points") and job.get("maximum"))
            )
            good = job.get("status") == "done" and numbers
            check.see(
                good,
                f"{name}: job {job.get('id')} is {job.get('status')} in stage {job.get('stage')}; {job.get('why', '')}",
            )
    return check


def jobs_by_name(names: Iterable[str], jobs: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the jobs of each file, oldest first."""
    wanted = set(names)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for job in jobs:
        name = str(job.get("experimentFilePath", ""))
        if name in wanted:
            found.setdefault(name, []).append(job)
    return found


def result_name(name: str) -> str:
    """Return where below ``analysis/`` the picture of a data file goes."""
    return str(Path("pictures", f"{name}.png"))


def _results(claims: Claims) -> Check:
    check = Check("pictures in analysis/, cataloged, readable as PNG")
    folder = Path(claims.experiment["analysisDirectory"])
    for name in sorted(set(claims.sources) - claims.plain):
        target, record = folder / result_name(name), claims.analysis_records.get(result_name(name))
        if not target.is_file():
            check.see(False, f"{target} is missing")
        elif record is None:
            check.see(False, f"{result_name(name)} is not in the catalog")
        else:
            with target.open("rb") as stream:
                picture = stream.read(len(_PNG)) == _PNG
            check.see(picture and record.get("md5Sum") == md5(target), f"{target} is not what the catalog says")
    return check


def _nothing_else(claims: Claims) -> Check:
    check = Check("nothing lost, nothing twice, nothing left in staging")
    wanted = {
        "dataDirectory": set(claims.sources),
        "analysisDirectory": {result_name(name) for name in claims.sources if name not in claims.plain},
    }
    for key, names in wanted.items():
        folder = Path(claims.experiment[key])
        found = {os.fspath(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
        check.see(found == names, f"{folder}: {sorted(found ^ names)[:3]} differ")
    staging = Path(claims.experiment["storageDirectory"]) / ".staging"
    left = [path for path in staging.rglob("*") if path.is_file()] if staging.is_dir() else []
    check.see(not left, f"{staging} still holds {len(left)} files")
    return check
