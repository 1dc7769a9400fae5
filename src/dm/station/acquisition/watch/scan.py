"""Walking a local data directory: the truth that events only hint at.

Names are bytes. Links are never followed, not even when a directory is swapped for one while the walk is under way, so
a walk cannot leave the tree or run in circles.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dm.common.paths import MAX_PATH, display
from dm.station.acquisition.transports.base import FileStamp, SourceEntry

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 2000  # entries of a directory handed over together


def kind_of(mode: int) -> str:
    """Return the :class:`SourceEntry` kind of a mode."""
    if stat.S_ISREG(mode):
        return "file"
    return "link" if stat.S_ISLNK(mode) else "other"


def _yes(_path: bytes) -> bool:
    return True


def _no(_path: bytes) -> bool:
    return False


def _read(_directory: bytes, _descriptor: int) -> bool:
    return True


@dataclass
class Walk:
    """One walk, resumable: iterate over it a bit, do something else, go on.

    :param root: absolute directory; it may itself be a link, everything below may not.
    :param enters: asked for every relative directory before it is read.
    :param before: called with every relative directory before it is read (to watch it first); may return ``False`` to
        leave the directory out.
    :param start: relative directories to begin with, the root by default.
    :param opened: called with every relative directory and its descriptor; may return ``False`` to leave it unread.
    :param passes: whether a regular file of that relative path need not be looked at.
    """

    root: bytes
    enters: Callable[[bytes], bool] = _yes
    before: Callable[[bytes], bool] = _yes
    start: Sequence[bytes] = (b"",)
    opened: Callable[[bytes, int], bool] = _read
    passes: Callable[[bytes], bool] = _no
    problems: dict[bytes, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[SourceEntry]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self) -> Iterator[list[SourceEntry]]:
        """Iterate over lists of what was found: at least one, perhaps empty, for each directory."""
        pending = deque(self.start)
        while pending:
            directory = pending.popleft()
            if self.before(directory):
                yield from self._directory(directory, pending)
            elif not directory:
                self._root_is_gone()

    def _root_is_gone(self) -> None:
        self.problems[b""] = f"Data directory {display(self.root)!r} does not exist any more."

    def _directory(self, directory: bytes, pending: deque[bytes]) -> Iterator[list[SourceEntry]]:
        """Read one directory; what disappears meanwhile is simply not there."""
        flags = _FLAGS if directory else _FLAGS & ~os.O_NOFOLLOW
        try:
            descriptor = os.open(os.path.join(self.root, directory), flags)
        except FileNotFoundError:
            if not directory:
                self._root_is_gone()
            return
        except OSError as error:
            self.problems[directory] = f"Directory {display(directory or self.root)!r}: {error.strerror}."
            return
        entries: list[SourceEntry] = []
        try:
            if self.opened(directory, descriptor):
                with os.scandir(descriptor) as found:
                    for number, entry in enumerate(found, 1):
                        self._entry(directory, entry, entries, pending)
                        if number % _CHUNK == 0:
                            yield entries
                            entries = []
        except OSError as error:
            self.problems[directory] = f"Directory {display(directory or self.root)!r}: {error.strerror}."
        finally:
            os.close(descriptor)
        yield entries

    def _entry(
        self, directory: bytes, entry: os.DirEntry[str], entries: list[SourceEntry], pending: deque[bytes]
    ) -> None:
        name = os.fsencode(entry.name)
        path = directory + b"/" + name if directory else name
        try:
            if self.passes(path) and entry.is_file(follow_symlinks=False):
                return
            status = entry.stat(follow_symlinks=False)
        except OSError:
            return
        if stat.S_ISDIR(status.st_mode):
            if self.enters(path):
                pending.append(path)
        elif (length := len(self.root) + 1 + len(path)) > MAX_PATH:
            # beyond that the system opens and looks at nothing by its path, so nobody could tell when it is whole
            self.problems[path] = (
                f"Path {display(path[:80])!r}... is too long: {length} bytes with its data directory, of {MAX_PATH}."
            )
        else:
            entries.append(SourceEntry(path, FileStamp.of(status), kind_of(status.st_mode)))
