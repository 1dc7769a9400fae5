"""The background work of the facility service: what the facility says is read again and again."""

from __future__ import annotations

import threading

from dm.common.errors import DmException
from dm.site.facility.adapters.base import LOG
from dm.site.facility.reading import Readings

_LOOK_SECONDS = 30.0
_STOP_SECONDS = 8.0


class Refresher:
    """A thread that reads what is due. Several services may run one: each reading is done by one of them.

    :param look_seconds: how often to look whether something is due.
    """

    def __init__(self, readings: Readings, look_seconds: float = _LOOK_SECONDS) -> None:
        self._readings = readings
        self._look_seconds = look_seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the first look is at once."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="facility refresher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a reading that goes on is waited for, but not for long: what it did not finish is undone."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.is_set():
            for adapter, kind in list(self._readings.pairs()):
                if self._stopping.is_set():
                    return
                try:
                    self._readings.read(adapter, kind, due=True)
                except DmException as error:
                    LOG.warning("facility records not read: %s", error)
                except Exception:  # the other lists are to be read all the same
                    LOG.exception("reading %s of adapter %s", kind, adapter)
            self._stopping.wait(self._look_seconds)
