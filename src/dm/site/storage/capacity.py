"""What health says of the storages: whether they can be written to, and whether there is room."""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from dm.common.health import LEVELS, Health, Latch, Level
from dm.site.database import registry_store
from dm.site.database.store import Store
from dm.site.storage import deleted_store

LOG = logging.getLogger(__name__)
_GIGABYTE = 1 << 30
_CLEARED = 1.1  # so many times the minimum has to be free again
_CRITICAL = 10  # less than this part of the minimum is critical


class Storage:
    """One storage. Its sentences are for strangers, too: its directory stands in the log only.

    :param minimum: GiB that should be free.
    """

    def __init__(self, name: str, directory: str, minimum: float) -> None:
        self.name = name
        self.directory = directory
        self.minimum = minimum
        self.free = 0.0
        self._low = Latch()
        self._closed = False

    def look(self) -> tuple[Level, str]:
        """Return level and sentence of this moment; log what begins and ends."""
        closed = not os.access(self.directory, os.W_OK | os.X_OK)
        if closed != self._closed:
            LOG.log(
                logging.ERROR if closed else logging.INFO,
                "storage %s: directory %s is %s writable",
                self.name,
                self.directory,
                "not" if closed else "again",
            )
            self._closed = closed
        if closed:
            return "critical", f"{self.name}: its directory is not writable; the log names it"
        self.free = shutil.disk_usage(self.directory).free / _GIGABYTE
        before = self._low.raised
        low = self._low.update(self.free < self.minimum, self.free >= _CLEARED * self.minimum)
        if low != before:
            LOG.log(
                logging.WARNING if low else logging.INFO,
                "storage %s: %.1f GiB are free in %s; %g should be",
                self.name,
                self.free,
                self.directory,
                self.minimum,
            )
        level: Level = "ok"
        if low:
            level = "critical" if self.free < self.minimum / _CRITICAL else "warning"
        return level, f"{self.name}: {self.free:.1f} GiB free"


def watch(health: Health, store: Store, minimum: float) -> None:
    """Add the check ``storage`` and a gauge of what is free.

    :param minimum: GiB that should be free in each storage.
    """
    known: dict[tuple[str, str], Storage] = {}
    free = health.gauge("storage_free_bytes", "Bytes that may be written to a storage.", ("storage",))

    def check() -> tuple[Level, str]:
        with store.transaction() as connection:
            rows = registry_store.rows(connection, "storage")
        if not rows:
            return "warning", "no storage is registered; add one with dm-add-storage"
        keys = [(str(row["name"]), str(row["root_directory"])) for row in rows]
        storages = [known.setdefault(key, Storage(*key, minimum)) for key in keys]
        with ThreadPoolExecutor(len(storages)) as pool:
            found = list(pool.map(Storage.look, storages))
        for storage in storages:
            free.labels(storage.name).set(storage.free * _GIGABYTE)
        return max(found, key=lambda item: LEVELS.index(item[0]))

    health.check("storage", check)


def watch_deleted(health: Health, store: Store) -> None:
    """Add the check ``deleted``, and gauges, of what deleted experiments still take until they are purged."""
    waiting = health.gauge("experiments_deleted", "Deleted experiments that can still be restored.")
    taken = health.gauge("experiments_deleted_bytes", "Bytes of files of deleted experiments not purged yet.")

    def check() -> tuple[Level, str]:
        with store.transaction() as connection:
            count, size, following = deleted_store.waiting(connection)
        waiting.set(count)
        taken.set(size)
        if not count:
            return "ok", "no deleted experiment waits to be purged"
        when = f"{datetime.fromtimestamp(following).astimezone():%Y-%m-%d %H:%M}"
        taken_text = f"{size / _GIGABYTE:.1f} GiB"
        return "ok", f"{count} deleted experiments wait to be purged ({taken_text}), the next one at {when}"

    health.check("deleted", check)
