"""Keeping the database small: DAQs and uploads that ended long ago are forgotten, with their ledgers.

What they brought stays where it is, in storage and in the catalog. Only what has ended is forgotten, some hundred rows
at a time with a pause after each, so that running DAQs do not notice. A DAQ that is half forgotten when the service
stops is forgotten to its end later; nobody sees it any more.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from dm.common import timestamps
from dm.common.errors import DmException

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office

_log = logging.getLogger(__name__)
_FIRST_SECONDS = 60.0  # after the start, which has enough to do
_EVERY_SECONDS = 3600.0
_CHUNK = 500
_PAUSE_SECONDS = 0.02
_DAY = 86_400.0


class Keeping:
    """See the module.

    :param office: whose database it is. :param days: how long what has ended is kept; 0 is for ever.
    """

    def __init__(self, office: Office, days: float) -> None:
        self.office = office
        self.days = days
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin to look from time to time, if there is an age."""
        if self.days > 0:
            self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the thread, which ends when the service stops."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        stop = self.office.pipeline.stop_event
        wait = _FIRST_SECONDS
        while not stop.wait(wait):
            wait = _EVERY_SECONDS
            if self.office.pipeline.paused:
                continue
            try:
                self.prune()
            except DmException as error:
                _log.warning("What ended long ago is forgotten later: %s", error)

    def prune(self) -> int:
        """Forget what ended more than so many days ago.

        :returns: how many DAQs and uploads. :raises ServiceUnavailable: the database is down; the rest is done later.
        """
        store, stop = self.office.store, self.office.pipeline.stop_event
        count = 0
        for task in store.ended_before(timestamps.now() - self.days * _DAY):
            if stop.is_set():
                break
            if not self.office.retire(task):
                continue
            while not stop.is_set() and store.forget_some(task, _CHUNK):
                stop.wait(_PAUSE_SECONDS)
            if not stop.is_set():
                store.forget_task(task)
                count += 1
        if count:
            _log.info("%d DAQs and uploads that ended more than %g days ago are forgotten.", count, self.days)
        return count
