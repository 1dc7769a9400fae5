"""Events of a directory tree, straight from inotify.

Only what says "whole" is asked for: a writer closed a file, something was moved in, a directory appeared. A new
directory is watched first and walked afterwards, so that nothing made in it in between is missed; whoever reads the
events does the walking (:attr:`Changes.directories`). A full kernel queue is reported as :attr:`Changes.overflow`: walk
everything.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from struct import Struct

from inotify_simple import INotify, flags

_HEADER = Struct("iIII")
_MASK = (
    flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.CREATE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.DONT_FOLLOW
    | flags.EXCL_UNLINK
)
_READ = 1 << 18


@dataclass
class Changes:
    """What happened since the last read.

    :param files: relative paths that were closed after writing, or moved in; in order, each once.
    :param directories: relative directories that appeared: watch and walk them.
    :param overflow: events were lost, or part of the tree was unmounted: walk everything.
    :param root_gone: the watched tree itself was removed or renamed.
    """

    files: dict[bytes, None] = field(default_factory=dict)
    directories: dict[bytes, None] = field(default_factory=dict)
    overflow: bool = False
    root_gone: bool = False


class TreeWatch:
    """Watches a tree; not thread safe.

    A directory that was moved out of the tree would be reported on for ever: around each walk over everything,
    :meth:`begin` and :meth:`sweep` forget what the walk did not meet.

    :param root: absolute directory as bytes.
    :ivar exhausted: the system's limit of watches was reached: rely on scans.
    """

    def __init__(self, root: bytes) -> None:
        self.root = root
        self._inotify = INotify(nonblocking=True)
        self._paths: dict[int, bytes] = {}
        self._met: set[int] | None = None
        self.exhausted = False

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._inotify.fileno()

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, directory: bytes) -> bool:
        """Watch one relative directory; call it before reading the directory.

        :returns: whether the directory may be walked: ``False`` when it is gone or is a link.
        """
        path = os.path.join(self.root, directory)
        mask = _MASK if directory else _MASK & ~flags.DONT_FOLLOW
        try:
            # The kernel returns the same number for a directory that was only renamed: its new path replaces the old.
            number = self._inotify.add_watch(path, mask)
            self._paths[number] = directory
            if self._met is not None:
                self._met.add(number)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                self.exhausted = True
        return True

    def begin(self) -> None:
        """Say that a walk over everything begins."""
        self._met = set()
        self.exhausted = False

    def sweep(self) -> None:
        """Say that it ended, and forget directories that are not in the tree any more."""
        met, self._met = self._met, None
        if met is None:
            return
        for number in [number for number in self._paths if number not in met]:
            del self._paths[number]
            with contextlib.suppress(OSError):  # the directory itself may be gone, and its watch with it
                self._inotify.rm_watch(number)

    def read(self) -> Changes:
        """Return all that is queued, without waiting."""
        changes = Changes()
        while True:
            try:
                data = os.read(self._inotify.fileno(), _READ)
            except BlockingIOError:
                return changes
            self._parse(data, changes)

    def _parse(self, data: bytes, changes: Changes) -> None:
        offset = 0
        while offset < len(data):
            number, mask, _cookie, length = _HEADER.unpack_from(data, offset)
            start = offset + _HEADER.size
            offset = start + length
            if mask & flags.Q_OVERFLOW:
                changes.overflow = True
                continue
            directory = self._paths.get(number)
            if directory is None:
                continue
            if mask & flags.IGNORED:
                del self._paths[number]
            elif mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT):
                if not directory:
                    changes.root_gone = True
                elif mask & flags.UNMOUNT:
                    changes.overflow = True
            else:
                path = os.path.join(directory, data[start:offset].rstrip(b"\0"))
                if mask & flags.ISDIR:
                    changes.directories[path] = None
                elif mask & (flags.CLOSE_WRITE | flags.MOVED_TO):
                    changes.files[path] = None
                # A created file is of no interest before it is closed, except one that never is: hard links and
                # special files appear complete. The periodic walk finds them.

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()
