"""The transport through rsync: one process per batch, for staging areas or sources on another machine.

*Pushing* (the source is here): rsync sees the files under their staged names only; see :mod:`.offering`.

*Pulling* (the source is ``@host:/path`` or ``rsync://host/module/path``): see :mod:`.rsync_pull`.
"""

from __future__ import annotations

import calendar
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel

from dm.common.errors import InvalidArgument, TransferError
from dm.common.paths import display
from dm.station.acquisition.transports.base import (
    FileOutcome,
    FileStamp,
    Source,
    SourceEntry,
    TransferBatch,
    TransferFile,
    Transport,
    storable,
)
from dm.station.acquisition.transports.copying import CopyError, mount_point, note
from dm.station.acquisition.transports.local import check_directory, require_root
from dm.station.acquisition.transports.offering import digested, linked, opened, parts
from dm.station.acquisition.transports.rsync_command import Caller, RsyncSettings
from dm.station.acquisition.transports.rsync_process import PARTIAL, require_version, stream
from dm.station.acquisition.transports.rsync_pull import SECOND, pull

_LISTED = re.compile(rb"([-a-z])\S{9,10}\s+(-?[\d,]+) (-?\d+/\d\d/\d\d \d\d:\d\d:\d\d) (.*)", re.DOTALL)


