"""What must survive a crash of a batch that Globus carries: submission id, task, and what was read of its files.

Globus accepts a submission id once, however often it is sent. It is therefore written to disk before the task is
submitted: whoever finds it there later asks for the same task again instead of a second one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dm.common.errors import ConfigurationError, InvalidArgument
from dm.station.acquisition.transports.base import FileOutcome, FileStamp

_log = logging.getLogger(__name__)
_BATCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: Globus keeps a paused task for 90 days; a record that is older belongs to nothing any more.
_FORGOTTEN_SECONDS = 91 * 86_400


@dataclass
class Sent:
    """One file of a task.

    :param source: its path on the source collection. :param mode: permission bits at the source.
    :param stamp: taken before the task was submitted.
    :param size: bytes digested, :param digests: :param md5: see :class:`FileOutcome`; empty until it was digested.
    :param problem: why Globus did not bring it, empty while unknown or when it did. :param transient: of the problem.
    """

    source: str
    mode: int
    stamp: FileStamp
    size: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    md5: str = ""
    problem: str = ""
    transient: bool = True

    def fill(self, outcome: FileOutcome) -> None:
        """Write what was read of the file before and during the task into its outcome."""
        outcome.mode, outcome.before = self.mode, self.stamp
        outcome.size, outcome.digests, outcome.md5 = self.size, dict(self.digests), self.md5


@dataclass
class Record:
    """One batch.

    :param destination: the staging directory on the destination collection, with a slash at its end.
    :param files: staged name -> what was sent under it. :param task: id at Globus, empty until it is known.
    :param ended: whether the task is over and its verdict stands in the files.
    :param unwanted: nobody wants the batch any more, but Globus could not be told so yet.
    """

    batch: str
    destination: str
    submission: str
    files: dict[str, Sent]
    task: str = ""
    ended: bool = False
    unwanted: bool = False


class Records:
    """The records of this station, one small file each.

    :param directory: made when needed, readable by this account only.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._swept = 0.0
        self._unwanted: set[str] | None = None  # batches, once they were looked for

    def load(self, batch: str) -> Record | None:
        """Return the record of a batch; ``None`` when there is none, or none that can be read."""
        path = self._path(batch)
        try:
            values = json.loads(path.read_bytes())
            files = {
                name: Sent(**{**sent, "stamp": FileStamp(**sent["stamp"])}) for name, sent in values["files"].items()
            }
            return Record(**{**values, "files": files})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.warning("Globus record %s cannot be read, so its task is submitted anew: %s", path, error)
            return None

    def save(self, record: Record) -> None:
        """Write a record so that it survives a crash of this machine.

        :raises ConfigurationError: the directory cannot be written.
        """
        path = self._path(record.batch)
        new = path.with_suffix(".new")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as stream:
                stream.write(json.dumps(asdict(record)).encode())
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(path)
            self._sync()
        except OSError as error:
            raise ConfigurationError(
                f"Globus record {path} cannot be written: {error.strerror}; "
                "correct acquisition.transports.globus.state_directory."
            ) from error
        if record.unwanted:
            self._known_unwanted().add(record.batch)
        self._sweep()

    def unwanted(self) -> list[Record]:
        """Return the records of batches whose tasks are still to be canceled."""
        found = [self.load(batch) for batch in sorted(self._known_unwanted())]
        return [record for record in found if record is not None]

    def _known_unwanted(self) -> set[str]:
        if self._unwanted is None:
            records = [self.load(path.stem) for path in self.directory.glob("*.json") if _BATCH.fullmatch(path.stem)]
            self._unwanted = {record.batch for record in records if record is not None and record.unwanted}
        return self._unwanted

    def drop(self, batch: str) -> None:
        """Forget a batch; one that is not known is fine."""
        with contextlib.suppress(FileNotFoundError):
            self._path(batch).unlink()
        if self._unwanted is not None:
            self._unwanted.discard(batch)

    def _path(self, batch: str) -> Path:
        if not _BATCH.fullmatch(batch):
            raise InvalidArgument(f"Batch id {batch!r} is not plain; the pipeline chooses such ids.")
        return self.directory / f"{batch}.json"

    def _sync(self) -> None:
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove, once an hour, what no batch will ask for again."""
        if self._swept and time.monotonic() - self._swept < 3600:
            return
        self._swept = time.monotonic()
        oldest = time.time() - _FORGOTTEN_SECONDS
        for path in self.directory.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
