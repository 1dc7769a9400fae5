"""What changed in a tree without events: directories tell by their modification time that names came or went.

Between two walks that look at every file, only directories are looked at, and only those are read whose time has
changed. A name that stays and gets other contents does not change the time: that is left to the walks over everything.
"""

from __future__ import annotations

import os
import time

_TRUSTED = 3.0  # seconds; two changes within one tick of a file system's clock, 2 s on vfat, leave the same time


class DirectoryTimes:
    """Remembers directories. Each round (:meth:`begin`, :meth:`note` for every directory, :meth:`end`) forgets those
    that were not met."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, int, float, bool]] = {}
        self._met: dict[bytes, tuple[int, int, float, bool]] | None = None

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, directory: bytes) -> bool:
        return directory in self._known

    def directories(self) -> list[bytes]:
        """Return those that are known, parents first."""
        return list(self._known)

    def begin(self) -> None:
        """Begin a round; one under way is given up."""
        self._met = {}

    def end(self) -> None:
        """End a round."""
        if self._met is not None:
            self._known, self._met = self._met, None

    def note(self, directory: bytes, descriptor: int) -> bool:
        """Remember an open directory that is about to be read.

        :returns: whether names may have come or gone since it was last read.
        """
        status = os.fstat(descriptor)
        now = time.monotonic()
        known = self._known.get(directory)
        settled = False
        if known is not None and known[:2] == (status.st_mtime_ns, status.st_ino):
            first, settled = known[2:]
        else:
            first = now
        target = self._known if self._met is None else self._met
        target[directory] = (status.st_mtime_ns, status.st_ino, first, settled or now - first >= _TRUSTED)
        return not settled
