"""Whole outputs of processes, in files that stay until their job is deleted or their time is over.

``<directory>/<job id>/<child number>.stdout`` and ``.stderr``. All calls block: they belong into threads.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import Literal

from dm.common.errors import InvalidArgument

Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_DAY = 86_400.0


class Logs:
    """Output files of jobs.

    :param directory: where they are kept; made when missing, private to the service.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _place(self, job: str) -> Path:
        if not isinstance(job, str) or not _NAME.fullmatch(job):
            raise InvalidArgument(f"{str(job)[:100]!r} is not the id of a job.")
        return self.directory / job

    def _file(self, job: str, number: int, stream: str) -> Path:
        if stream not in STREAMS:
            raise InvalidArgument(f"{stream[:100]!r} is not an output of a process; say stdout or stderr.")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InvalidArgument(f"{str(number)[:100]!r} is not the number of a process of a job.")
        return self._place(job) / f"{number}.{stream}"

    def keep(self, job: str, number: int, stdout: Path | None, stderr: Path | None) -> None:
        """Take over the outputs of an ended process; files that are gone already are left as they are.

        :param stdout: :param stderr: moved, or copied and removed where they lie in another file system.
        :raises InvalidArgument: no such job id or number. :raises OSError: the disk cannot take them; the files are
            where they were.
        """
        targets = [self._file(job, number, stream) for stream in STREAMS]
        for source, target in zip((stdout, stderr), targets, strict=True):
            if source is None:
                continue
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # nothing printed, or taken over before a crash
                _move(source, target)

    def path(self, job: str, number: int, stream: str) -> Path | None:
        """Return the file of an output, or ``None`` when none is kept.

        :param stream: ``stdout`` or ``stderr``. :raises InvalidArgument: no such job id, number or stream.
        """
        file = self._file(job, number, stream)
        return file if file.is_file() else None

    def remove(self, job: str) -> None:
        """Remove all outputs of a job. :raises InvalidArgument: it is no job id. :raises OSError: they stay."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._place(job))

    def expire(self, days: float) -> int:
        """Remove the outputs of jobs to which none was added for so many days, and return the number of jobs.

        :param days: 0 or less: keep all.
        """
        if days <= 0 or not self.directory.is_dir():
            return 0
        oldest, removed = time.time() - days * _DAY, 0
        for place in self.directory.iterdir():
            if _NAME.fullmatch(place.name) and place.is_dir() and not place.is_symlink():
                with contextlib.suppress(OSError):  # comes again, and /status tells of a full or failing disk
                    if place.stat().st_mtime < oldest:
                        shutil.rmtree(place)
                        removed += 1
        return removed


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system
        part = target.with_name(target.name + ".part")
        try:
            shutil.copyfile(source, part)
            part.chmod(0o600)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        source.unlink(missing_ok=True)
