"""What a run of ``dm-batch-run`` leaves on disk for the next one: which batch job it submitted, and its files.

A request's directory below ``.dm-batch`` in the shared directory exists from before the submission until the outcome
has been told; each job submitted for it has a directory of its own in there. Who wants to submit holds the request's
lock, and so does the submitting command itself, which may outlive a ``dm-batch-run`` that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dm.station.processing.batch import script
from dm.station.processing.batch.outcome import REFUSED, BatchError, End

PLACE = ".dm-batch"
_JOB, _LOCK = "job.json", "lock"
_LOCKLESS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre, as it is mounted by default
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


@dataclass
class Noted:
    """What is known of a request.

    :param name: unique name of its job, under which schedulers know it. :param scheduler: name of the scheduler.
    :param job: id of the job; empty while it is unknown whether there is one.
    :param time: of the submission, epoch seconds.
    """

    name: str
    scheduler: str
    job: str = ""
    time: float = 0.0


class State:
    """The directory of one request.

    :param shared: a directory on a file system that the execution hosts share. :param key: what the request is known
        by again; a file-name-safe text.
    :raises BatchError: the directory cannot be made.
    """

    def __init__(self, shared: Path, key: str) -> None:
        self.directory = shared / PLACE / key
        self._make()

    def _make(self) -> None:
        for _ in range(10):  # another run's end may remove what is being made
            try:
                self.directory.parent.mkdir(mode=0o700, exist_ok=True)
                self.directory.mkdir(mode=0o700, exist_ok=True)
            except FileNotFoundError:
                continue
            except OSError as error:
                place = self.directory.parent
                raise BatchError(
                    f"The job's files cannot be kept in {place}: {error.strerror}; name a directory that the "
                    "execution hosts share with --directory.",
                    REFUSED,
                ) from error
            try:
                for place in (self.directory.parent, self.directory):
                    _check_private(place)
            except FileNotFoundError:
                continue
            return
        raise BatchError(f"{self.directory} is removed again and again; try again.", REFUSED)

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Keep other runs of this request from submitting; yields the lock's descriptor for ``qsub``."""
        while True:
            try:
                descriptor = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                self._make()
                continue
            try:
                _lock(descriptor)
                if not self._is(descriptor):  # the run that had it ended, and removed everything
                    continue
                yield descriptor
                return
            finally:
                os.close(descriptor)

    def _is(self, descriptor: int) -> bool:
        try:
            return os.path.samestat((self.directory / _LOCK).stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def read(self) -> Noted | None:
        """Return what is noted; ``None`` when nothing was submitted, or when that was given up."""
        try:
            values = json.loads((self.directory / _JOB).read_text())
            return Noted(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise BatchError(
                f"{self.directory / _JOB} is damaged: {error}; remove {self.directory}.", REFUSED
            ) from error

    def note(self, noted: Noted) -> None:
        """Write what is known; durable when this returns."""
        _write(self.directory / _JOB, json.dumps(asdict(noted)).encode())
        _sync(self.directory.parent)

    def files(self, noted: Noted) -> Files:
        """Return the files of a job."""
        return Files(self.directory / noted.name)

    def remove(self) -> None:
        """Forget the request: its outcome has been told."""
        aside = self.directory.with_name(f".{self.directory.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            self.directory.rename(aside)  # at once, so that nobody sees half of it
            shutil.rmtree(aside, ignore_errors=True)
        try:
            self.directory.parent.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


class Files:
    """The files of one job. :param directory: below the request's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def make(self) -> None:
        """Make the directory."""
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of the job's; durable when this returns."""
        return _write(self.directory / name, content)

    def cancel(self) -> None:
        """Note that the job is not wanted any more: from now on it does not begin, and no run attaches to it."""
        with contextlib.suppress(FileNotFoundError):
            os.close(os.open(self.directory / script.CANCELLED, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            _sync(self.directory)

    @property
    def cancelled(self) -> bool:
        """Whether the job is not wanted any more."""
        return (self.directory / script.CANCELLED).exists()

    def begun(self) -> str:
        """Return the id of the job that has begun; empty when none has."""
        try:
            return next((path.name for path in (self.directory / script.BEGIN).iterdir()), "")
        except FileNotFoundError:
            return ""

    def ended(self) -> End | None:
        """Return what the job's script noted of its end."""
        try:
            status, signalled, stdout, stderr = map(int, (self.directory / script.END).read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        return End(status, bool(signalled), stdout, stderr)

    def withdraw(self) -> bool:
        """Remove them unless the job has begun; it cannot from then on. :returns: whether they are gone."""
        aside = self.directory.with_name(f"{self.directory.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileNotFoundError):
            self.directory.rename(aside)  # the job's script makes its begin in the directory of this name
            if (aside / script.BEGIN).exists():
                aside.rename(self.directory)
                return False
            shutil.rmtree(aside, ignore_errors=True)
        return True

    def remove(self) -> None:
        """Remove them: if it still waits, the job does not begin."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _LOCKLESS:
            raise


def _write(path: Path, content: bytes) -> Path:
    new = path.with_suffix(".new")
    with new.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)
    _sync(path.parent)
    return path


def new_name(name: str) -> str:
    """Return a name that no other job has. :param name: what a person chose."""
    return f"{name}.{''.join(secrets.choice(_LETTERS) for _ in range(8))}"


def _check_private(place: Path) -> None:
    """Refuse a directory in which others could change what runs. :raises BatchError: it is one, or a link."""
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise BatchError(f"{place} is a link, or belongs to another account; remove it.", REFUSED)
    if status.st_mode & 0o022:
        raise BatchError(f"{place} may be written to by others; chmod 700 it, or remove it.", REFUSED)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
