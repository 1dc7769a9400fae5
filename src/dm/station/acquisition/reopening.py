"""Going on with a DAQ or upload that had ended, for the sake of some of its files.

It runs once more, without watching or walking: its ledger is loaded, somebody's decision is carried out (see
:mod:`dm.station.acquisition.amends`), the files that are ready again are moved, and it ends again, with new counts.
After a restart it goes on like any other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from dm.common import statuses
from dm.common.errors import DmException
from dm.station.acquisition.life import Means
from dm.station.acquisition.runner import Runner
from dm.station.acquisition.scout import WATCH_KEYS, Hints
from dm.station.acquisition.store import Document
from dm.station.acquisition.transports.base import SourceEntry

if TYPE_CHECKING:
    from dm.station.acquisition.site import Grant
    from dm.station.acquisition.task import Task

_log = logging.getLogger(__name__)
_NEVER = 86_400.0

Decision = Callable[["Task"], int]


class Revisit:
    """Stands where a :class:`~dm.station.acquisition.scout.Scout` is: finds nothing new, but looks again at files on
    other hosts that turned out to have changed."""

    def __init__(self, task: Task, waiting: Callable[[], list[bytes]]) -> None:
        self.task = task
        self.waiting = waiting
        self.walks = 1
        self.problems: dict[bytes, str] = {}
        self.final = True
        self.walking = False
        self.reconciling = False
        self.unannounced = 0
        self.next = time.monotonic() + _NEVER

    def open(self) -> None:
        """There is nothing to listen to."""

    def close(self) -> None:
        """There is nothing to close."""

    def descriptor(self) -> int | None:
        """Return nothing to poll."""
        return None

    def look_at_all(self, when: float) -> None:
        """Have the files that wait looked at again by that time."""
        self.next = min(self.next, when)

    def start_over(self, now: float) -> None:
        """Do the same now."""
        self.look_at_all(now)

    def events(self, now: float) -> Hints:
        """Return nothing."""
        return Hints()

    def wanted(self, path: bytes) -> bool:
        """Whether a file of that name is taken."""
        return self.task.selection.takes(path)

    def report(self) -> dict[str, Any]:
        """Return what info records tell of the watch: what they told at the end."""
        told = self.task.document.get("counts") or {}
        return {key: told[key] for key in WATCH_KEYS if key in told}

    def step(self, now: float) -> Iterator[SourceEntry]:
        """Yield the files that wait, as their host lists them now."""
        if now < self.next or self.task.source.is_local:
            return
        paths = self.waiting()
        self.next = now + (1.0 if paths else _NEVER)
        for path in paths:
            try:
                yield from self.task.transport.walk(self.task.source, path)
            except DmException as error:
                self.task.trouble = error.message


class Reopened(Runner):
    """The thread of a task that goes on for some of its files.

    :param decision: to be carried out first; after a restart there is none, it is in the ledger.
    """

    def __init__(self, task: Task, means: Means, decision: Decision | None = None) -> None:
        super().__init__(task, means)
        revisit: Any = Revisit(task, self._paths)
        self.scout = revisit
        self.outcome: Future[int] = Future()
        self._decision = decision
        task.stopping = True

    def _paths(self) -> list[bytes]:
        return list(self.tracker.paths())

    def _steady_turn(self) -> bool:
        if self._decision is not None:
            decision, self._decision = self._decision, None
            try:
                self.outcome.set_result(decision(self.task))
            except DmException as error:
                self.outcome.set_exception(error)
            except Exception as error:
                _log.exception("A decision about files of %s could not be carried out.", self.task.id)
                self.outcome.set_exception(error)
        return super()._steady_turn()

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            if not self.outcome.done():  # so that nobody waits in vain
                self.outcome.set_exception(DmException("The service stopped meanwhile; say it again."))


def reopened(document: Document, grant: Grant, who: str) -> Document:
    """Return the fields of a task document that let it go on.

    :param grant: a new one; the old one was given back at the end. :param who: decided it.
    """
    return {
        "open": True,
        "status": statuses.RUNNING,
        "claim": f"again:{document['_id']}",
        "grant": {"id": grant.id, "secret": grant.secret},
        "reopened": int(document.get("reopened") or 0) + 1,
        "reopenedBy": who,
        "stopRequested": False,
        "abortRequested": False,
        "endTime": None,
        "errorMessage": "",
    }