class Rsync(Transport):
    """Moves with rsync, over ssh or an rsync daemon, or locally."""

    name = "rsync"
    settings_model = RsyncSettings
    schemes = frozenset({"file", "ssh", "rsync"})
    remote_staging = True

    def __init__(self, settings: BaseModel) -> None:
        super().__init__(settings)
        assert isinstance(settings, RsyncSettings)
        self._program = settings.program
        self._caller = Caller(settings)
        self._workers = ThreadPoolExecutor(settings.workers, "digest")

    def close(self) -> None:
        """End the digesting threads."""
        self._workers.shutdown()

    @property
    def secrets(self) -> list[Path]:
        """Passwords and keys."""
        return self._caller.settings.secrets

    # --- the source -----------------------------------------------------------------------------------------

    def check(self, source: Source) -> None:
        """Check that the data directory exists and can be listed; see :meth:`Transport.check`.

        :raises CommunicationError: its host cannot be reached.
        """
        require_version(self._program)
        if source.is_local:
            check_directory(source)
            return
        with tempfile.TemporaryDirectory(prefix="dm-rsync-") as nowhere:
            arguments = ["-dn8", "--list-only", "--files-from=-", "--from0", *self._caller.origin(source)]
            listed = self._caller.short(
                *arguments, os.path.join(nowhere, "none", ""), names=self._caller.names(source, [b"."])
            )
        what = f"Data directory {source.text!r}"
        if listed.code == PARTIAL or any(b"change_dir" in line for line in listed.complaints):
            raise InvalidArgument(f"{what} cannot be read: {listed.sentence()}.")
        if listed.code:
            raise listed.failure(what)

    def walk(self, source: Source, below: bytes = b"") -> Iterator[SourceEntry]:
        """List a remote source; see :meth:`Transport.walk`. Times are whole seconds, all that rsync lists.

        :raises CommunicationError: :raises TransferError: the listing is not complete.
        """
        require_version(self._program)
        with tempfile.TemporaryDirectory(prefix="dm-rsync-") as nowhere:
            command = self._caller.command(
                "-rtn8",
                "--list-only",
                "--no-human-readable",
                "--files-from=-",
                "--from0",
                *self._caller.origin(source),
                os.path.join(nowhere, "none", ""),
            )
            names = self._caller.names(source, [below])
            for line in stream(command, names=names, what=f"Data directory {source.text!r}"):
                entry = _entry(line)
                if entry is not None:
                    yield entry

    def remove(self, source: Source, path: bytes, stamp: FileStamp) -> bool:
        """Remove a remote source file that is unchanged; see :meth:`Transport.remove`.

        rsync removes what is the same on both sides: here a placeholder of equal size and time. A changed file would
        be transferred first; with no place for temporary files that fails, and so it stays.
        """
        if self._listed(source, path) != stamp:
            return False
        with tempfile.TemporaryDirectory(prefix=b"dm-rsync-") as here:
            placeholder = os.path.join(here, os.path.basename(path))
            with open(placeholder, "wb") as empty:
                empty.truncate(stamp.size)
            os.utime(placeholder, ns=(0, stamp.mtime_ns))
            arguments = ["-t", "--remove-source-files", "--existing", "--temp-dir=/proc", "--no-relative"]
            places = ["--files-from=-", "--from0", *self._caller.origin(source), here + b"/"]
            result = self._caller.short(*arguments, *places, names=self._caller.names(source, [path]))
        return result.code == 0 and self._listed(source, path) is None

    def _listed(self, source: Source, path: bytes) -> FileStamp | None:
        """Return the stamp of one remote file, or ``None`` when it is not there."""
        try:
            return next((entry.stamp for entry in self.walk(source, path) if entry.path == path), None)
        except TransferError:
            return None

    # --- moving ---------------------------------------------------------------------------------------------

    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        """Move a batch; see :meth:`Transport.move`."""
        require_version(self._program)
        if batch.source.is_local:
            require_root(batch.source)
            return [outcome for part in parts(batch.files) for outcome in self._push(batch, part)]
        if batch.staging_host is not None:
            raise InvalidArgument(
                f"Data directory {batch.source.text!r} and staging on {batch.staging_host!r} are both remote; "
                "run the acquisition service on one of the two machines."
            )
        return pull(self._caller, batch, self._workers)

    def _push(self, batch: TransferBatch, files: Sequence[TransferFile]) -> list[FileOutcome]:
        """Send files that are here, digesting them meanwhile."""
        outcomes = [FileOutcome(file.staged_name) for file in files]
        with opened(batch, files, outcomes) as offers:
            if not offers:
                return outcomes
            with linked(offers) as directory, digested(self._workers, batch, offers):
                unsent = self._send(batch, directory, [offer.file.staged_name.encode() for offer in offers])
            for offer in offers:
                why = unsent.get(offer.file.staged_name)
                if why and not offer.outcome.error:
                    note(offer.outcome, CopyError(f"File {display(offer.file.path)!r} {why}."), offer.file.path)
        return outcomes

    def _send(self, batch: TransferBatch, directory: str, names: Sequence[bytes]) -> dict[str, str]:
        """Run rsync from the directory of links to staging.

        :returns: staged name -> why it did not arrive.
        """
        places = ["--files-from=-", "--from0", directory + "/", *self._caller.target(batch)]
        common = ["-Lpt", "--chmod=F600", "--modify-window=-1", *places]
        result = self._caller.move(batch, "-W8", "--ignore-times", *common, names=names)
        if result.code == 0:
            return {}
        compared = self._caller.move(batch, "-n8", "--out-format=%n", *common, names=names) if result.partial else None
        if compared is None or compared.code:
            raise result.failure(f"Staging on {batch.staging_host or 'this machine'}")
        where = batch.staging_host or f"the file system at {mount_point(batch.staging_directory)!r}"
        return {
            name.decode(): f"did not arrive on {where}: {result.complaint(name) or result.sentence()}"
            for name in set(names) & set(compared.lines)
        }


def _entry(line: bytes) -> SourceEntry | None:
    """Read a line of a listing; ``None`` for directories and other lines."""
    match = _LISTED.fullmatch(line)
    if match is None or match[1] == b"d":
        return None
    try:
        seconds = calendar.timegm(time.strptime(match[3].decode(), "%Y/%m/%d %H:%M:%S"))
    except ValueError:
        seconds = 0  # a year rsync can print and Python cannot
    kind = {b"-": "file", b"l": "link"}.get(match[1], "other")
    return SourceEntry(
        match[4], FileStamp(int(match[2].replace(b",", b"")), storable(seconds * SECOND) // SECOND * SECOND), kind
    )
