"""Passing on what a job prints, from its files on the shared file system, while it runs and whole at the end."""

from __future__ import annotations

import os
import time
from pathlib import Path

_BLOCK = 1 << 16
_SECONDS = 30.0  # until what another host has written is seen here


class Relay:
    """Copies a growing file to a descriptor."""

    def __init__(self, source: Path, target: int) -> None:
        self.source = source
        self.target = target
        self.copied = 0
        self._gone = False  # who read us

    def pump(self) -> None:
        """Copy what has come."""
        try:
            source = os.open(self.source, os.O_RDONLY | os.O_CLOEXEC)  # anew, as network file systems look then
        except FileNotFoundError:
            return
        try:
            while block := os.pread(source, _BLOCK, self.copied):
                self.copied += len(block)
                self._write(block)
        finally:
            os.close(source)

    def _write(self, block: bytes) -> None:
        try:
            while block and not self._gone:
                block = block[os.write(self.target, block) :]
        except BrokenPipeError:
            self._gone = True

    def finish(self, size: int | None) -> bool:
        """Copy the rest. :param size: of the whole, where known. :returns: whether it all came."""
        self.pump()
        deadline = time.monotonic() + _SECONDS
        while size is not None and self.copied < size and time.monotonic() < deadline:
            time.sleep(0.2)
            self.pump()
        return size is None or self.copied >= size
