"""The transport through Globus Transfer: one task per batch, submitted once, followed over restarts.

Globus moves the files from a collection that shows this machine's data directories to one that shows the storage; no
byte passes through DM. While it moves them, DM digests them here: what storage verifies is what left the source, and
not what Globus thinks it sent. Names at the destination are opaque, as with every transport.

What is known of a task lies in a small file (:mod:`.globus_record`): a service that was killed finds its task again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from dm.common.errors import ConfigurationError, DmException, InvalidArgument, ServiceUnavailable, TransferError
from dm.common.paths import display
from dm.station.acquisition.transports.base import FileOutcome, Source, TransferBatch, TransferFile, Transport
from dm.station.acquisition.transports.copying import CopyError, changed, copy_digesting, note, opened_source, stamp
from dm.station.acquisition.transports.globus_record import Record, Records, Sent
from dm.station.acquisition.transports.globus_session import GlobusSettings, Session, on_collection
from dm.station.acquisition.transports.globus_task import TaskAtGlobus
from dm.station.acquisition.transports.local import check_directory, require_root

if TYPE_CHECKING:
    from globus_sdk import TransferClient

_log = logging.getLogger(__name__)
_SLICE = 0.25


class Globus(Transport):
    """Moves with Globus Transfer."""

    name = "globus"
    settings_model = GlobusSettings
    schemes = frozenset({"file"})
    remote_staging = True

    def __init__(self, settings: BaseModel) -> None:
        super().__init__(settings)
        assert isinstance(settings, GlobusSettings)
        self._own = settings
        self._session = Session(settings)
        self._records = Records(settings.state_directory)
        self._workers = ThreadPoolExecutor(settings.workers, "digest")
        self._slots = threading.BoundedSemaphore(settings.tasks)

    def close(self) -> None:
        """End the digesting threads."""
        self._workers.shutdown()

    @property
    def secrets(self) -> list[Path]:
        """The credential files, and what is kept of tasks."""
        files = [self._own.client_secret_file, self._own.refresh_token_file, self._own.state_directory]
        return [file for file in files if file is not None]

    def serves(self, source: Source, staging_host: str | None) -> bool:
        """Whether the source collection shows the data directory; see :meth:`Transport.serves`."""
        return super().serves(source, staging_host) and self._shown(source) is not None

    def holds(self, batch_id: str) -> bool:
        """Whether a task was, or may have been, submitted for a batch; see :meth:`Transport.holds`."""
        return self._records.load(batch_id) is not None

    def check(self, source: Source) -> None:
        """Check that the data directory can be read and that the collection shows it; see :meth:`Transport.check`."""
        check_directory(source)
        if self._shown(source) is None:
            raise InvalidArgument(
                f"Data directory {source.text!r} is not shown by the Globus collection; add it to "
                "acquisition.transports.globus.source_paths."
            )

    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        """Let Globus move a batch; see :meth:`Transport.move`.

        :raises ServiceUnavailable: the task waits for something, or the service stops: called again, the same task is
            followed further.
        """
        if not batch.source.is_local:
            raise InvalidArgument(f"Transport 'globus' moves directories of this machine, not {batch.source.text!r}.")
        require_root(batch.source)
        with self._slot(batch), self._session.client() as client:
            self._cancel_unwanted(client)
            record = self._records.load(batch.batch_id)
            destination = self._destination(batch)
            work = _Work(self._own, batch, {file.staged_name: FileOutcome(file.staged_name) for file in batch.files})
            if record is None or record.destination != destination:
                files = work.look()
                if not files:
                    return list(work.outcomes.values())
                submission = str(self._session.call(client.get_submission_id)["value"])
                record = Record(batch.batch_id, destination, submission, files)
                self._records.save(record)
            task = TaskAtGlobus(self._session, client, self._records, record)
            task.submit()
            with work.digesting(record, self._workers):
                try:
                    if not record.ended:
                        task.judge(task.wait(batch))
                    work.finish_digests()
                    if batch.stop.is_set():
                        raise ServiceUnavailable("The service stops; the batch is taken up again later.")
                finally:
                    if self._records.load(batch.batch_id) is not None:
                        self._records.save(record)  # with the digests so far
            return work.judged(record)

    def forget(self, batch_id: str) -> None:
        """Cancel what still runs for a batch and drop its record; see :meth:`Transport.forget`."""
        record = self._records.load(batch_id)
        if record is None or record.ended:
            self._records.drop(batch_id)
            return
        try:
            with self._session.client() as client:
                self._cancel(client, record)
        except DmException:
            record.unwanted = True
            self._records.save(record)
            raise

    def _cancel(self, client: TransferClient, record: Record) -> None:
        task = TaskAtGlobus(self._session, client, self._records, record)
        with suppress(TransferError):  # refused: then there is none
            task.submit()  # it may have been accepted without our knowing: this tells its id
        task.cancel()

    def _cancel_unwanted(self, client: TransferClient) -> None:
        """Cancel the tasks of batches that were given up while Globus could not be reached."""
        try:
            for record in self._records.unwanted():
                self._cancel(client, record)
        except DmException as error:
            _log.info("A Globus task that nobody wants is canceled later: %s", error)

    @contextmanager
    def _slot(self, batch: TransferBatch) -> Iterator[None]:
        """Wait for a place among the tasks that run at once."""
        while not self._slots.acquire(timeout=_SLICE):
            if batch.stop.is_set() or batch.aborted():
                raise ServiceUnavailable("The transfer was given up because the service stops; it is repeated later.")
        try:
            yield
        finally:
            self._slots.release()

    def _shown(self, source: Source) -> str | None:
        """Return where the collection shows a data directory; ``None``: not at all, or under no name Globus can say."""
        with suppress(ValueError):
            return on_collection(source.root.rstrip(b"/") + b"/", self._own.source_paths)
        return None

    def _destination(self, batch: TransferBatch) -> str:
        path = batch.staging_directory.rstrip(b"/") + b"/"
        try:
            found = on_collection(path, self._own.destination_paths)
        except ValueError as error:
            raise ConfigurationError(f"Globus cannot name the staging directory {display(path)!r}: {error}.") from None
        if found is None:
            raise ConfigurationError(
                f"Staging directory {display(path)!r} is not shown by the Globus collection; add it to "
                "acquisition.transports.globus.destination_paths."
            )
        return found


@dataclass
class _Work:
    """What this machine does for one batch: looking at the files before and after, and digesting them meanwhile.

    :param outcomes: staged name -> outcome, for every file of the batch.
    """

    settings: GlobusSettings
    batch: TransferBatch
    outcomes: dict[str, FileOutcome]
    _running: list[Future[None]] = field(default_factory=list)
    _given_up: threading.Event = field(default_factory=threading.Event)

    def look(self) -> dict[str, Sent]:
        """Look at every file before it is sent; what cannot be sent is told in its outcome."""
        files: dict[str, Sent] = {}
        for file in self.batch.files:
            outcome = self.outcomes[file.staged_name]
            try:
                with opened_source(self.batch.source.root, file.path) as (_descriptor, status):
                    files[file.staged_name] = Sent(self._path(file), status.st_mode & 0o7777, stamp(status))
            except (CopyError, OSError, DmException) as error:
                note(outcome, error, file.path)
        return files

    def _path(self, file: TransferFile) -> str:
        whole = self.batch.source.root.rstrip(b"/") + b"/" + file.path
        shown = display(file.path)
        try:
            found = on_collection(whole, self.settings.source_paths)
        except ValueError:
            raise CopyError(
                f"File {shown!r} has a name that Globus cannot carry (not UTF-8, or with control characters); "
                "rename it, or use another transport.",
                transient=False,
            ) from None
        if found is None:
            raise CopyError(
                f"File {shown!r} is not shown by the Globus collection; add its directory to "
                "acquisition.transports.globus.source_paths."
            )
        return found

    @contextmanager
    def digesting(self, record: Record, workers: ThreadPoolExecutor) -> Iterator[None]:
        """Digest, in the background, what is not digested yet; given up when the block fails."""
        todo = [
            (file, record.files[file.staged_name])
            for file in self.batch.files
            if file.staged_name in record.files and not record.files[file.staged_name].digests
        ]
        self._running = [workers.submit(self._digest, file, sent) for file, sent in todo]
        try:
            yield
        finally:
            self._given_up.set()
            for running in self._running:
                running.cancel()
            for running in self._running:
                if not running.cancelled():
                    running.exception()  # waits; errors are in the outcomes

    def finish_digests(self) -> None:
        """Wait until everything is digested."""
        for running in self._running:
            running.result()

    def _digest(self, file: TransferFile, sent: Sent) -> None:
        try:
            with opened_source(self.batch.source.root, file.path) as (descriptor, status):
                if stamp(status) != sent.stamp:
                    raise changed(file.path)
                copied = copy_digesting(
                    descriptor,
                    None,
                    status.st_size,
                    shown=display(file.path),
                    where=b"/",
                    stop=self._is_over,
                    checksum=self.batch.checksum,
                    digest=self.batch.digest,
                )
            sent.size, sent.md5 = copied.size, copied.md5
            sent.digests = copied.digests  # last: a record saved at this moment has all of it or is digested again
        except (CopyError, OSError, DmException) as error:
            note(self.outcomes[file.staged_name], error, file.path)

    def _is_over(self) -> bool:
        return self._given_up.is_set() or self.batch.stop.is_set()

    def judged(self, record: Record) -> list[FileOutcome]:
        """Return what became of each file, after another look at it."""
        for file in self.batch.files:
            outcome, sent = self.outcomes[file.staged_name], record.files.get(file.staged_name)
            if outcome.error:
                continue
            try:
                if sent is None:
                    raise CopyError(f"File {display(file.path)!r} was not sent with its batch; it is moved later.")
                sent.fill(outcome)
                with opened_source(self.batch.source.root, file.path) as (_descriptor, status):
                    outcome.after = stamp(status)
                if not outcome.steady:
                    raise changed(file.path)
                if sent.problem:
                    raise CopyError(f"File {display(file.path)!r} was not moved: {sent.problem}.", sent.transient)
            except (CopyError, OSError, DmException) as error:
                note(outcome, error, file.path)
        return _in_order(self.batch.files, self.outcomes)


def _in_order(files: Sequence[TransferFile], outcomes: dict[str, FileOutcome]) -> list[FileOutcome]:
    return [outcomes[file.staged_name] for file in files]
