"""One running DAQ or upload: what its watching thread and the pipeline share."""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import xxhash

from dm.common import statuses, timestamps
from dm.station.acquisition import spec as specs
from dm.station.acquisition.completion import Waiting
from dm.station.acquisition.info import info, root_directory
from dm.station.acquisition.ledger import Ledger
from dm.station.acquisition.metrics import UNSHOWN
from dm.station.acquisition.pace import Motion, Pace, Progress, remaining
from dm.station.acquisition.rows import Item, State, path_key
from dm.station.acquisition.site import Grant
from dm.station.acquisition.store import Document, Store
from dm.station.acquisition.transports.base import Source, Transport
from dm.station.acquisition.wake import Wake

if TYPE_CHECKING:
    from dm.station.acquisition.batch import Batch
    from dm.station.acquisition.plugins.base import Plugin
    from dm.station.acquisition.telling import Telling

DAQ = "daq"
UPLOAD = "upload"
_SHOWN_ERRORS = 100
_SLICE = 0.25  # seconds after which a waiting request looks whether the service stops


def declined_of(document: Document) -> set[int]:
    """Return the numbers of the paths that people have left out for good, as a task document has them."""
    data = bytes(document.get("declined") or b"")
    return {int.from_bytes(data[first : first + 8], "little") for first in range(0, len(data), 8)}


