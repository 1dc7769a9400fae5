"""One process at a time works with an acquisition database.

The lease names its owner. A second process refuses to start while the owner lives: on the same host it looks whether
the owner's process does, elsewhere it watches for the lease time, on its own clock, whether the owner's beat goes on.
Each new owner counts the fence up. An owner that finds another name in the lease stops taking work at once.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from dm.common.errors import ConfigurationError, DmException
from dm.station.acquisition.store import Document, Store

_log = logging.getLogger(__name__)
_STAT_START_FIELD = 19  # field 22 of /proc/<pid>/stat, counted after the command's closing parenthesis


def process_start(pid: int) -> str:
    """Return when a process of this boot started, in clock ticks, or empty text when it does not live."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else f"{boot}:{fields[_STAT_START_FIELD]}"


class Lease:
    """See the module.

    :param seconds: a silent owner on another host has lost it after so long.
    :param lost: called when somebody else has it.
    """

    def __init__(self, store: Store, seconds: float, lost: Callable[[], None]) -> None:
        self.store = store
        self.seconds = seconds
        self.lost = lost
        self.owner = uuid.uuid4().hex
        self.fence = 0
        self._beat = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take the lease and keep it.

        :raises ConfigurationError: another process has it and lives.
        """
        deadline = time.monotonic() + 2 * self.seconds + 5
        while True:
            seen = self.store.lease()
            if seen is not None and seen.get("owner"):
                self._wait_for_silence(seen)
            self.fence = int((seen or {}).get("fence") or 0) + 1
            mine: Document = {
                "owner": self.owner,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": process_start(os.getpid()),
                "fence": self.fence,
                "beat": 0,
            }
            if self.store.take_lease(seen, mine):
                break
            if time.monotonic() > deadline:
                raise ConfigurationError("Another acquisition service is taking this database; use one of its own.")
        self._thread.start()

    def _wait_for_silence(self, seen: Document) -> None:
        """Return when the owner is dead or silent."""
        where = f"process {seen.get('pid')} on {seen.get('host')}"
        if seen.get("host") == socket.gethostname():
            if process_start(int(seen.get("pid") or 0)) != seen.get("started"):
                return
            raise ConfigurationError(
                f"Another acquisition service ({where}) works with this database; stop it, or use another database."
            )
        deadline = time.monotonic() + self.seconds
        while time.monotonic() < deadline:
            self._stop.wait(min(1.0, self.seconds / 4))
            now = self.store.lease() or {}
            if not now.get("owner"):
                return
            if now.get("beat") != seen.get("beat") or now.get("owner") != seen.get("owner"):
                raise ConfigurationError(
                    f"Another acquisition service ({where}) works with this database; stop it, or use another database."
                )

    def _keep(self) -> None:
        while not self._stop.wait(self.seconds / 4):
            self._beat += 1
            try:
                if not self.store.renew_lease(self.owner, self._beat):
                    _log.error("Another acquisition service took this database; this one takes no more work.")
                    self.lost()
                    return
            except DmException as error:
                _log.warning("The lease could not be renewed: %s", error)

    def release(self) -> None:
        """Give the lease back."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5)
        try:
            self.store.release_lease(self.owner)
        except DmException as error:
            _log.warning("The lease could not be given back: %s", error)
