"""The life of the thread of one DAQ or upload: turn after turn, whatever goes wrong, from its resumption to its end."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from dm.common import statuses
from dm.common.errors import DmException, ServiceUnavailable
from dm.station.acquisition.closing import Closing
from dm.station.acquisition.pipeline import Pipeline
from dm.station.acquisition.resume import resume
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.task import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """What the thread of a task works with.

    :param closing: ends the task. :param ended: called with the task when its thread is over.
    """

    pipeline: Pipeline
    settings: AcquisitionSettings
    closing: Closing
    ended: Callable[[Task], None]


class Life(ABC):
    """See the module. What a turn does is said by a subclass."""

    def __init__(self, task: Task, means: Means) -> None:
        self.task = task
        self.pipeline = means.pipeline
        self.closing = means.closing
        self.ended = means.ended
        self.thread = threading.Thread(target=self._run, name=f"{task.kind}-{task.id[:8]}", daemon=True)
        self._retry = 0
        self._not_before = 0.0

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    @abstractmethod
    def _open(self) -> None:
        """Get ready for the turns."""

    @abstractmethod
    def _turn(self) -> bool:
        """Do what there is to do, waiting a little for it; return whether the task has come to its end."""

    @abstractmethod
    def _look_again(self) -> None:
        """See to it that what a failed turn may have missed is found by a later one."""

    @abstractmethod
    def _close(self) -> None:
        """Release what the turns needed."""

    def _run(self) -> None:
        task = self.task
        try:
            self._insist(lambda: resume(task, self.pipeline))
            self.pipeline.attach(task)
            self._open()
            if task.status == statuses.PENDING:
                self._insist(lambda: task.set(status=statuses.RUNNING))
            while not self._stopped() and not self._steady_turn():
                pass
            if not self._stopped():
                self._insist(lambda: self.closing.close(task))
        except _Stopped:
            _log.info("%s %s pauses: the service stops.", task.kind, task.id)
        except Exception:
            _log.exception("%s %s stopped unexpectedly; a restart of the service continues it.", task.kind, task.id)
            task.trouble = "Its thread stopped unexpectedly; a restart of the service continues it."
        finally:
            self.pipeline.detach(task)
            self._close()
            self.ended(task)
            task.wake.close()
            task.let_go()

    def _steady_turn(self) -> bool:
        """Do one turn; whatever goes wrong, the watch goes on, with a look at everything."""
        try:
            return self._turn()
        except _Stopped:
            raise
        except Exception as error:
            _log.exception("%s %s stumbled and goes on.", self.task.kind, self.task.id)
            self.task.trouble = f"Watching stumbled over {type(error).__name__}: {error}"
            self._retry += 1
            self._look_again()
            self.pipeline.stop_event.wait(self.pipeline.pause_for(self._retry))
            return False

    def _stopped(self) -> bool:
        return self.pipeline.stop_event.is_set()

    def _insist(self, action: Callable[[], object]) -> None:
        """Do something, again and again while the database or a service is down."""
        attempt = 0
        while True:
            if self._stopped():
                raise _Stopped
            try:
                action()
                return
            except DmException as error:
                attempt += 1
                self.task.trouble = error.message
                _log.warning("%s %s waits: %s", self.task.kind, self.task.id, error)
                self.pipeline.stop_event.wait(self.pipeline.pause_for(attempt))

    def _try(self, action: Callable[[], object]) -> bool:
        """Do something once; return whether that could be, and pause a little longer each time that it could not."""
        try:
            action()
        except ServiceUnavailable as error:
            self._retry += 1
            self._not_before = time.monotonic() + self.pipeline.pause_for(self._retry)
            self.task.trouble = error.message
            return False
        self._retry = 0
        return True


class _Stopped(Exception):  # noqa: N818 - not an error
    """The service stops."""
