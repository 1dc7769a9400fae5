"""Background work that comes again and again: one thread, which no error ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from dm.common.caller import Caller, calling
from dm.common.errors import DmException

LOG = logging.getLogger(__name__)


class Rounds:
    """Works in a thread of its own from :meth:`start` to :meth:`stop`.

    :param name: of the thread, and what the log calls it.
    :param work: does one round and returns after how many seconds the next one is due. Where a round may take long, it
        looks at :attr:`stopping`. What it raises is logged, and it is called again after ``retry_seconds``.
    :param first_seconds: when the first round is due. :param caller: on whose behalf it works, for the audit log.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], float],
        *,
        retry_seconds: float,
        first_seconds: float = 0.0,
        caller: Caller | None = None,
    ) -> None:
        self.stopping = threading.Event()
        self._name = name
        self._work = work
        self._retry_seconds = retry_seconds
        self._first_seconds = first_seconds
        self._caller = caller or Caller(actor=name)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self.stopping.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Ask for the end, wait so long for a round under way, and return whether it has ended."""
        self.stopping.set()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def _run(self) -> None:
        wait = self._first_seconds
        with calling(self._caller):
            while not self.stopping.wait(wait):
                try:
                    wait = self._work()
                except DmException as error:
                    LOG.warning("%s: tried again later: %s", self._name, error)
                    wait = self._retry_seconds
                except Exception:
                    LOG.exception("%s", self._name)
                    wait = self._retry_seconds
