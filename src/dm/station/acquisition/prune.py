"""Removing source files of a finished DAQ or upload, page by page, each with proof; see :mod:`.removal`.

Only files that the ledger has as done are looked at. Storage is asked whether it has them as it verified them, and each
source is read again: what the source holds now must have the digest that storage has now. Nothing is remembered between
pages, so a caller that was interrupted simply begins anew: what is removed already counts as gone.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dm.common import statuses, timestamps
from dm.common.errors import InvalidObjectState, ObjectNotFound, ServiceLimit, ServiceUnavailable
from dm.common.paths import decode, encode
from dm.station.acquisition import sources, spec
from dm.station.acquisition.info import root_directory, source_url
from dm.station.acquisition.inplace import audit
from dm.station.acquisition.removal import Fate, Proof, remove
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.store import Document, Store
from dm.station.acquisition.task import DAQ
from dm.station.acquisition.transports.base import Source

_DAY = 86_400.0
_AT_ONCE = 2  # callers; each may read for minutes
_PAGE_BYTES = 4 << 30  # so much is read for one page, unless a single file is larger


@dataclass(frozen=True)
class Wish:
    """What is to be done.

    :param delete: remove; otherwise only say what would be removed. :param keep_days: files that were stored less than
        so many days ago stay. :param read_again: have storage read and digest its files, too.
    :param after: :param limit: page, by place in the ledger. :param user: who wants it.
    """

    user: str
    delete: bool = False
    keep_days: float = 0.0
    read_again: bool = False
    after: int = 0
    limit: int = 200


class Pruner:
    """See the module.

    :param stopping: set when the service stops; a page then ends soon.
    """

    def __init__(
        self, store: Store, site: StorageSite, settings: AcquisitionSettings, stopping: threading.Event | None = None
    ) -> None:
        self.stopping = stopping or threading.Event()
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self.store = store
        self.site = site
        self.settings = settings

    def page(self, kind: str, task_id: str, wish: Wish) -> dict[str, Any]:
        """Remove, or only look at, the next files.

        :returns: ``files`` (of each ``path``, relative to the data directory, ``size``, ``fate`` - ``removed``,
            ``removable``, ``gone`` or ``kept`` - and ``reason``) and ``next``, the ``after`` of the next page or
            ``None``.
        :raises ObjectNotFound: no such DAQ or upload. :raises InvalidObjectState: it is running, or its files were not
            moved, or lie on another machine. :raises ServiceLimit: too many do this already.
        """
        document = self.store.task(task_id)
        if document is None or document["kind"] != kind:
            raise ObjectNotFound(f"{_what(kind)} {task_id[:80]!r} does not exist.")
        if document["status"] not in statuses.INACTIVE:
            raise InvalidObjectState(f"{_what(kind)} {task_id} is {document['status']}; its files are not removed yet.")
        if not self._places.acquire(blocking=False):
            raise ServiceLimit(f"Source files are removed by {_AT_ONCE} callers already; try again when one has ended.")
        try:
            return self._page(_Finished(document, self.settings), wish)
        finally:
            self._places.release()

    def _page(self, task: _Finished, wish: Wish) -> dict[str, Any]:
        rows = self.store.rows_in(task.id, "done", wish.after, wish.limit)
        page = list(_up_to(rows, _PAGE_BYTES))
        files = self._judge(task, page, wish)
        more = len(page) < len(rows) or len(rows) == wish.limit
        return {"files": files, "next": wish.after + len(page) if more else None}

    def _judge(self, task: _Finished, rows: list[Document], wish: Wish) -> list[dict[str, Any]]:
        """Return what becomes of each file."""
        newest = timestamps.now() - wish.keep_days * _DAY
        old = [row for row in rows if not wish.keep_days or _stored(row) < newest]
        targets = [task.target(bytes(row["pathBytes"])) for row in old]
        checked = self.site.check_files(task.experiment, task.spec.root, targets, read_again=wish.read_again)
        told = []
        for row in rows:
            if self.stopping.is_set():
                raise ServiceUnavailable("The service stops; begin anew after its start.")
            path = bytes(row["pathBytes"])
            answer = checked.get(task.target(path))
            if answer is None:
                fate, why = Fate.KEPT, f"it was stored less than {wish.keep_days:g} days ago"
            elif not answer["verified"]:
                fate, why = Fate.KEPT, str(answer["reason"])
            else:
                stored = os.path.join(task.directory, task.target(path))
                proof = Proof(int(answer["fileSize"]), dict(answer["digests"]), stored=stored)
                fate, why = remove(task.source.root, path, proof, delete=wish.delete)
            if fate is Fate.REMOVED and answer is not None:
                audit(source_url(task.source, path), answer, kind=task.kind, task=task.id, user=wish.user)
            told.append({"path": decode(path), "size": int(row["size"]), "fate": fate.value, "reason": why})
        return told


class _Finished:
    """What is needed of a task that is over."""

    def __init__(self, document: Document, settings: AcquisitionSettings) -> None:
        request, experiment = json.loads(document["request"]), json.loads(document["experiment"])
        self.id, self.kind = str(document["_id"]), str(document["kind"])
        self.spec, _echo = spec.parse(request["taskInfo"])
        self.experiment = int(experiment["id"])
        self.directory = encode(root_directory(experiment, self.spec.root))
        place = sources.parse(request["dataDirectory"], settings, experiment, self.spec.root)
        self.source: Source = place.source
        if place.in_place or self.spec.skip_transfer:
            raise InvalidObjectState(f"The files of {_what(self.kind)} {self.id} were not moved; they are no copies.")
        if not self.source.is_local:
            raise InvalidObjectState(
                f"The files of {_what(self.kind)} {self.id} lie on {self.source.host!r}, where they cannot be read "
                "again from here; start it with removeSourceFiles to have them removed when they are stored."
            )

    def target(self, path: bytes) -> bytes:
        """Return the experiment file path of a source path."""
        below = self.spec.destination
        return below + b"/" + path if below else path


def _what(kind: str) -> str:
    return "DAQ" if kind == DAQ else "Upload"


def _stored(row: Document) -> float:
    """Return when a file was stored, epoch seconds; now, when nobody knows."""
    times = row.get("times") or {}
    return float(times.get("stored") or times.get("done") or timestamps.now())


def _up_to(rows: list[Document], limit: int) -> Iterator[Document]:
    """Yield rows until they have so many bytes, but at least one."""
    total = 0
    for row in rows:
        total += int(row["size"])
        if total > limit and total > int(row["size"]):
            return
        yield row
