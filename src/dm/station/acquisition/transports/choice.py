"""Which transport moves a batch: within this machine's file systems where staging is reachable, else over the network.

The choice is made for every batch, not for every DAQ: storage may hand out a staging directory on another host
tomorrow, and a file system that is mounted here today may be gone.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence

from dm.common.errors import InvalidArgument, TransferError
from dm.common.paths import display
from dm.station.acquisition.transports.base import (
    FileOutcome,
    FileStamp,
    NoSettings,
    Source,
    SourceEntry,
    TransferBatch,
    Transport,
)


def reachable(directory: bytes) -> bool:
    """Whether a staging directory can be written on this machine.

    Its last component is the batch's own random id, so a directory of that path is the one storage made: on a shared
    file system, or because storage runs here.
    """
    return os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)


def _unmeasured(_transport: str, _seconds: float, _size: int) -> None:
    """Nobody measures."""


class Choice(Transport):
    """The transports of a station as one.

    :param transports: in the order of the settings; the first that can is taken.
    """

    name = "choice"

    def __init__(self, transports: Sequence[Transport]) -> None:
        super().__init__(NoSettings())
        self._transports = list(transports)
        self.measured: Callable[[str, float, int], None] = _unmeasured  # told of transport, seconds and bytes
        self.schemes = frozenset(scheme for transport in transports for scheme in transport.schemes)  # type: ignore[misc]

    def reader(self, source: Source) -> Transport:
        """Return the first transport that reads a source.

        :raises InvalidArgument: none does.
        """
        for transport in self._transports:
            if source.scheme in transport.schemes:
                return transport
        known = ", ".join(sorted(self.schemes)) or "none"
        raise InvalidArgument(
            f"No transport of this station reads {source.scheme!r} sources such as {source.text!r} (known: {known})."
        )

    def mover(self, source: Source, staging_host: str | None) -> Transport:
        """Return the first transport that reads a source and writes to a staging host (``None``: reachable here).

        :raises TransferError: none does.
        """
        for transport in self._transports:
            if source.scheme in transport.schemes and (staging_host is None or transport.remote_staging):
                return transport
        raise TransferError(
            f"Staging on {staging_host!r} is not reachable on this machine, and no transport of this station moves "
            f"{source.scheme!r} sources there; mount it, or configure acquisition.transports.rsync."
        )

    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        """Move a batch with the transport that fits it; see :meth:`Transport.move`."""
        if batch.staging_host is not None and reachable(batch.staging_directory):
            batch = dataclasses.replace(batch, staging_host=None)
        elif batch.staging_host is None and not os.path.isdir(batch.staging_directory):
            raise TransferError(f"Staging directory {display(batch.staging_directory)!r} does not exist.")
        mover, began = self.mover(batch.source, batch.staging_host), time.monotonic()
        outcomes = mover.move(batch)
        arrived = sum(outcome.size for outcome in outcomes if not outcome.error)
        self.measured(mover.name, time.monotonic() - began, arrived)
        return outcomes

    def check(self, source: Source) -> None:
        """Check that a source can be read; see :meth:`Transport.check`."""
        self.reader(source).check(source)

    def walk(self, source: Source, below: bytes = b"") -> Iterator[SourceEntry]:
        """List a remote source; see :meth:`Transport.walk`."""
        return self.reader(source).walk(source, below)

    def remove(self, source: Source, path: bytes, stamp: FileStamp) -> bool:
        """Remove a remote source file; see :meth:`Transport.remove`."""
        return self.reader(source).remove(source, path, stamp)

    def forget(self, batch_id: str) -> None:
        """Drop a batch; see :meth:`Transport.forget`."""
        for transport in self._transports:
            transport.forget(batch_id)

    def close(self) -> None:
        """Release what the transports hold."""
        for transport in self._transports:
            transport.close()
