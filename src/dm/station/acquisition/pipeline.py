"""The pipeline: takes ready files of all DAQs and uploads in turn and carries them, batch by batch, to the end.

A fixed number of threads; each carries one batch as far as it goes. A batch that cannot go on at the moment is put
aside until its next try and holds no thread, so a service that is down stops nobody else. Memory is bounded: by files
queued and batches open per task; what is beyond stays in the database.
"""

from __future__ import annotations

import heapq
import logging
import random
import threading
import time
from collections import deque
from typing import Protocol

from dm.station.acquisition.batch import Batch
from dm.station.acquisition.rows import Item, State, path_key
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.task import Task
from dm.station.acquisition.transports.base import FileStamp

_log = logging.getLogger(__name__)
_MEGABYTE = 1 << 20
_IDLE = 1.0


class Carrier(Protocol):
    """What carries a batch; see :class:`dm.station.acquisition.carry.Carry`."""

    def advance(self, batch: Batch) -> float | None:
        """Carry a batch as far as it goes.

        :returns: ``None`` when it is over, else the seconds until it wants to be tried again.
        """


class Pipeline:
    """See the module.

    :param carrier: does the work. :param settings: sizes and pauses.
    """

    def __init__(self, settings: AcquisitionSettings) -> None:
        self.settings = settings
        self.carrier: Carrier | None = None
        self.stop_event = threading.Event()
        self.paused = ""  # why no work is taken (the lease is lost), if so
        self.condition = threading.Condition()
        self._tasks: deque[Task] = deque()
        self._resting: list[tuple[float, int, Batch]] = []
        self._order = 0
        self._threads: list[threading.Thread] = []

    def start(self, carrier: Carrier) -> None:
        """Start the threads."""
        self.carrier = carrier
        for number in range(self.settings.workers):
            thread = threading.Thread(target=self._work, name=f"pipeline-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, seconds: float = 8.0) -> bool:
        """Stop the threads; what they were doing is continued after the next start.

        :returns: whether all ended in time.
        """
        self.stop_event.set()
        with self.condition:
            self.condition.notify_all()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # --- what watching threads call ---------------------------------------------------------------------------------
    def attach(self, task: Task) -> None:
        """Serve a task from now on."""
        with self.condition:
            self._tasks.append(task)

    def serves(self, task: Task) -> bool:
        """Whether a task is attached, so its ledger loaded (under the condition)."""
        return task in self._tasks

    def detach(self, task: Task) -> None:
        """Serve a task no longer; its batches at rest are dropped from memory."""
        with self.condition:
            if task in self._tasks:
                self._tasks.remove(task)
            self._resting = [entry for entry in self._resting if entry[2].task is not task]
            heapq.heapify(self._resting)

    def add(self, task: Task, items: list[Item]) -> None:
        """Queue ready files; beyond the limit they stay in the database only."""
        with self.condition:
            for item in items:
                if len(task.queue) >= self.settings.queue_files:
                    task.spilled = True
                else:
                    task.push(item)
            self.condition.notify()

    def refill(self, task: Task) -> None:
        """Queue ready files that had found no place, when there is place again."""
        with self.condition:
            room = self.settings.queue_files - len(task.queue)
            if not task.spilled or room < self.settings.queue_files // 2:
                return
            limit = room + len(task.busy)
        found = task.ledger.refill(limit)
        with self.condition:
            task.spilled = len(found) >= limit
            for item in found:
                if len(task.queue) >= self.settings.queue_files:
                    task.spilled = True
                    break
                # Since it was read, it may have come to its end.
                known = task.ledger.knows(item.path, FileStamp(item.size, item.mtime_ns))
                if path_key(item.path) not in task.busy and known is State.READY:
                    task.push(item)
            self.condition.notify_all()

    def adopt(self, batch: Batch) -> None:
        """Go on with a batch of an earlier run, or with stored files whose plugins are to be tried again."""
        with self.condition:
            batch.task.batches[batch.id] = batch
            batch.task.busy.update(path_key(load.item.path) for load in batch.loads)
            self._rest(batch, 0.0)

    def hurry(self) -> None:
        """Look again at the batches that wait for a place among the movers: one is free."""
        with self.condition:
            if any(batch.crowded for _due, _order, batch in self._resting):
                self._resting = [(0.0 if entry[2].crowded else entry[0], *entry[1:]) for entry in self._resting]
                heapq.heapify(self._resting)
                self.condition.notify()

    def backlog(self) -> int:
        """Return the number of files waiting or on their way, over all tasks."""
        with self.condition:
            return sum(len(task.busy) for task in self._tasks)

    def pause_for(self, attempt: int) -> float:
        """Return the seconds to wait after so many failures in a row: exponential, with jitter."""
        longest = min(self.settings.retry_most_seconds, self.settings.retry_first_seconds * 2 ** min(attempt, 30))
        return longest * (0.5 + random.random() / 2)  # noqa: S311 - jitter

    # --- threads ----------------------------------------------------------------------------------------------------
    def _work(self) -> None:
        while self._carry_one():
            pass

    def _carry_one(self) -> bool:
        """Wait for a batch and carry it; return whether to go on. Between batches a thread holds on to none, as its
        task's ledger may be large."""
        assert self.carrier is not None
        batch = self._take()
        if batch is None:
            return False
        pause: float | None
        try:
            pause = self.carrier.advance(batch)
        except Exception:
            _log.exception("Batch %s of %s failed unexpectedly; it is tried again.", batch.id, batch.task.id)
            batch.attempt += 1
            pause = self.pause_for(batch.attempt)
        with self.condition:
            batch.task.active -= 1
            if pause is not None:
                self._rest(batch, pause)
            else:
                batch.task.batches.pop(batch.id, None)
            self.condition.notify_all()
        batch.task.wake.set()
        return True

    def _rest(self, batch: Batch, pause: float) -> None:
        batch.due = time.monotonic() + pause
        self._order += 1
        heapq.heappush(self._resting, (batch.due, self._order, batch))
        self.condition.notify()

    def _take(self) -> Batch | None:
        """Return the next batch to carry, or ``None`` at the end."""
        with self.condition:
            while not self.stop_event.is_set():
                found = _IDLE if self.paused else self._next()
                if isinstance(found, Batch):
                    return found
                self.condition.wait(found)
        return None

    def _next(self) -> Batch | float:
        """Return the batch whose turn it is, or the seconds until there may be one (under the condition)."""
        wait, now = _IDLE, time.monotonic()
        if self._resting:
            due = self._resting[0][0]
            if due <= now:
                batch = heapq.heappop(self._resting)[2]
                batch.task.active += 1
                return batch
            wait = min(wait, due - now)
        for _turn in range(len(self._tasks)):
            task = self._tasks[0]
            self._tasks.rotate(-1)
            patience = self._patience(task, now)
            if patience <= 0:
                return self._form(task)
            wait = min(wait, patience)
        return wait

    def _patience(self, task: Task, now: float) -> float:
        """Return how long a task's next batch should still wait; 0 or less for "now"."""
        task.promote(now)
        wait = task.delayed[0][0] - now if task.delayed else _IDLE
        limits = self.settings
        if (
            not task.queue
            or task.halted
            or task.active >= limits.batches_per_task
            or len(task.batches) >= limits.open_batches
            or any(batch.crowded for batch in task.batches.values())
        ):
            return max(wait, 0.001)
        if len(task.queue) >= limits.batch_files or not task.active:
            return 0.0  # only behind a batch on its way is it worth to wait for company
        return min(task.queue[0].since + limits.batch_linger_milliseconds / 1000 - now, wait)

    def _form(self, task: Task) -> Batch:
        """Take the next batch out of a task's queue."""
        items: list[Item] = []
        size = 0
        while task.queue and len(items) < self.settings.batch_files:
            item = task.queue[0]
            if items and (item.alone or items[0].alone or size + item.size > self.settings.batch_megabytes * _MEGABYTE):
                break
            items.append(task.queue.popleft())
            size += item.size
        batch = Batch.of(task, items)
        task.batches[batch.id] = batch
        task.active += 1
        return batch