class Task:
    """See the module.

    :param document: the task document.
    :param store: for the ledger. :param source: of the files. :param transport: that moves them.
    :param plugins: those it needs, in order.
    """

    def __init__(
        self, document: Document, store: Store, source: Source, transport: Transport, plugins: list[Plugin]
    ) -> None:
        self.document = document
        self.id = str(document["_id"])
        self.kind = str(document["kind"])
        request = json.loads(document["request"])
        self.data_directory: str = request["dataDirectory"]
        self.spec, self.echo = specs.parse(request["taskInfo"])
        self.experiment: dict[str, Any] = json.loads(document["experiment"])
        self.grant = Grant(document["grant"]["id"], document["grant"]["secret"])
        self.store = store
        self.source = source
        self.transport = transport
        self.plugins = plugins
        self.selection = self.spec.selection()
        self.ledger = Ledger(store, self.id)

        # --- shared with the pipeline, under its condition ---
        self.queue: deque[Item] = deque()
        self.delayed: list[tuple[float, int, Item]] = []
        self.batches: dict[str, Batch] = {}
        self.active = 0
        self.busy: set[int] = set()
        self.deferred: set[bytes] = set()
        self.inbox: deque[bytes] = deque()
        self.told: deque[Telling] = deque()  # messages of writers
        self.spilled = False
        self.unfed = False  # whether stored files may wait that no batch carries
        self.feed_at = 0.0  # monotonic seconds before which they are left waiting
        self.feed_skip = 0
        self.parkings = 0  # times in a row that files had to be left waiting
        self.orders = 0  # decisions of people that are being carried out
        self.ending = False  # nothing is taken any more
        self.declined = declined_of(document)  # numbers of the paths that people have left out for good
        self._order = 0
        self._counted: tuple[Progress, int] | None = None
        self.motion = Motion()

        self.status: str = document["status"]
        self.trouble = ""  # what is in the way at the moment
        self.halted = ""  # why it cannot go on
        self.directory_error = ""  # what a plugin that sees the directory as a whole said
        self.wake = Wake()  # for the watching thread
        self.stopping = bool(document.get("stopRequested"))
        self.aborting = bool(document.get("abortRequested"))
        self.deadline = self._deadline()
        # Set by the watching thread, to be called by any: files that are not whole yet, what one of them waits for,
        # and keys of the info record about the watch.
        self.let_go()
        self.changed = threading.Condition()
        self._setting = threading.Lock()
        self.meters = UNSHOWN
        self.pace = Pace(time.monotonic())
        self.alarms: dict[str, str] = {}  # what health warns of at the moment, in full; see dm.station...alarms

    def let_go(self) -> None:
        """Forget what the watching thread tells of itself, so that what it knew leaves memory when it has ended."""
        self.settling: Callable[[], list[bytes]] = list
        self.waiting: Callable[..., list[Waiting]] = lambda skip=0, limit=None: []
        self.waiting_for: Callable[[bytes], Waiting | None] = lambda path: None
        self.watched: Callable[[], dict[str, Any]] = dict

    # --- queue (call under the pipeline's condition) ----------------------------------------------------------------
    def push(self, item: Item) -> None:
        """Queue an item, now or when it is due."""
        self.busy.add(path_key(item.path))
        if item.due > time.monotonic():
            self._order += 1
            heapq.heappush(self.delayed, (item.due, self._order, item))
        else:
            self.queue.append(item)

    def promote(self, now: float) -> None:
        """Queue what has become due."""
        while self.delayed and self.delayed[0][0] <= now:
            item = heapq.heappop(self.delayed)[2]
            item.since = now
            self.queue.append(item)

    def leave(self, item: Item) -> None:
        """Let go of a file whose outcome is final; if it changed meanwhile, its watcher looks at it again."""
        self.busy.discard(path_key(item.path))
        if item.path in self.deferred:
            self.deferred.discard(item.path)
            self.inbox.append(item.path)

    @property
    def idle(self) -> bool:
        """Whether the pipeline has nothing of this task."""
        work = self.queue or self.delayed or self.batches or self.spilled or self.deferred or self.inbox
        return not (work or self.unfed or self.orders)

    def end(self) -> bool:
        """Take nothing more if the pipeline has nothing of this task; return whether that is so."""
        self.ending = self.idle
        return self.ending

    def oldest(self) -> float | None:
        """Return since when (epoch seconds) the oldest file waits of those in memory."""
        items = [self.queue[0]] if self.queue else []
        items += [item for _due, _order, item in self.delayed]
        items += [batch.loads[0].item for batch in self.batches.values() if batch.loads]
        return min((item.ready for item in items), default=None)

    # --- records ----------------------------------------------------------------------------------------------------
    @property
    def root_directory(self) -> str:
        """The experiment's directory that files go below: ``data`` or ``analysis``."""
        return root_directory(self.experiment, self.spec.root)

    @property
    def origin(self) -> str:
        """What storage calls the source: the same for every DAQ and upload of this directory to this place, so that a
        corrected file may replace what an earlier one brought."""
        return str(self.document["place"])

    def halt(self, reason: str) -> None:
        """Say that the task cannot go on; its thread ends it as failed."""
        self.halted = reason
        self.wake.set()

    def target(self, path: bytes) -> bytes:
        """Return the experiment file path of a source path."""
        below = self.spec.destination
        return below + b"/" + path if below else path

    def counts(self) -> Document:
        """Return the counts of the info record."""
        ledger = self.ledger
        completed = ledger.count(State.DONE)
        failed = ledger.count(State.FAILED)
        skipped = ledger.count(State.SKIPPED, State.VANISHED)
        waiting = ledger.count(State.READY, State.STORED)
        total = completed + failed + skipped + waiting
        processed = total - waiting
        return {
            **self.watched(),
            "countFiles": total,
            "nFiles": total,
            "nProcessedFiles": processed,
            "nCompletedFiles": completed,
            "nProcessingErrors": failed,
            "nSkippedFiles": skipped,
            "nWaitingFiles": waiting,
            "countBytes": ledger.bytes_total,
            "completedBytes": ledger.bytes_done,
            "processingErrors": list(ledger.errors.values())[:_SHOWN_ERRORS],
        }

    def moving_bytes(self) -> int:
        """Return the bytes moved of files that are not finished."""
        # A batch without files is over: its bytes are counted as finished.
        moved = self.motion.bytes({name for name, batch in list(self.batches.items()) if batch.loads})
        return max(0, min(moved, self.ledger.bytes_waiting))

    def far(self) -> Progress:
        """Return how far the task is."""
        ledger = self.ledger
        failed = ledger.count(State.FAILED)
        return Progress(
            files=ledger.count(State.DONE) + failed,
            bytes=ledger.bytes_done + self.moving_bytes(),
            waiting=ledger.count(State.READY, State.STORED),
            failed=failed,
        )

    def note_pace(self) -> None:
        """Remember how far the task is, for its rates; called about once a second by its thread."""
        far = self.far()
        self.pace.note(time.monotonic(), far)
        if self._counted is not None:  # what was finished before a restart was counted before
            before, bytes_before = self._counted
            done, failed = far.files - far.failed - (before.files - before.failed), far.failed - before.failed
            self.meters.finished.labels(self.kind, "done").inc(max(0, done))
            self.meters.finished.labels(self.kind, "failed").inc(max(0, failed))
            self.meters.stored_bytes.labels(self.kind).inc(max(0, self.ledger.bytes_done - bytes_before))
        self._counted = far, self.ledger.bytes_done

    def rates(self) -> tuple[float, float]:
        """Return files and bytes finished per second of late."""
        return self.pace.rates(time.monotonic(), self.far())

    def speed(self) -> Document:
        """Return the keys of the info record that say how fast it gets on."""
        now, far = time.monotonic(), self.far()
        files, size = self.pace.rates(now, far)
        result: Document = {
            "fileRate": round(files, 3),
            "byteRate": round(size, 1),
            "movingBytes": self.moving_bytes(),
            "lastProgressTime": timestamps.now() - (now - self.pace.finished()),
            "revision": self.revision(),
            "alarms": list(self.alarms.values()),
        }
        # An upload that still looks through its directory knows only a part of what there is.
        if self.kind == DAQ or self.status != statuses.RUNNING:
            left = max(0, self.ledger.bytes_waiting - self.moving_bytes())
            seconds = remaining(far.waiting, left, files, size)
            if seconds is not None:
                result["secondsRemaining"] = round(seconds, 1)
        return result

    def revision(self) -> str:
        """Return a text that is another one whenever the status, the counts or the trouble are others."""
        ledger = self.ledger
        counts = [ledger.count(state) for state in State]
        sizes = (ledger.bytes_done, ledger.bytes_total, self.moving_bytes())
        parts = (self.status, counts, sizes, self.trouble, self.halted)
        return xxhash.xxh3_64_hexdigest(repr(parts).encode("utf-8", "surrogateescape"))

    def snapshot(self) -> Document:
        """Return the document with the counts and the speed of this moment."""
        document = dict(self.document)
        document["status"] = self.status
        document["counts"] = self.counts()
        document["speed"] = self.speed()
        document["errorMessage"] = self.halted or self.document.get("errorMessage") or self.trouble
        return document

    def info(self) -> dict[str, Any]:
        """Return the record of 6.3."""
        return info(self.snapshot())

    def set(self, **fields: Any) -> None:
        """Change fields of the document, durably, and wake who waits for a change; what has ended stays as it is."""
        if fields.get("open") is False:
            self.note_pace()
        with self._setting:
            if self.document.get("open") is False:
                return
            self.store.set_task(self.id, fields)
            self.document.update(fields)
        with self.changed:
            self.status = str(self.document["status"])
            self.changed.notify_all()

    def _deadline(self) -> float | None:
        """Return the end of ``maxRunTimeInHours`` in monotonic seconds, if there is one."""
        if not self.spec.max_run_time_in_hours:
            return None
        gone = max(0.0, timestamps.now() - float(self.document["startTime"]))
        return time.monotonic() + self.spec.max_run_time_in_hours * 3600 - gone

    @property
    def out_of_time(self) -> bool:
        """Whether ``maxRunTimeInHours`` has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def wait(self, seconds: float, stopping: threading.Event, revision: str = "") -> None:
        """Wait until the status is another one or final, the time has passed, or the service stops.

        :param revision: see :meth:`revision`; with one, wait also no longer than until the record is another one - but
            a quarter of a second at least, so that a record which changes all the time is not sent all the time.
        """
        status, deadline = self.status, time.monotonic() + seconds
        with self.changed:
            while self.status == status not in statuses.INACTIVE and not stopping.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self.changed.wait(min(left, _SLICE))
                if revision and self.revision() != revision:
                    return
