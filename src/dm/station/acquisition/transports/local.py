"""The transport for staging areas this machine reaches by its own file system: read once, digest, write."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, Field

from dm.common.errors import DmException, InvalidArgument, TransferError
from dm.common.paths import display
from dm.common.spent import part
from dm.station.acquisition.transports.base import FileOutcome, Source, TransferBatch, TransferFile, Transport
from dm.station.acquisition.transports.copying import (
    CopyError,
    changed,
    copy_digesting,
    groups,
    note,
    opened_source,
    reason,
    require_space,
    stamp,
    write_problem,
)

_GROUP_FILES = 8
_GROUP_BYTES = 4 << 20
_STAGED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalSettings(BaseModel):
    """Settings ``[acquisition.transports.local]``.

    :param workers: files copied at the same time, over all DAQs and uploads.
    """

    model_config = ConfigDict(extra="forbid")

    workers: int = Field(default=max(2, min(8, os.cpu_count() or 2)), ge=1, le=64)


class Local(Transport):
    """Copies within this machine's file systems."""

    name = "local"
    settings_model = LocalSettings
    schemes = frozenset({"file"})

    def __init__(self, settings: BaseModel) -> None:
        super().__init__(settings)
        assert isinstance(settings, LocalSettings)
        self._workers = ThreadPoolExecutor(settings.workers, "copy")

    def check(self, source: Source) -> None:
        """Check that the data directory exists, is a directory and can be listed; see :meth:`Transport.check`."""
        check_directory(source)

    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        """Copy the files into the staging directory, several at a time; see :meth:`Transport.move`."""
        if batch.staging_host is not None:
            raise InvalidArgument(f"Transport 'local' cannot reach staging on {batch.staging_host!r}; use 'rsync'.")
        with open_staging(batch.staging_directory) as staging:
            require_root(batch.source)
            if len(batch.files) == 1:
                return _copy_all(batch, staging.descriptor, batch.files)
            shares = groups(batch.files, _GROUP_FILES, _GROUP_BYTES)
            done = self._workers.map(lambda files: _copy_all(batch, staging.descriptor, files), shares)
            return [outcome for share in done for outcome in share]

    def close(self) -> None:
        """End the copying threads."""
        self._workers.shutdown()


class open_staging:  # noqa: N801 - used like open()
    """A staging directory held open.

    :raises TransferError: it is gone, a link, or may not be entered: storage no longer waits for this batch.
    """

    def __init__(self, directory: bytes) -> None:
        self.directory = directory
        self.descriptor = -1

    def __enter__(self) -> open_staging:
        try:
            self.descriptor = os.open(self.directory, _DIRECTORY)
        except OSError as error:
            raise TransferError(
                f"Staging directory {display(self.directory)!r} cannot be opened: {reason(error)}."
            ) from error
        return self

    def __exit__(self, *ignored: object) -> None:
        os.close(self.descriptor)


def check_directory(source: Source) -> None:
    """Check a data directory of this machine.

    :raises InvalidArgument: missing, no directory or not readable; the text names it.
    """
    try:
        descriptor = os.open(source.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidArgument(f"Data directory {source.text!r} does not exist on this machine.") from None
    except NotADirectoryError:
        raise InvalidArgument(f"Data directory {source.text!r} is not a directory.") from None
    except OSError as error:
        raise InvalidArgument(f"Data directory {source.text!r} cannot be read: {reason(error)}.") from None
    try:
        os.stat(".", dir_fd=descriptor)
    except OSError as error:
        raise InvalidArgument(f"Data directory {source.text!r} cannot be entered: {reason(error)}.") from None
    finally:
        os.close(descriptor)


def require_root(source: Source) -> None:
    """Refuse to judge single files while their whole directory is away (unmounted, renamed).

    :raises TransferError: the batch is tried again later.
    """
    try:
        check_directory(source)
    except DmException as error:
        raise TransferError(error.message) from error


def _copy_all(batch: TransferBatch, staging: int, files: list[TransferFile]) -> list[FileOutcome]:
    with part("copy"):
        return [_copy(batch, staging, file) for file in files]


def _copy(batch: TransferBatch, staging: int, file: TransferFile) -> FileOutcome:
    """Copy one file; its partial copy is removed unless the outcome is good."""
    outcome = FileOutcome(file.staged_name)
    shown = display(file.path)
    if not _STAGED.fullmatch(file.staged_name):
        raise InvalidArgument(f"Staged name {file.staged_name!r} is not plain; the pipeline chooses such names.")
    try:
        with opened_source(batch.source.root, file.path) as (source, status):
            outcome.mode = status.st_mode & 0o7777
            outcome.before = stamp(status)
            require_space(status.st_size, batch.staging_directory, staging, shown)
            target = _create(staging, file.staged_name, shown, batch.staging_directory)
            try:
                copied = copy_digesting(
                    source,
                    target,
                    status.st_size,
                    shown=shown,
                    where=batch.staging_directory,
                    stop=batch.stop.is_set,
                    moved=batch.moved,
                    checksum=batch.checksum,
                    digest=batch.digest,
                )
            finally:
                _close(target, shown, batch.staging_directory)
            outcome.size, outcome.digests, outcome.md5 = copied.size, copied.digests, copied.md5
            outcome.after = stamp(os.fstat(source))
        if not outcome.steady:
            raise changed(file.path)
    except (CopyError, OSError, DmException) as error:
        note(outcome, error, file.path)
        _discard(staging, file.staged_name)
    return outcome


def _create(staging: int, name: str, shown: str, where: bytes) -> int:
    try:
        _discard(staging, name)
        return os.open(name, _CREATE, 0o600, dir_fd=staging)
    except OSError as error:
        raise write_problem(shown, where, error) from error


def _close(target: int, shown: str, where: bytes) -> None:
    """Close what was written: quota and network file systems report here what they could not store."""
    try:
        os.close(target)
    except OSError as error:
        raise write_problem(shown, where, error) from error


def _discard(staging: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=staging)
    except FileNotFoundError:
        return
    except OSError:
        # a leftover that cannot be removed fails the next O_EXCL with its own text, and storage sweeps the directory
        return
