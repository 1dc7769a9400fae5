"""Walking a local data directory: the truth that events only hint at.

Names are bytes. Links are never followed, not even when a directory is swapped for one while the walk is under way, so
a walk cannot leave the tree or run in circles.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dm.common.paths import MAX_PATH, display
from dm.station.acquisition.transports.base import FileStamp, SourceEntry

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def kind_of(mode: int) -> str:
    """Return the :class:`SourceEntry` kind of a mode."""
    if stat.S_ISREG(mode):
        return "file"
    return "link" if stat.S_ISLNK(mode) else "other"


@dataclass
class Walk:
    """One walk, resumable: iterate over it a bit, do something else, go on.

    :param root: absolute directory; it may itself be a link, everything below may not.
    :param enters: asked for every relative directory before it is read.
    :param before: called with every relative directory before it is read (to watch it first); may return ``False`` to
        leave the directory out.
    :param start: relative directories to begin with, the root by default.
    """

    root: bytes
    enters: Callable[[bytes], bool] = lambda _directory: True
    before: Callable[[bytes], bool] = lambda _directory: True
    start: tuple[bytes, ...] = (b"",)
    problems: dict[bytes, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[SourceEntry]:
        pending = deque(self.start)
        while pending:
            directory = pending.popleft()
            if not self.before(directory):
                if not directory:
                    self._root_is_gone()
                continue
            entries, directories = self._read(directory)
            pending.extend(directories)
            yield from entries

    def _root_is_gone(self) -> None:
        self.problems[b""] = f"Data directory {display(self.root)!r} does not exist any more."

    def _read(self, directory: bytes) -> tuple[list[SourceEntry], list[bytes]]:
        """Read one directory; what disappears meanwhile is simply not there."""
        entries: list[SourceEntry] = []
        directories: list[bytes] = []
        flags = _FLAGS if directory else _FLAGS & ~os.O_NOFOLLOW
        try:
            descriptor = os.open(os.path.join(self.root, directory), flags)
        except FileNotFoundError:
            if not directory:
                self._root_is_gone()
            return entries, directories
        except OSError as error:
            self.problems[directory] = f"Directory {display(directory or self.root)!r}: {error.strerror}."
            return entries, directories
        try:
            with os.scandir(descriptor) as found:
                for entry in found:
                    path = os.path.join(directory, os.fsencode(entry.name))
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        if self.enters(path):
                            directories.append(path)
                        continue
                    if len(path) > MAX_PATH:
                        self.problems[path] = f"Path {display(path[:80])!r}... is longer than {MAX_PATH} bytes."
                        continue
                    stamp = FileStamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
                    entries.append(SourceEntry(path, stamp, kind_of(status.st_mode)))
        except OSError as error:
            self.problems[directory] = f"Directory {display(directory or self.root)!r}: {error.strerror}."
        finally:
            os.close(descriptor)
        return entries, directories
