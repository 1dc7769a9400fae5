"""One question to the scheduler for all runs of ``dm-batch-run``: what they learn is shared through a small file.

A hundred of them ask ``qstat`` as often as one alone. The file lies in a directory of the account's own; where there is
none to be had each asks for itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from dm.station.processing.batch.outcome import Unavailable
from dm.station.processing.batch.schedulers import Listed, Scheduler


class SharedListing:
    """The list of the account's jobs, seldom asked for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        directory = _own_directory()
        cluster = hashlib.sha256(f"{scheduler.name}|{scheduler.place()}".encode(errors="surrogateescape")).hexdigest()
        self._file = directory / cluster[:16] if directory else None

    def get(self, since: float, oldest: float) -> dict[str, Listed] | None:
        """Return a list that was asked for after ``since`` (epoch seconds), and at most ``oldest`` seconds ago.

        :returns: ``None`` while another process asks for it. :raises Unavailable: the scheduler does not answer.
        """
        if self._file is None:
            return self.scheduler.listing()
        found = self._kept(since, oldest)
        if found is not None:
            return found
        with _locked(self._file.with_suffix(".lock")) as mine:
            if not mine:
                return None
            found = self._kept(since, oldest)
            return found if found is not None else self._asked(self._file)

    def _kept(self, since: float, oldest: float) -> dict[str, Listed] | None:
        if self._file is None:
            return None
        try:
            kept = json.loads(self._file.read_bytes())
            age = time.time() - kept["time"]
            if kept["time"] < since or not 0 <= age <= oldest:
                return None
            if kept["error"]:
                raise Unavailable(kept["error"])
            return {job: Listed(**values) for job, values in kept["jobs"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None  # nobody has asked yet, or it was written by another version

    def _asked(self, file: Path) -> dict[str, Listed]:
        began, error, jobs = time.time(), "", {}
        try:
            jobs = self.scheduler.listing()
        except Unavailable as failure:
            error = str(failure)
        new = file.with_suffix(f".{os.getpid()}")
        values = {"time": began, "error": error, "jobs": {job: asdict(listed) for job, listed in jobs.items()}}
        new.write_text(json.dumps(values))
        new.replace(file)
        if error:
            raise Unavailable(error)
        return jobs


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Try to lock a file; yields whether that was possible at once."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _own_directory() -> Path | None:
    """Return a directory that only this account can write to, on this host."""
    path = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"dm-batch-{os.geteuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return path if private else None
