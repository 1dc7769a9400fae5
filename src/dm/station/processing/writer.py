"""Group commit: what many jobs have to write at the same time goes to the database together, with one flush to disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dm.common.errors import DmException, ProcessingError, ServiceUnavailable
from dm.common.spent import part
from dm.station.processing.store import Store

log = logging.getLogger(__name__)
_LARGEST_GROUP = 500
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0

Document = dict[str, Any]


class ServiceEnds(ServiceUnavailable):
    """Nothing is written any more; the next service goes on from what is on disk."""


@dataclass
class Change:
    """What changes of one job.

    :param values: fields of its document. :param children: processes stored outside of it, by number.
    """

    values: Document = field(default_factory=dict)
    children: dict[int, Document] = field(default_factory=dict)
    waiting: list[Future[None]] = field(default_factory=list)


class Writer:
    """One thread that writes jobs; whoever waits for a result is told when it is on disk.

    :param store: where to.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._condition = threading.Condition()
        self._changes: dict[str, Change] = {}
        self._new: list[tuple[Document, Future[bool]]] = []
        self._closed = False
        self._not_before = 0.0
        self._pause = _FIRST_PAUSE
        self._thread = threading.Thread(target=self._work, name="job-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Write what is there, once, and end. While the database is away, what is not written is told as refused."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def add(self, document: Mapping[str, Any]) -> Future[bool]:
        """Insert a job.

        :returns: ``True`` once it is on disk, ``False`` when a job of this id exists;
            :class:`~dm.common.errors.ServiceUnavailable` when it may not have been stored.
        """
        future: Future[bool] = Future()
        future.set_running_or_notify_cancel()
        with self._condition:
            if self._closed:
                future.set_exception(_closed())
                return future
            self._new.append((dict(document), future))
            self._condition.notify()
        return future

    def update(self, job_id: str, values: Mapping[str, Any], children: Iterable[Document] = ()) -> Future[None]:
        """Set fields of a job and store its processes; outages of the database delay it.

        :returns: done when it is on disk; :class:`~dm.common.errors.ProcessingError` when the database refuses it,
            :class:`ServiceEnds` when the service ended before.
        """
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # who gives up waiting cancels nothing
        with self._condition:
            if self._closed:
                future.set_exception(_closed())
                return future
            change = self._changes.setdefault(job_id, Change())
            change.values.update(values)
            change.children.update((child["number"], child) for child in children)
            change.waiting.append(future)
            self._condition.notify()
        return future

    def _work(self) -> None:
        while (group := self._next()) is not None:
            with part("records"):
                self._insert(group[0])
                self._update(group[1])

    def _next(self) -> tuple[list[tuple[Document, Future[bool]]], dict[str, Change]] | None:
        """Wait for something to write, and take it; ``None`` at the end."""
        with self._condition:
            while not self._new:
                left = self._not_before - time.monotonic()
                if self._changes and (left <= 0 or self._closed):
                    break
                if self._closed:
                    return None
                self._condition.wait(left if self._changes else None)
            new, self._new = self._new[:_LARGEST_GROUP], self._new[_LARGEST_GROUP:]
            changes: dict[str, Change] = {}
            if self._closed or self._not_before <= time.monotonic():
                changes = {name: self._changes.pop(name) for name in list(self._changes)[:_LARGEST_GROUP]}
            return new, changes

    def _insert(self, new: list[tuple[Document, Future[bool]]]) -> None:
        if not new:
            return
        try:
            answers = self._store.add_jobs([document for document, _ in new])
        except DmException as error:
            for _, future in new:
                future.set_exception(error)
            return
        except Exception as error:  # what the client cannot encode concerns one of them, and must not end this thread
            if len(new) > 1:
                for one in new:
                    self._insert([one])
                return
            new[0][1].set_exception(_unstorable(error))
            return
        for (_, future), answer in zip(new, answers, strict=True):
            if isinstance(answer, DmException):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _update(self, changes: dict[str, Change]) -> None:
        if not changes:
            return
        refused: Mapping[str, DmException]
        try:
            refused = self._store.update_jobs({name: (c.values, c.children) for name, c in changes.items()})
            self._pause = _FIRST_PAUSE
        except ServiceUnavailable as error:
            log.warning("%s", error)
            if self._later(changes):
                return
            refused = dict.fromkeys(changes, _closed())
        except DmException as error:
            refused = dict.fromkeys(changes, error)
        except Exception as error:  # as above
            if len(changes) > 1:
                for name, change in changes.items():
                    self._update({name: change})
                return
            refused = dict.fromkeys(changes, _unstorable(error))
        for name, change in changes.items():
            for future in change.waiting:
                if name in refused:
                    future.set_exception(refused[name])
                else:
                    future.set_result(None)

    def _later(self, changes: dict[str, Change]) -> bool:
        """Put changes back in front of newer ones; ``False`` when the service ends: nothing was claimed."""
        with self._condition:
            if self._closed:
                return False
            for name, newer in self._changes.items():
                older = changes.setdefault(name, Change())
                older.values.update(newer.values)
                older.children.update(newer.children)
                older.waiting += newer.waiting
            self._changes = changes
            self._not_before = time.monotonic() + self._pause
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        return True


def _unstorable(error: Exception) -> ProcessingError:
    log.error("a document cannot be stored", exc_info=error)
    return ProcessingError(f"The processing database cannot hold a document: {error}.")


def _closed() -> ServiceEnds:
    return ServiceEnds("The processing service is being stopped; try again later.")
