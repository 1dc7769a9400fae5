"""Fetching a batch from a remote source with rsync.

Three runs: one fetches; a dry one finds what changed meanwhile (size, time to the nanosecond); a third, only where
there are sub-directories, that no directory on the way was a link. rsync itself proves by a whole-file checksum that
what it wrote is what it read. Which files failed is found by comparing; rsync's complaints only explain it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from concurrent.futures import Executor

from dm.common.paths import display, opened_parent
from dm.station.acquisition.transports.base import (
    FileOutcome,
    FileStamp,
    TransferBatch,
    TransferFile,
    storable,
)
from dm.station.acquisition.transports.copying import (
    CopyError,
    changed,
    copy_digesting,
    mount_point,
    note,
    opened_source,
)
from dm.station.acquisition.transports.local import open_staging
from dm.station.acquisition.transports.rsync_command import Caller
from dm.station.acquisition.transports.rsync_process import Result

SECOND = 1_000_000_000


def pull(caller: Caller, batch: TransferBatch, workers: Executor) -> list[FileOutcome]:
    """Fetch into a private directory inside staging, digest, and move each file to its staged name."""
    with open_staging(batch.staging_directory) as staging:
        received = tempfile.mkdtemp(prefix=b".rsync-", dir=batch.staging_directory)
        try:
            return _Pull(caller, batch, received, staging.descriptor).outcomes(workers)
        finally:
            # rm, because a path may be 2,000 directories deep
            subprocess.run(["rm", "-rf", "--", received], check=False, stdin=subprocess.DEVNULL)


class _Pull:
    """One fetched batch."""

    def __init__(self, caller: Caller, batch: TransferBatch, received: bytes, staging: int) -> None:
        self.caller = caller
        self.batch = batch
        self.received = received
        self.staging = staging
        self.what = f"Data directory {batch.source.text!r}"
        names = caller.names(batch.source, [file.path for file in batch.files])
        listed = ["--no-implied-dirs", "--modify-window=-1", *self._places(received + b"/")]
        self.result = caller.move(batch, "-ptWO8", "--chmod=Fug-s,Fu+rw", *listed, names=names)
        self._require(self.result)
        self.compared = caller.move(batch, "-tOn8", "--out-format=%n", *listed, names=names)
        self._require(self.compared)
        self.differing = set(self.compared.lines)
        self.linked = self._linked_directories()

    def outcomes(self, workers: Executor) -> list[FileOutcome]:
        """Return what became of each file."""
        return list(workers.map(self._judge, self.batch.files))

    def _places(self, target: str | bytes) -> list[str | bytes]:
        return ["--files-from=-", "--from0", *self.caller.origin(self.batch.source), target]

    def _require(self, result: Result) -> None:
        if result.code and not result.partial:
            raise result.failure(self.what)

    def _linked_directories(self) -> list[bytes]:
        """Return the directories on the way to the files that are links at the source."""
        parents: set[bytes] = set()
        for file in self.batch.files:
            parent = os.path.dirname(file.path)
            while parent and parent not in parents:
                parents.add(parent)
                parent = os.path.dirname(parent)
        if not parents:
            return []
        names = self.caller.names(self.batch.source, sorted(parents))
        with tempfile.TemporaryDirectory(prefix="dm-rsync-") as nowhere:
            places = self._places(os.path.join(nowhere, "none", ""))
            result = self.caller.move(
                self.batch, "-ldn8", "--no-implied-dirs", "--out-format=%i %n", *places, names=names
            )
        self._require(result)
        return [line.partition(b" ")[2] for line in result.lines if line.startswith(b"cL")]

    def _judge(self, file: TransferFile) -> FileOutcome:
        outcome = FileOutcome(file.staged_name)
        try:
            through = next((link for link in self.linked if file.path.startswith(link + b"/")), None)
            if through is not None:
                raise CopyError(
                    f"Path {display(file.path)!r} passes {display(through)!r}, which is a link; "
                    "only regular files are moved.",
                    transient=False,
                )
            try:
                self._take(file, outcome)
            except CopyError as error:
                raise (self._not_received(file) if error.vanished else error) from error
            if file.path in self.differing or self.compared.complaint(file.path):
                raise changed(file.path)
        except (CopyError, OSError) as error:
            note(outcome, error, file.path)
            _forget(self.staging, file.staged_name)
        return outcome

    def _take(self, file: TransferFile, outcome: FileOutcome) -> None:
        """Digest a received file and move it to its staged name."""
        batch = self.batch
        with opened_source(self.received, file.path) as (descriptor, status):
            copied = copy_digesting(
                descriptor,
                None,
                status.st_size,
                shown=display(file.path),
                where=batch.staging_directory,
                stop=batch.stop.is_set,
                moved=batch.moved,
                checksum=batch.checksum,
                digest=batch.digest,
            )
        outcome.mode = stat.S_IMODE(status.st_mode)
        outcome.size, outcome.digests, outcome.md5 = copied.size, copied.digests, copied.md5
        # whole seconds, as a listing has them: otherwise the next scan would take every file for changed
        outcome.before = outcome.after = FileStamp(status.st_size, storable(status.st_mtime_ns) // SECOND * SECOND)
        with opened_parent(self.received, file.path) as (parent, name):
            os.rename(name, file.staged_name, src_dir_fd=parent, dst_dir_fd=self.staging)
        os.chmod(file.staged_name, 0o600, dir_fd=self.staging)

    def _not_received(self, file: TransferFile) -> CopyError:
        """Return why a file did not arrive."""
        shown, said = display(file.path), self.result.complaint(file.path)
        if self.result.skipped(file.path):
            return CopyError(f"Path {shown!r} is not a regular file; only regular files are moved.", transient=False)
        # gone only if the second look did not find it either: rsync has been seen to call whole trees vanished
        if ("No such file" in said or "vanished" in said) and file.path not in self.differing:
            return CopyError(f"File {shown!r} vanished before it was moved.", vanished=True)
        where = f" (file system at {mount_point(self.batch.staging_directory)!r})" if self.result.full else ""
        return CopyError(f"File {shown!r} was not received{where}: {said or self.result.sentence()}.")


def _forget(staging: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=staging)
    except FileNotFoundError:
        return
