"""The output of one process: a pipe that is emptied into a file.

A pipe, so that a script may open ``/dev/stdout`` and ``/dev/stderr`` (a file would be truncated by that); the bytes go
from pipe to file within the kernel. The file is made when there is something to put into it.
"""

from __future__ import annotations

import fcntl
import os

_PIECE = 1 << 20
_TURN = 1 << 20  # bytes of one stream before others have their turn
_SMALL_PIPE = 1 << 16
_CHECK = 16 << 20  # bytes between two looks at the free space


class Stream:
    """Standard output or error of a process.

    :param directory: descriptor of the directory of the file. :param name: of the file. :param what: said in reasons.
    :param limit: most bytes kept. :param reserve: bytes that stay free in the file system.
    """

    __slots__ = ("_checked", "_directory", "_file", "_limit", "_reserve", "_wide", "descriptor", "name", "size", "what")

    def __init__(self, descriptor: int, directory: int, name: str, what: str, *, limit: int, reserve: int) -> None:
        self.descriptor = descriptor
        self.name = name
        self.what = what
        self.size = 0
        self._directory = directory
        self._limit = limit
        self._reserve = reserve
        self._file = -1
        self._checked = 0
        self._wide = False

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return self.descriptor >= 0

    def pump(self, keep: bool = True) -> str:
        """Move what is there, up to a turn's share.

        :param keep: no: read it and drop it. :returns: why the process has to be stopped; empty when it has not.
        """
        moved = 0
        while moved < _TURN:
            try:
                count = self._move() if keep else len(os.read(self.descriptor, _PIECE))
            except BlockingIOError:
                return ""
            except OSError as error:
                return f"Its {self.what} could not be written: {error.strerror}."
            if count == 0:
                self.close_pipe()
                return ""
            moved += count
            if keep:
                self.size += count
                if self.size > self._limit:
                    return f"It wrote more than {self._limit} bytes to {self.what} (setting log_limit) and was stopped."
                if self.size - self._checked >= _CHECK:
                    self._checked = self.size
                    status = os.fstatvfs(self._file)
                    if status.f_bavail * status.f_frsize < self._reserve:
                        return f"The disk for the output is full up to its reserve of {self._reserve} bytes."
            if count >= _SMALL_PIPE and not self._wide:
                self._wide = True
                try:
                    fcntl.fcntl(self.descriptor, fcntl.F_SETPIPE_SZ, _PIECE)
                except OSError:
                    continue  # the account has its share of pipe memory: smaller pieces do as well
        return ""

    def _move(self) -> int:
        if self._file < 0:
            first = os.read(self.descriptor, _SMALL_PIPE)
            if first:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = os.open(self.name, flags, 0o600, dir_fd=self._directory)
                view = memoryview(first)
                while view:
                    view = view[os.write(self._file, view) :]
            return len(first)
        return os.splice(self.descriptor, self._file, _PIECE, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)

    def close_pipe(self) -> None:
        """Read no more; what is in the file stays."""
        for descriptor in (self.descriptor, self._file):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self._file = -1
