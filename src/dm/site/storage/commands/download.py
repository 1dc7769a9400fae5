"""``dm-download``"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from dm.common import paths
from dm.common.command import command, option, progress
from dm.common.errors import TransferError
from dm.site.storage.api import FileDsApi, FileMetadata
from dm.site.storage.api_files import PARALLEL, selection
from dm.site.storage.commands.options import experiment_option, root_option, station_option

FILES_PER_BAR = 100


@command("dm-download", api="dm.site.storage.api:FileDsApi")
@experiment_option
@option("--destination-directory", default=".", show_default=True, help="Directory to download into; made if missing.")
@option("--file-path", "--file", "files", multiple=True, help="Only this file; may be given several times.")
@option("--path", help="Only this file or directory below data or analysis.")
@option("--pattern", help="Only files whose path, or name, matches this shell wildcard.")
@option(
    "--parallel",
    type=click.IntRange(1, 32),
    default=PARALLEL,
    show_default=True,
    help="Files downloaded at the same time.",
)
@option("--verify", is_flag=True, help="Read files that are there already, instead of trusting their size and time.")
@root_option
@station_option
def main(  # noqa: PLR0917
    api: FileDsApi,
    experiment: str,
    destination_directory: str,
    files: tuple[str, ...],
    path: str | None,
    pattern: str | None,
    parallel: int,
    verify: bool,
    root: str | None,
    station: str | None,
) -> Iterator[FileMetadata]:
    """Download an experiment, or some of its files, verified.

    Single files (--file) go right into the destination directory; a whole experiment, or what --path and --pattern
    choose of it, keeps its directories, data/ and analysis/. What was interrupted goes on where it stopped, and files
    that are there already are not fetched again. Each file that cannot be had is named on standard error, and the
    exit status is then not 0.
    """
    target = Path(destination_directory)
    if files:
        if path or pattern:
            raise click.UsageError("Name files by --file, or choose them by --path and --pattern.")
        return _single(api, experiment, target, files, root, station)
    total = None
    if sys.stderr.isatty():
        chosen = selection(path, pattern)
        total = sum(int(record["fileSize"]) for record in api.getFiles(experiment, station, root) if chosen(record))
    bar = _Bar()
    records = api.downloadFiles(
        experiment, target, station, root, path, pattern, parallel=parallel, verify=verify, progress=bar.told
    )
    return _whole(records, bar, total)


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


class _Bar:
    """Passes progress on to the bar that is shown at the moment."""

    def __init__(self) -> None:
        self.update: Callable[[int], None] = _nowhere
        self.count = 0

    def told(self, count: int) -> None:
        self.count = count
        self.update(count)


def _nowhere(_count: int) -> None:
    """Show no progress."""


def _whole(records: Iterator[FileMetadata], bar: _Bar, total: int | None) -> Iterator[FileMetadata]:
    """Yield the records of files that are there; name those that are not.

    :raises TransferError: some could not be downloaded.
    """
    failures: list[str] = []
    # printed between two bars, never through one: what a bar lets through goes to standard error
    while True:
        with progress("Downloading", total, size=True) as update:
            bar.update = update
            bar.told(bar.count)
            some = list(itertools.islice(records, FILES_PER_BAR))
            bar.update = _nowhere
        for record in some:
            if "error" in record:
                failures.append(f"{record['root']}/{record['experimentFilePath']}: {record['error']}")
                click.echo(f"Not downloaded: {failures[-1]!a}", err=True)
            else:
                yield record
        if not some:
            break
    if failures:
        raise TransferError(f"{len(failures)} files could not be downloaded, among them: {failures[0]}")
