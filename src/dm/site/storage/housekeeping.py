"""The housekeeper: sweeps staging areas and sessions nobody needs any more, and sees to what else is due."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dm.common.errors import DmException
from dm.site.database.store import HOUSEKEEPING_LOCK, Store, try_lock
from dm.site.identity import audit, lockout
from dm.site.identity.sessions import SqlSessionStore
from dm.site.storage import batch_store, experiment_store, grants
from dm.site.storage.batches import TAKEN, Signal, remove_staging
from dm.site.storage.directories import STAGING
from dm.site.storage.publisher import Publisher

LOG = logging.getLogger(__name__)

_ROUND_SECONDS = 5.0
_SWEEP_SECONDS = 600.0
_STOP_SECONDS = 1.0
_DOCUMENT_HOURS = 24.0 * 7


class Housekeeper:
    """Works in the background from :meth:`start` to :meth:`stop`; of several processes one at a time.

    :param work: rung when an operation was asked for.
    :param staging_hours: age at which batches never handed over, and staging directories of unknown batches, go.
    :param duties: what else is due at each sweep.
    """

    def __init__(
        self,
        store: Store,
        *,
        publisher: Publisher,
        sessions: SqlSessionStore,
        work: Signal,
        staging_hours: float,
        duties: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._sessions = sessions
        self._work = work
        self._staging_hours = staging_hours
        self._duties = duties
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the first round comes at once."""
        self._thread = threading.Thread(target=self._run, name="housekeeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End within a second; a deletion under way goes on at the next start."""
        self._stop.set()
        self._work.ring()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            self._thread = None

    def _run(self) -> None:
        with audit.acting("housekeeper"):
            self._rounds()

    def _rounds(self) -> None:
        swept = -_SWEEP_SECONDS
        while not self._stop.is_set():
            seen = self._work.count()
            due = time.monotonic() - swept >= _SWEEP_SECONDS
            try:
                if self.round(sweep=due) and due:
                    swept = time.monotonic()
            except DmException as error:
                LOG.warning("housekeeping waits: %s", error)
            except Exception:
                LOG.exception("housekeeping")
            self._work.wait(seen, _ROUND_SECONDS)

    def round(self, sweep: bool = True) -> bool:
        """Do what is due; ``False`` if another process is at it.

        :param sweep: also sweep, which looks into every experiment's staging area.
        """
        with self._store.transaction() as connection:
            if not try_lock(connection, HOUSEKEEPING_LOCK, 0):
                return False
            self._publisher.take_over()
            if sweep:
                self._sessions.sweep()
                for duty in self._duties:
                    duty()
                self.sweep()
        return True

    def sweep(self) -> int:
        """Abandon batches never handed over, remove what ended batches left in staging; return how many went."""
        with self._store.transaction() as connection:
            for batch_id in batch_store.forsaken(connection, self._staging_hours):
                LOG.info("batch %s was never handed over; abandoned", batch_id)
                batch_store.abandon(connection, batch_id)
            batch_store.forget_documents(connection, _DOCUMENT_HOURS)
            lockout.sweep(connection)
            directories = experiment_store.live_directories(connection)
        return sum(self._sweep_staging(directory) for directory in directories if not self._stop.is_set())

    def _sweep_staging(self, directory: str) -> int:
        found: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(Path(directory, STAGING)) as entries:
            for entry in entries:
                with contextlib.suppress(DmException, FileNotFoundError):
                    batch_id = grants.uuid_text(entry.name.removesuffix(TAKEN), "Staging directory")
                    found[batch_id] = max(found.get(batch_id, 0.0), entry.stat(follow_symlinks=False).st_mtime)
        if not found:
            return 0
        with self._store.transaction() as connection:
            known, live = batch_store.known_and_live(connection, list(found))
        oldest = time.time() - self._staging_hours * 3600
        # A directory without a row is one whose batch is just being opened, or was rolled back: old ones only.
        gone = [name for name, mtime in found.items() if name not in live and (name in known or mtime < oldest)]
        for batch_id in gone:
            try:
                remove_staging(directory, batch_id)
            except OSError as error:
                LOG.warning("staging directory of batch %s in %s cannot be removed: %s", batch_id, directory, error)
        return len(gone)
