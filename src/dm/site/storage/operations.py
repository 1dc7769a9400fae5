"""Operations that take their time: deleting, restoring, moving an experiment, compressing its files ...

A request only records the operation, with all it needs to be carried out; threads of any process do it, one operation
of an experiment at a time and in order. Whatever dies in between, the operation is done again from its beginning: each
kind recognises what is done already.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, text
from sqlalchemy.exc import SQLAlchemyError

from dm.common import timestamps
from dm.common.errors import DmException, InternalError, InvalidObjectState, ObjectNotFound, ServiceUnavailable
from dm.common.web.routes import Principal
from dm.site.database.store import OPERATION_LOCK, Store, try_lock
from dm.site.identity import audit
from dm.site.storage import batch_store, experiment_store, grants, operation_store
from dm.site.storage.batches import Signal
from dm.site.storage.verification import StoppedError

LOG = logging.getLogger(__name__)

Finish = Callable[[Connection], None]
_POLL_SECONDS = 5.0
_STOP_SECONDS = 1.0
_LONGEST_DELAY = 60.0
_SOON = 0.2
_LISTED = 1000
_ASK_SECONDS = 1.0


class NotYetError(Exception):
    """Something else has to end first, and soon will."""


class ClaimLostError(Exception):
    """The database let go of our claim; somebody else may be at the operation."""


@dataclass(frozen=True)
class Kind:
    """How operations of one name are done.

    :param carry_out: does it, outside of any transaction; called with the operation's row and the means to tell how
        far it is. Returns what to do in the transaction that notes its end.
    :param undo: called in the transaction that notes its failure.
    :param attempts: after so many that failed for reasons that may pass, the operation has failed.
    """

    carry_out: Callable[[RowMapping, Progress], Finish]
    undo: Callable[[Connection, RowMapping, DmException], None]
    attempts: int = 5


class Progress:
    """What an operation that runs tells of itself.

    :param stop: set when the service stops. :param claim: the transaction that keeps everybody else away.
    """

    def __init__(self, store: Store, operation_id: str, stop: threading.Event, claim: Connection | None = None) -> None:
        self._store = store
        self._id = operation_id
        self._claim = claim
        self._asked = time.monotonic()
        self.stop = stop

    def check(self) -> None:
        """Return if it may go on. :raises StoppedError: the service stops. :raises ClaimLostError: see there."""
        if self.stop.is_set():
            raise StoppedError
        if self._claim is not None and time.monotonic() - self._asked > _ASK_SECONDS:
            try:
                self._claim.execute(text("SELECT 1"))
            except SQLAlchemyError as error:
                raise ClaimLostError from error
            self._asked = time.monotonic()

    def note(self, **numbers: Any) -> None:
        """Show these keys in the operation's record from now on."""
        with self._store.transaction() as connection:
            operation_store.note(connection, self._id, {"shown": numbers})


def record(row: RowMapping) -> dict[str, Any]:
    """Return the published record of an operation."""
    result = {
        "id": row["id"],
        "name": row["name"],
        "experimentId": row["experiment_id"],
        "experimentName": row["experiment_name"],
        "experimentStationName": row["station_name"],
        "owner": row["username"],
        "status": row["status"],
        "errorMessage": row["error_message"] or "",
    }
    for key, column in (("submission", "submitted"), ("start", "started"), ("end", "ended")):
        if row[column] is not None:
            seconds = row[column].timestamp()
            result |= {f"{key}Time": seconds, f"{key}Timestamp": timestamps.text(seconds)}
    return result | row["details"].get("shown", {})


def refuse_busy(connection: Connection, row: RowMapping, what: str) -> None:
    """Return if nothing is on its way into an experiment.

    :param what: what is to be done then, for the sentence.
    :raises InvalidObjectState: DAQs, uploads or jobs hold grants, batches are on their way, or an operation runs.
    """
    holders, count = experiment_store.live_grants(connection, row["id"]), batch_store.unfinished(connection, row["id"])
    if holders or count:
        raise InvalidObjectState(
            f"Experiment {row['name']!a} has {holders} running DAQs, uploads or jobs and {count} batches "
            f"on their way; stop them first{what}."
        )
    refuse_operations(connection, row)


def refuse_operations(connection: Connection, row: RowMapping) -> None:
    """Return if no operation of the experiment is under way. :raises InvalidObjectState: one is."""
    for running in operation_store.unfinished(connection, row["id"]):
        raise InvalidObjectState(
            f"Experiment {row['name']!a} is busy with operation {running['name']} {running['id']}; wait for its end."
        )


