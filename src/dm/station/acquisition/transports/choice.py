"""Which transport moves a batch: the first of the settings that can, else the next.

The choice is made for every batch, not for every DAQ: storage may hand out a staging directory on another host
tomorrow, and a file system that is mounted here today may be gone. A transport whose servers do not answer is left out
for that host for a while, at first half a minute, and the next one that can takes its batches; then it is tried again.
Which transport moved a file is in its outcome, and in the metrics.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

from dm.common.errors import CommunicationError, ConfigurationError, DmException, InvalidArgument, TransferError
from dm.common.paths import display
from dm.station.acquisition.transports.base import (
    FileOutcome,
    FileStamp,
    NoSettings,
    Source,
    SourceEntry,
    TransferBatch,
    Transport,
    storable,
)

_LARGEST = (1 << 63) - 1
_log = logging.getLogger(__name__)


def reachable(directory: bytes) -> bool:
    """Whether a staging directory can be written on this machine.

    Its last component is the batch's own random id, so a directory of that path is the one storage made: on a shared
    file system, or because storage runs here.
    """
    return os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)


def _place(batch: TransferBatch) -> str:
    """Return what a transport could not reach when it fails: the ends of the way that are not here."""
    return f"{batch.source.host or ''} {batch.staging_host or ''}"


def _inside(path: bytes) -> bool:
    return b"\0" not in path and not any(part in (b"", b".", b"..") for part in path.split(b"/"))


def _holds(stamp: FileStamp) -> bool:
    return 0 <= stamp.size <= _LARGEST and storable(stamp.mtime_ns) == stamp.mtime_ns


def _storable(stamp: FileStamp) -> FileStamp:
    return dataclasses.replace(stamp, size=min(max(stamp.size, 0), _LARGEST), mtime_ns=storable(stamp.mtime_ns))


def _unmeasured(_transport: str, _seconds: float, _size: int) -> None:
    """Nobody measures."""


class Choice(Transport):
    """The transports of a station as one.

    :param transports: in the order of the settings; the first that can is taken, the others stand in for it.
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
        able = [transport for transport in self._transports if source.scheme in transport.schemes]
        if able:
            return next((transport for transport in able if transport.serves(source, None)), able[0])
        known = ", ".join(sorted(self.schemes)) or "none"
        raise InvalidArgument(
            f"No transport of this station reads {source.scheme!r} sources such as {source.text!r} (known: {known})."
        )

    def movers(self, batch: TransferBatch) -> list[tuple[Transport, TransferBatch]]:
        """Return the transports that can move a batch, each with the batch as it is to see it; those that rest last.

        A batch that one of them has begun already, and may still be moving, is that one's alone.

        :raises TransferError: none can.
        """
        host = batch.staging_host
        here = reachable(batch.staging_directory) if host is not None else True
        direct = dataclasses.replace(batch, staging_host=None) if here else batch
        found = [
            (transport, batch if host is not None and transport.through_host(batch.source, host) else direct)
            for transport in self._transports
        ]
        holding = [(transport, seen) for transport, seen in found if transport.holds(batch.batch_id)]
        able = holding or [
            (transport, seen) for transport, seen in found if transport.serves(seen.source, seen.staging_host)
        ]
        if not able:
            raise TransferError(
                f"Staging on {host!r} is not reachable on this machine, and no transport of this station moves "
                f"{batch.source.scheme!r} sources there; mount it, or configure acquisition.transports.rsync."
            )
        return sorted(able, key=lambda pair: pair[0].rests.has(_place(pair[1])))

    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        """Move a batch with the first transport that can; see :meth:`Transport.move`."""
        if batch.staging_host is None and not os.path.isdir(batch.staging_directory):
            raise TransferError(f"Staging directory {display(batch.staging_directory)!r} does not exist.")
        problem: DmException | None = None
        movers = self.movers(batch)
        for number, (transport, seen) in enumerate(movers, 1):
            began = time.monotonic()
            try:
                outcomes = transport.move(seen)
            except (CommunicationError, ConfigurationError) as error:
                pause = transport.rests.begin(_place(seen))
                if transport.holds(batch.batch_id):
                    raise
                problem = problem or error
                if number < len(movers):
                    after = f"{movers[number][0].name} takes over; it is tried again in {pause:g} s"
                    _log.warning(
                        "Transport %s cannot move batch %s: %s; %s", transport.name, batch.batch_id, error, after
                    )
                continue
            transport.rests.end(_place(seen))
            arrived = sum(outcome.size for outcome in outcomes if not outcome.error)
            self.measured(transport.name, time.monotonic() - began, arrived)
            for outcome in outcomes:
                outcome.transport = transport.name
            return outcomes
        assert problem is not None
        raise problem

    def check(self, source: Source) -> None:
        """Check that a source can be read; see :meth:`Transport.check`."""
        self.reader(source).check(source)

    def walk(self, source: Source, below: bytes = b"") -> Iterator[SourceEntry]:
        """List a remote source; see :meth:`Transport.walk`.

        What lists it is another machine: names that lead out of the data directory are left out, and sizes and times
        are such as databases hold.
        """
        told = False
        for entry in self.reader(source).walk(source, below):
            if _inside(entry.path):
                yield entry if _holds(entry.stamp) else dataclasses.replace(entry, stamp=_storable(entry.stamp))
            elif not told:
                _log.warning("Data directory %s lists %r, which is no name in it.", source.text, entry.path[:300])
                told = True

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
