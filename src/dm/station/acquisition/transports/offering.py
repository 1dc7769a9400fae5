"""Offering local files to a program that moves them, under their staged names and without names a user chose.

Every file is opened by us, following no link, and the program gets the descriptor's name below ``/proc``, or a link to
that under the staged name. So it never resolves a name of the source and cannot be led out of the data directory by a
swap. The digests come from the same descriptors, read while the program reads them too, so that both find the bytes in
memory.
"""

from __future__ import annotations

import os
import resource
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from dm.common.paths import display
from dm.station.acquisition.transports.base import FileOutcome, TransferBatch, TransferFile
from dm.station.acquisition.transports.copying import (
    CopyError,
    changed,
    copy_digesting,
    groups,
    note,
    opened_source,
    stamp,
)

# An account usually has 1,024 descriptors, and several batches are moved at the same time.
OPEN_FILES = 256 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 8192 else 512
GROUP_FILES = 32
GROUP_BYTES = 8 << 20


@dataclass(frozen=True)
class Offer:
    """One file that was opened.

    :param size: when it was. :param outcome: to be filled in.
    """

    file: TransferFile
    descriptor: int
    size: int
    outcome: FileOutcome

    @property
    def path(self) -> str:
        """The name under which other programs of this account can open it."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    @property
    def steady(self) -> bool:
        """Whether the file is still what it was when it was opened."""
        return stamp(os.fstat(self.descriptor)) == self.outcome.before


def parts(files: Sequence[TransferFile]) -> Iterator[Sequence[TransferFile]]:
    """Cut a batch so that it never needs more descriptors than an account usually has."""
    for first in range(0, len(files), OPEN_FILES):
        yield files[first : first + OPEN_FILES]


@contextmanager
def opened(
    batch: TransferBatch, files: Sequence[TransferFile], outcomes: Sequence[FileOutcome]
) -> Iterator[list[Offer]]:
    """Open files, to be offered as :attr:`Offer.path`.

    :param outcomes: of the files, in their order; those that cannot be opened get their error.
    :yields: the files that could be opened.
    """
    with ExitStack() as stack:
        offers: list[Offer] = []
        for file, outcome in zip(files, outcomes, strict=True):
            try:
                descriptor, status = stack.enter_context(opened_source(batch.source.root, file.path))
            except (CopyError, OSError) as error:
                note(outcome, error, file.path)
                continue
            outcome.mode, outcome.before = status.st_mode & 0o7777, stamp(status)
            offers.append(Offer(file, descriptor, status.st_size, outcome))
        yield offers


@contextmanager
def linked(offers: Sequence[Offer]) -> Iterator[str]:
    """Show opened files under their staged names in a private directory, for programs that take names from there."""
    with tempfile.TemporaryDirectory(prefix="dm-move-") as directory:
        for offer in offers:
            os.symlink(offer.path, os.path.join(directory, offer.file.staged_name))
        yield directory


@contextmanager
def digested(workers: Executor, batch: TransferBatch, offers: Sequence[Offer]) -> Iterator[None]:
    """Digest the files while the block moves them; afterwards look at them again.

    Files that changed get that as their error. When the block fails, the digesting is given up.
    """
    given_up = threading.Event()
    tasks = [workers.submit(_digest, batch, group, given_up) for group in groups(offers, GROUP_FILES, GROUP_BYTES)]
    try:
        yield
    except BaseException:
        given_up.set()
        raise
    finally:
        for task in tasks:
            task.result()
    for offer in offers:
        outcome = offer.outcome
        outcome.after = stamp(os.fstat(offer.descriptor))
        if not outcome.error and not outcome.steady:
            note(outcome, changed(offer.file.path), offer.file.path)


def _digest(batch: TransferBatch, offers: Sequence[Offer], given_up: threading.Event) -> None:
    """Digest files through our own descriptors."""
    for offer in offers:
        outcome = offer.outcome
        try:
            copied = copy_digesting(
                offer.descriptor,
                None,
                offer.size,
                shown=display(offer.file.path),
                where=batch.staging_directory,
                stop=lambda: batch.stop.is_set() or given_up.is_set(),
                moved=batch.moved,
                checksum=batch.checksum,
                digest=batch.digest,
            )
            outcome.size, outcome.digests, outcome.md5 = copied.size, copied.digests, copied.md5
        except (CopyError, OSError) as error:
            note(outcome, error, offer.file.path)