class Operations:
    """Records operations, and carries them out.

    :param work: rung when there is something to do.
    """

    def __init__(self, store: Store, work: Signal) -> None:
        self._store = store
        self._work = work
        self._kinds: dict[str, Kind] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def register(self, name: str, kind: Kind) -> None:
        """Say how operations of a name are done."""
        self._kinds[name] = kind

    def submit(self, connection: Connection, name: str, experiment_id: int, username: str, **details: Any) -> str:
        """Record an operation in the caller's transaction and return its id; :meth:`wake` after the commit.

        :param details: JSON values that it needs to be carried out.
        """
        operation_id = str(uuid.uuid4())
        values = {"id": operation_id, "name": name, "experiment_id": experiment_id, "username": username}
        operation_store.add(connection, values | {"details": details})
        return operation_id

    def wake(self, operation_id: str) -> dict[str, Any]:
        """Have a recorded operation done soon and return its record."""
        self._work.ring()
        return self._record(operation_id)

    def run(self, operation_id: str) -> dict[str, Any]:
        """Carry out a recorded operation now, unless another thread is at it; return its record."""
        with self._store.transaction() as connection:
            row = operation_store.get(connection, operation_id)
        if row is not None:
            self._carry_out(operation_id, row["experiment_id"])
        return self.wake(operation_id)

    def _record(self, operation_id: str) -> dict[str, Any]:
        with self._store.transaction() as connection:
            row = operation_store.get(connection, operation_id)
        if row is None:
            raise ObjectNotFound(f"Operation {operation_id} does not exist.")
        return record(row)

    def get(self, principal: Principal, operation_id: str, names: Sequence[str] = ()) -> dict[str, Any]:
        """Return an operation at a station the caller manages. :param names: it must have one of these.

        :raises ObjectNotFound: none such.
        """
        operation_id = grants.uuid_text(operation_id, "Operation id")
        with self._store.transaction() as connection:
            row = operation_store.get(connection, operation_id)
        if row is None or not principal.manages(row["station_name"]) or (names and row["name"] not in names):
            raise ObjectNotFound(f"Operation {operation_id} does not exist.")
        return record(row)

    def listed(
        self, principal: Principal, names: Sequence[str], experiment_id: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the newest operations of these names at stations the caller manages, newest last."""
        with self._store.transaction() as connection:
            rows = operation_store.listed(connection, names, experiment_id, _LISTED)
        return [record(row) for row in rows if principal.manages(row["station_name"])]

    def start(self, threads: int = 2) -> None:
        """Begin to work in the background; what a dead process left is done first."""
        for number in range(threads):
            self._threads.append(threading.Thread(target=self._run, name=f"operations-{number}", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End within seconds; what is under way is gone on with at the next start."""
        self._stop.set()
        self._work.ring()
        for thread in self._threads:
            thread.join(_STOP_SECONDS)
        self._threads.clear()

    def _run(self) -> None:
        while not self._stop.is_set():
            seen = self._work.count()
            wait = _POLL_SECONDS
            try:
                wait = _SOON if self.round() else _POLL_SECONDS
            except DmException as error:
                LOG.warning("operations wait: %s", error)
            except Exception:
                LOG.exception("operations")
            self._work.wait(seen, wait)

    def round(self) -> int:
        """Try everything that is due; return how many were begun."""
        with self._store.transaction() as connection:
            found = operation_store.due(connection)
        begun = 0
        for operation_id, experiment_id in found:
            if self._stop.is_set():
                break
            try:
                with audit.acting("housekeeper"):
                    begun += self._carry_out(operation_id, experiment_id)
            except DmException:
                raise
            except Exception:  # the others' turn comes all the same
                LOG.exception("operation %s", operation_id)
        return begun

    def _carry_out(self, operation_id: str, experiment_id: int) -> bool:
        """Do it if nobody else does; return whether it was begun."""
        # An advisory lock ends with its connection, so with its process; and it keeps no old rows from being vacuumed.
        with self._store.transaction() as claim:
            if not try_lock(claim, OPERATION_LOCK, experiment_id):
                return False
            with self._store.transaction() as connection:
                row = operation_store.get(connection, operation_id)
                if row is None or row["status"] not in ("pending", "running") or row["name"] not in self._kinds:
                    return False
                if not operation_store.is_first(connection, row):
                    return False
                if not operation_store.begin(connection, operation_id):
                    return False
            self._attempt(row, self._kinds[row["name"]], claim)
            return True

    def _attempt(self, row: RowMapping, kind: Kind, claim: Connection) -> None:
        operation_id, attempt = row["id"], row["attempts"] + 1
        try:
            finish = kind.carry_out(row, Progress(self._store, operation_id, self._stop, claim))
            with self._ours(operation_id, attempt) as connection:
                finish(connection)
                operation_store.end(connection, operation_id)
        except ClaimLostError:
            LOG.warning("%s of experiment %d: the database let go of it", row["name"], row["experiment_id"])
        except (StoppedError, NotYetError) as error:
            with contextlib.suppress(DmException, ClaimLostError), self._ours(operation_id, attempt) as connection:
                operation_store.postpone(connection, operation_id, _SOON * isinstance(error, NotYetError), False)
            return
        except (ServiceUnavailable, OSError) as error:
            LOG.warning("%s of experiment %d, attempt %d: %s", row["name"], row["experiment_id"], attempt, error)
            if attempt < kind.attempts:
                with contextlib.suppress(ClaimLostError), self._ours(operation_id, attempt) as connection:
                    operation_store.postpone(connection, operation_id, min(2.0**attempt, _LONGEST_DELAY), True)
                return
            self._fail(row, kind, error if isinstance(error, DmException) else ServiceUnavailable(f"{error}"))
        except DmException as error:
            self._fail(row, kind, error)
        except Exception as error:
            LOG.exception("%s of experiment %d", row["name"], row["experiment_id"])
            self._fail(row, kind, InternalError(f"{type(error).__name__}; the storage log has more."))

    @contextlib.contextmanager
    def _ours(self, operation_id: str, attempt: int) -> Iterator[Connection]:
        """Run a transaction in which nobody else can begin it. :raises ClaimLostError: somebody has, or ended it."""
        with self._store.transaction() as connection:
            if not operation_store.hold(connection, operation_id, attempt):
                raise ClaimLostError
            yield connection

    def _fail(self, row: RowMapping, kind: Kind, error: DmException) -> None:
        with contextlib.suppress(ClaimLostError), self._ours(row["id"], row["attempts"] + 1) as connection:
            kind.undo(connection, row, error)
            operation_store.end(connection, row["id"], str(error))
        LOG.error("%s of experiment %d failed: %s", row["name"], row["experiment_id"], error)
