"""``dm-download``"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from dm.common import paths
from dm.common.command import command, option, progress
from dm.common.digests import digest_stream
from dm.common.errors import ObjectNotFound, TransferError
from dm.site.storage.api import FileDsApi, FileMetadata
from dm.site.storage.commands.options import experiment_option, root_option, station_option

FILES_PER_BAR = 100


@command("dm-download", api="dm.site.storage.api:FileDsApi")
@experiment_option
@option("--destination-directory", default=".", show_default=True, help="Directory to download into; made if missing.")
@option("--file-path", "--file", "files", multiple=True, help="Only this file; may be given several times.")
@root_option
@station_option
def main(  # noqa: PLR0917
    api: FileDsApi,
    experiment: str,
    destination_directory: str,
    files: tuple[str, ...],
    root: str | None,
    station: str | None,
) -> Iterator[FileMetadata]:
    """Download an experiment, or some of its files, verified.

    Single files go right into the destination directory; a whole experiment keeps its directories, data/ and
    analysis/. What was interrupted goes on where it stopped, and files that are there already are not fetched again.
    """
    target = Path(destination_directory)
    if files:
        return _single(api, experiment, target, files, root, station)
    return _whole(api, experiment, target, root, station)


def _single(  # noqa: PLR0917
    api: FileDsApi, experiment: str, target: Path, files: tuple[str, ...], root: str | None, station: str | None
) -> Iterator[FileMetadata]:
    """Download the files named, under their last names."""
    names = [paths.relative(file).rpartition(b"/")[2] for file in files]
    if len(set(names)) < len(names):
        raise click.UsageError("Two of the files have the same name; download them into different directories.")
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        with progress("Downloading", size=True) as update:
            record = api.downloadFile(file, experiment, target, station, root, progress=update)
        yield record


def _whole(
    api: FileDsApi, experiment: str, target: Path, root: str | None, station: str | None
) -> Iterator[FileMetadata]:
    """Download all published files; those that cannot be had are named at the end.

    :raises TransferError: some could not be downloaded.
    """
    total = None
    if sys.stderr.isatty():
        total = sum(record["fileSize"] for record in api.getFiles(experiment, station, root))
    failures: list[str] = []
    before = 0
    listing = api.getFiles(experiment, station, root)
    # printed between two bars, never through one: what a bar lets through goes to standard error
    while some := list(itertools.islice(listing, FILES_PER_BAR)):
        done = []
        with progress("Downloading", total, size=True) as update:
            for listed in some:
                try:
                    _fetch(api, listed, target, station, lambda count, _size: update(before + count))  # noqa: B023
                    done.append(listed)
                except (ObjectNotFound, TransferError) as error:  # gone or replaced: the others still count
                    failures.append(str(error))
                before += listed["fileSize"]
                update(before)
        yield from done
    if failures:
        raise TransferError(f"{len(failures)} files could not be downloaded, among them: {failures[0]}")


def _fetch(
    api: FileDsApi, listed: FileMetadata, target: Path, station: str | None, update: Callable[[int, int], None]
) -> None:
    """Download one file of a whole experiment, unless it is there, and note where."""
    path = listed["experimentFilePath"]
    local = target / listed["root"] / os.fsdecode(paths.relative(path))
    listed["localFilePath"] = str(local)
    if not _there(local, listed):
        local.parent.mkdir(parents=True, exist_ok=True)
        api.downloadFile(path, listed["experimentName"], local.parent, station, listed["root"], progress=update)


def _there(local: Path, listed: FileMetadata) -> bool:
    """Whether an earlier download left exactly this file."""
    if local.is_symlink() or not local.is_file() or local.stat().st_size != listed["fileSize"]:
        return False
    with local.open("rb") as stream:
        return digest_stream(stream, listed["digests"])[1] == listed["digests"]
