"""The background work of the facility service: what the facility says is read again and again."""

from __future__ import annotations

from dm.common.caller import Caller
from dm.common.errors import DmException
from dm.common.rounds import Rounds
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
        caller = Caller(actor="facility-refresher", service="facility")
        self._rounds = Rounds("facility refresher", self._round, retry_seconds=look_seconds, caller=caller)

    def start(self) -> None:
        """Begin; the first look is at once."""
        self._rounds.start()

    def stop(self) -> None:
        """End; a reading that goes on is waited for, but not for long: what it did not finish is undone."""
        self._rounds.stop(_STOP_SECONDS)

    def _round(self) -> float:
        for adapter, kind in list(self._readings.pairs()):
            if self._rounds.stopping.is_set():
                break
            try:
                self._readings.read(adapter, kind, due=True)
            except DmException as error:
                LOG.warning("facility records not read: %s", error)
            except Exception:  # the other lists are to be read all the same
                LOG.exception("reading %s of adapter %s", kind, adapter)
        return self._look_seconds
