"""The publishers: threads that claim batches and publish them, and keep at it until it is done.

Any number of processes on any number of hosts may run them: a claim is a row lock, a lease and a fence in the database.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import psutil

from dm.common.errors import DmException, InternalError
from dm.site.database.store import Store
from dm.site.storage import batch_store
from dm.site.storage.batches import Signal, remove_staging
from dm.site.storage.directories import Owners
from dm.site.storage.publishing import Batch, ClaimLostError, Publishing
from dm.site.storage.settings import StorageSettings
from dm.site.storage.verification import StoppedError

LOG = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_LONGEST_DELAY = 60.0
_GIVE_UP_AFTER = 10
_STOP_SECONDS = 6.0


class Publisher:
    """Publishes in the background from :meth:`start` to :meth:`stop`.

    :param queued: rung when a batch was handed over; wakes the threads.
    :param ended: rung by us when a batch is committed.
    """

    def __init__(self, store: Store, owners: Owners, settings: StorageSettings, queued: Signal, ended: Signal) -> None:
        self._store = store
        self._settings = settings
        self._queued = queued
        self._ended = ended
        self._owner = (
            f"{socket.gethostname()}/{os.getpid()}/{psutil.Process().create_time():.2f}/{uuid.uuid4().hex[:8]}"
        )
        self._pool = ThreadPoolExecutor(settings.verify_threads, "verify")
        self._stop = threading.Event()
        self._publishing = Publishing(store, owners, self._pool, self._stop)
        self._claims: dict[str, int] = {}
        self._claims_lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.published_files = 0
        self.failed_files = 0

    def start(self) -> None:
        """Take over what dead publishers of this host left, and begin."""
        self.take_over()
        if not self._settings.publisher_threads:
            return
        for number in range(self._settings.publisher_threads):
            self._threads.append(threading.Thread(target=self._run, name=f"publish-{number}", daemon=True))
        self._threads.append(threading.Thread(target=self._heartbeat, name="publish-lease", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End within seconds: files being put in place are finished, those being digested wait for the next start."""
        self._stop.set()
        self._queued.ring()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        if any(thread.is_alive() for thread in self._threads):
            LOG.warning("a publisher is still busy; what it does is done again after the next start")
        self._threads.clear()
        self._pool.shutdown(wait=False)

    def take_over(self) -> int:
        """End the leases of publishers of this host that died, and return how many batches that frees."""
        try:
            with self._store.transaction() as connection:
                dead = [owner for owner in batch_store.publishing_owners(connection) if _is_dead(owner)]
                freed = batch_store.expire(connection, dead) if dead else 0
        except DmException:
            return 0
        if freed:
            LOG.info("took over %d batches of publishers that died", freed)
        return freed

    def _run(self) -> None:
        while not self._stop.is_set():
            seen = self._queued.count()
            try:
                batch = self._claim()
            except DmException as error:
                LOG.warning("cannot claim a batch: %s", error)
                self._stop.wait(_POLL_SECONDS)
                continue
            except Exception:
                LOG.exception("cannot claim a batch")
                self._stop.wait(_POLL_SECONDS)
                continue
            if batch is None:
                self._queued.wait(seen, _POLL_SECONDS)
            else:
                self._publish(batch)

    def _claim(self) -> Batch | None:
        with self._store.transaction(durable=False) as connection:
            batch_id = batch_store.claim(connection, self._owner, self._settings.lease_seconds)
            row = batch_store.get(connection, batch_id) if batch_id else None
            return Batch.of(row) if row else None

    def _publish(self, batch: Batch) -> None:
        with self._claims_lock:
            self._claims[batch.id] = batch.fence
        try:
            if batch.attempts > _GIVE_UP_AFTER:
                error = InternalError(f"Batch {batch.id} failed {batch.attempts - 1} times; see the storage log.")
                items = self._publishing.give_up(batch, error)
            else:
                items = self._publishing.publish(batch)
        except ClaimLostError:
            LOG.warning("batch %s was taken over by another publisher", batch.id)
            return
        except StoppedError:
            self._give_back(batch)
            return
        except Exception as error:
            LOG.exception("publishing batch %s, attempt %d", batch.id, batch.attempts)
            self._release(batch, f"{type(error).__name__}: {error}")
            return
        finally:
            with self._claims_lock:
                self._claims.pop(batch.id, None)
        failed = sum(item.error is not None for item in items)
        self.failed_files += failed
        self.published_files += len(items) - failed
        self._ended.ring()
        try:
            remove_staging(batch.directory, batch.id)
        except OSError as error:
            LOG.warning("staging of batch %s stays until the next sweep: %s", batch.id, error)

    def _release(self, batch: Batch, error: str) -> None:
        delay = min(2.0 ** (batch.attempts - 1), _LONGEST_DELAY)
        while not self._stop.is_set():
            try:
                with self._store.transaction() as connection:
                    batch_store.release(connection, batch.id, batch.fence, delay, error)
                return
            except DmException:
                self._stop.wait(_POLL_SECONDS)  # without the database the lease runs out by itself

    def _give_back(self, batch: Batch) -> None:
        """Return a batch unharmed because the service stops; this attempt does not count."""
        try:
            with self._store.transaction() as connection:
                batch_store.give_back(connection, batch.id, batch.fence)
        except DmException as error:
            LOG.warning("batch %s waits until its lease runs out: %s", batch.id, error)

    def _heartbeat(self) -> None:
        while not self._stop.wait(self._settings.lease_seconds / 4):
            with self._claims_lock:
                claims = list(self._claims.items())
            try:
                if claims:
                    with self._store.transaction() as connection:
                        batch_store.renew(connection, claims, self._settings.lease_seconds)
            except Exception:
                LOG.exception("cannot renew leases")


def _is_dead(owner: str) -> bool:
    """Whether a claim's owner is a process of this host that no longer runs."""
    host, pid, created, _ = owner.split("/", 3)
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        # one that ended and was not waited for yet holds its number, but does nothing more
        return abs(process.create_time() - float(created)) > 1.0 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
