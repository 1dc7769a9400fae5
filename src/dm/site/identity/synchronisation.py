"""Users follow the facility's user directories.

One run reads everybody of one directory, compares (:mod:`dm.site.identity.sync_plan`) and changes what differs in one
transaction under a lock, so that a killed process leaves nothing half done and runs never overlap. Then LDAP is told,
where it is configured; what it could not be told is told by the next run.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

from sqlalchemy import Connection, RowMapping

from dm.common import timestamps
from dm.common.caller import CALLER, Caller, calling
from dm.common.errors import DmException, InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.common.health import Health, Level
from dm.common.rounds import Rounds
from dm.common.texts import storable
from dm.site.database.store import USER_SYNC_LOCK, Store, try_lock
from dm.site.identity import audit, sync_plan, sync_store
from dm.site.identity.sync_plan import Known, Plan
from dm.site.identity.sync_settings import UserSyncSettings

if TYPE_CHECKING:
    from dm.site.facility.adapters.base import Person

LOG = logging.getLogger(__name__)
ACTOR = "user-sync"
MAX_LISTED = 1000
_TICK_SECONDS = 60.0
_RETRY_SECONDS = 3600.0
_STOP_SECONDS = 10.0
_START_SECONDS = 5.0


class Source(Protocol):
    """What is needed of a facility adapter."""

    on_rejected: Callable[[str, str, str], None]

    def users(self) -> Iterable[Person]:
        """Yield everybody. :raises CommunicationError: the directory does not answer."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...


@dataclass(frozen=True)
class Told:
    """One user as LDAP should know them: the row as it is now, and the directory's password hash."""

    user_id: int
    username: str
    person: Person
    active: bool


Push = Callable[[Sequence[Told]], None]


def record(row: RowMapping) -> dict[str, Any]:
    """Return the published record of a run: id, adapter, status, message, times, counts and the lists of changes."""
    started = row["started"].timestamp()
    found = {
        "id": row["id"],
        "adapter": row["source"],
        "status": row["status"],
        "message": row["message"],
        "owner": row["actor"],
        "dryRun": row["dry_run"],
        "force": row["force"],
        "startTime": started,
        "startTimestamp": timestamps.text(started),
        **row["summary"],
    }
    if row["ended"] is not None:
        ended = row["ended"].timestamp()
        found |= {"endTime": ended, "endTimestamp": timestamps.text(ended), "runTime": ended - started}
    return found


class UserSynchronisation:
    """The use cases, and the worker in the background from :meth:`start` to :meth:`stop`.

    :param sources: directory name -> makes a new reader of it. :param push: tells LDAP; raises DmException.
    """

    def __init__(
        self,
        store: Store,
        sources: Mapping[str, Callable[[], Source]],
        settings: UserSyncSettings,
        push: Push | None = None,
    ) -> None:
        self._store = store
        self._sources = sources
        self._settings = settings
        self._push = push
        caller = Caller(actor=ACTOR, service="facility")
        self._rounds = Rounds(ACTOR, self._round, retry_seconds=_TICK_SECONDS, first_seconds=1.0, caller=caller)
        self._stop = self._rounds.stopping
        self._ended = threading.Condition()
        self._runs: dict[str, tuple[str, threading.Thread]] = {}

    # --- use cases -------------------------------------------------------------------------------------------

    def begin(
        self, actor: str, adapter: str | None = None, dry_run: bool = False, force: bool = False
    ) -> dict[str, Any]:
        """Begin a run in the background and return its record, status ``running``; see :meth:`get`.

        :param adapter: name of the directory; may be left out where there is only one.
        :param dry_run: only say what a run would do. :param force: also where it would change more than the limit.
        :raises InvalidArgument: no such directory. :raises InvalidObjectState: a run of it is going on.
        """
        source = self._source(adapter)
        run_id = str(uuid.uuid4())
        values = {"source": source, "actor": actor, "dry_run": dry_run, "force": force}
        thread = threading.Thread(
            target=self._guarded, args=(run_id, CALLER.get()), name=f"user-sync-{source}", daemon=True
        )
        with self._ended:
            if source in (name for name, _ in self._runs.values()):
                raise InvalidObjectState(f"Users of {source} are being synchronised already; wait for that run.")
            self._runs[run_id] = source, thread
        try:
            with self._store.transaction() as connection:
                if not try_lock(connection, USER_SYNC_LOCK, _number(source)):
                    raise InvalidObjectState(f"Users of {source} are being synchronised already; wait for that run.")
                sync_store.interrupted(connection, source, run_id)
                sync_store.begin(connection, {"id": run_id, **values})
            thread.start()
        except BaseException:
            self._forget(run_id)
            raise
        return self.get(run_id)

    def _forget(self, run_id: str) -> None:
        with self._ended:
            self._runs.pop(run_id, None)
            self._ended.notify_all()

    def run(self, actor: str, adapter: str | None = None, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """Synchronise now and return the record of the run that ended. Errors: see :meth:`begin`."""
        begun = self.begin(actor, adapter, dry_run, force)
        with self._ended:
            _, thread = self._runs.get(begun["id"], ("", None))
        if thread is not None:
            thread.join()
        return self.get(begun["id"])

    def get(self, run_id: str, wait: float = 0.0) -> dict[str, Any]:
        """Return a run. :param wait: wait so many seconds for its end, where it runs in this process."""
        try:
            run_id = str(uuid.UUID(run_id))
        except ValueError:
            raise InvalidArgument(f"Run id {run_id[:80]!a} is no UUID.") from None
        if wait > 0:
            with self._ended:
                self._ended.wait_for(lambda: run_id not in self._runs or self._stop.is_set(), wait)
        with self._store.transaction() as connection:
            row = sync_store.run(connection, run_id)
            if row is not None and row["status"] == "running" and run_id not in self._runs:
                row = self._settled(connection, row)
        if row is None:
            raise ObjectNotFound(f"Run {run_id} does not exist.")
        return record(row)

    def all(self, adapter: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Return the last runs without their lists, newest last. :raises InvalidArgument: a limit that cannot be."""
        if not 1 <= limit <= MAX_LISTED:
            raise InvalidArgument(f"Limit {limit} is outside 1 to {MAX_LISTED}.")
        with self._store.transaction() as connection:
            rows = sync_store.runs(connection, adapter, limit)
            settled = [self._settled(connection, row) if row["status"] == "running" else row for row in rows]
        return [
            {key: value for key, value in record(row).items() if not isinstance(value, list)}
            for row in settled
            if row is not None
        ]

    def _settled(self, connection: Connection, row: RowMapping) -> RowMapping | None:
        """Return a run that is said to be running as it really is: its process may have died."""
        age = (sync_store.clock(connection) - row["started"]).total_seconds()
        young = age < _START_SECONDS  # another process may be just about to take the lock
        if row["id"] not in self._runs and not young and try_lock(connection, USER_SYNC_LOCK, _number(row["source"])):
            sync_store.interrupted(connection, row["source"], "00000000-0000-0000-0000-000000000000")
            return sync_store.run(connection, row["id"])
        return row

    def _source(self, name: str | None) -> str:
        known = ", ".join(self.names) or "none; see [facility.adapters]"
        if name is None:
            if len(self.names) != 1:
                raise InvalidArgument(f"Name the adapter to synchronise with; there are: {known}.")
            return self.names[0]
        if name not in self._sources:
            raise InvalidArgument(f"Adapter {name[:80]!a} gives no users here; those that do: {known}.")
        return name

    @property
    def names(self) -> list[str]:
        """The directories users follow."""
        chosen = self._settings.adapters
        return [name for name in self._sources if not chosen or name in chosen]

    # --- the work --------------------------------------------------------------------------------------------

    def _guarded(self, run_id: str, caller: Caller) -> None:
        """Carry a run out and write down its end, whatever happens."""
        try:
            with calling(caller):
                self._carry_out(run_id)
        except Exception as error:
            expected = isinstance(error, DmException)
            LOG.log(
                logging.WARNING if expected else logging.ERROR, "user synchronisation: %s", error, exc_info=not expected
            )
            message = str(error) if expected else f"{type(error).__name__}; the log of the service has the details."
            self._failed(run_id, storable(f"{message} Nobody was changed."))
        finally:
            self._forget(run_id)

    def _failed(self, run_id: str, message: str) -> None:
        try:
            with self._store.transaction() as connection:
                sync_store.end(connection, run_id, "failed", message, {})
        except DmException as error:  # it stays "running", and is settled by whoever looks next
            LOG.warning("the end of run %s cannot be written down: %s", run_id, error)

    def _carry_out(self, run_id: str) -> None:
        with self._store.transaction() as connection:
            row = sync_store.run(connection, run_id)
            if row is None:
                raise ObjectNotFound(f"Run {run_id} does not exist.")
            source, dry_run, force = row["source"], row["dry_run"], row["force"]
            again = try_lock(connection, USER_SYNC_LOCK, _number(source)) and sync_store.run(connection, run_id)
            if not again or again["status"] != "running":  # another process was quicker
                raise InvalidObjectState(f"Users of {source} are being synchronised already.")
            people, rejected = self._read(source)
            if not dry_run:
                sync_store.lock_users(connection)
            now = sync_store.clock(connection)
            plan = sync_plan.make_plan(
                source, people, sync_store.known(connection), self._settings, now, rejected=rejected
            )
            refusal = plan.refusal(self._settings)
            if refusal and not force:
                sync_store.end(connection, run_id, "refused", refusal, plan.summary())
                if not dry_run:
                    audit.record(connection, "users.refused", source, touched=plan.touched, known=plan.known)
                LOG.warning("user synchronisation: %s", refusal)
                return
            if not dry_run:
                self._apply(connection, plan)
                sync_store.forget(connection, self._settings.keep_days)
            sync_store.end(connection, run_id, "done", _said(plan, dry_run), plan.summary())
        LOG.info("users of %s: %s", source, _said(plan, dry_run))
        if not dry_run:
            self._tell(run_id, plan)

    def _read(self, source: str) -> tuple[list[Person], list[tuple[str, str]]]:
        """Return everybody, and the rows the adapter could make nobody of."""
        reader = self._sources[source]()
        rejected: list[tuple[str, str]] = []
        reader.on_rejected = lambda kind, which, why: rejected.append((which, why))
        try:
            return list(reader.users()), rejected
        finally:
            reader.close()

    def _apply(self, connection: Connection, plan: Plan) -> None:
        sync_store.change(connection, plan.changed)
        sync_store.add(connection, plan.source, plan.added)
        sync_store.deactivate(connection, [user.id for user, _ in plan.deactivated])
        sync_store.note_absent(connection, [user.id for user in plan.absent])
        sync_store.note_present(connection, [user.id for user in plan.present_again])
        source = plan.source
        events: list[tuple[str, str, dict[str, Any]]] = [
            ("user.added", str(person.username), {"directory": source}) for person in plan.added
        ]
        for change in plan.changed:
            details: dict[str, Any] = {"directory": source, "keys": sync_plan.differences(change)}
            if change.name != change.user.username:
                details["before"] = change.user.username
            if details["keys"]:
                events.append(("user.changed", change.name, details))
            if change.reactivated:
                events.append(("user.reactivated", change.name, {"directory": source}))
        for user, reason in plan.deactivated:
            events.append(("user.deactivated", user.username, {"directory": source, "reason": reason}))
        audit.record_all(connection, events)

    # --- LDAP ------------------------------------------------------------------------------------------------

    def _tell(self, run_id: str, plan: Plan) -> None:
        """Tell LDAP of everybody it knows otherwise; what fails is told by the next run."""
        if self._push is None:
            return
        with self._store.transaction() as connection:
            now = {user.source_key: user for user in sync_store.known(connection) if user.source == plan.source}
        people = {person.key: person for _, person in plan.matched} | {person.key: person for person in plan.added}
        due = []
        for key, person in people.items():
            user = now.get(key)
            if user is not None and user.directory_digest != digest(user, person):
                due.append((Told(user.id, user.username, person, user.active), user))
        if not due:
            return
        try:
            self._push([told for told, _ in due])
        except DmException as error:
            LOG.warning("LDAP was not told of %d users of %s: %s", len(due), plan.source, error)
            with self._store.transaction() as connection:
                sync_store.remark(connection, run_id, storable(f"LDAP was not told of {len(due)} users: {error}"))
            return
        with self._store.transaction() as connection:
            sync_store.note_told(connection, [(user.id, digest(user, told.person)) for told, user in due])

    # --- in the background -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run whenever a run is due."""
        if self.names and self._settings.every_hours > 0:
            self._rounds.start()

    def stop(self) -> None:
        """End; a run under way is given a moment, and undone by the database if it takes longer."""
        self._stop.set()
        with self._ended:
            threads = [thread for _, thread in self._runs.values()]
            self._ended.notify_all()
        for thread in threads:
            thread.join(_STOP_SECONDS)
        self._rounds.stop(_STOP_SECONDS)

    def _round(self) -> float:
        for name in self.names:
            if self._stop.is_set():
                break
            try:
                if self._due(name):
                    self.run(ACTOR, name)
            except InvalidObjectState:
                LOG.debug("users of %s are being synchronised by somebody else", name)
            except DmException as error:  # the other directories are to be read all the same
                LOG.warning("user synchronisation waits: %s", error)
        return _TICK_SECONDS

    def _due(self, name: str) -> bool:
        """Whether it is time: after the interval, or after a failed try a while later."""
        with self._store.transaction() as connection:
            done, tried = sync_store.ages(connection, name)
        interval = self._settings.every_hours * 3600
        if tried is None:
            return True
        return (done is None or done >= interval) and tried >= min(interval, _RETRY_SECONDS)

    def watch(self, health: Health) -> None:
        """Add a check: a warning where the last run was refused or failed, or none was made in time.

        Strangers may read it: of what went wrong it says where to look.
        """

        def check() -> tuple[Level, str]:
            if not self.names:
                return "ok", "no user directory"
            worst: Level = "ok"
            sentences = []
            for name in self.names:
                level, sentence = self._health(name)
                worst = "warning" if level == "warning" else worst
                sentences.append(sentence)
            return worst, " ".join(sentences)

        health.check("user_sync", check)

    def _health(self, name: str) -> tuple[Level, str]:
        with self._store.transaction() as connection:
            rows = [row for row in sync_store.runs(connection, name, 20) if not row["dry_run"]]
            done, _ = sync_store.ages(connection, name)
        ended = [row for row in rows if row["status"] != "running"]
        interval = self._settings.every_hours * 3600
        if ended and ended[-1]["status"] != "done":
            return "warning", f"{name}: {ended[-1]['status']}; dm-list-user-syncs says why."
        if ended and (remark := ended[-1]["summary"].get("remark")):
            return "warning", f"{name}: {remark.partition(':')[0]}; dm-list-user-syncs says why."
        if interval and (done is None or done > 2 * interval):
            return "warning" if ended else "ok", f"{name}: not synchronised yet." if done is None else (
                f"{name}: synchronised {done / 3600:.0f} h ago, wanted every {self._settings.every_hours:g} h."
            )
        return "ok", f"{name}: {ended[-1]['message']}" if ended else f"{name}: not synchronised yet."


def digest(user: Known, person: Person) -> bytes:
    """Return a digest of all LDAP is told of a user."""
    told = (user.username, user.active, astuple(person))
    return hashlib.sha256(repr(told).encode("utf-8", "backslashreplace")).digest()


def _number(source: str) -> int:
    """Return the number under which a directory is locked."""
    return crc32(source.encode()) & 0x7FFFFFFF


def _said(plan: Plan, dry_run: bool) -> str:
    found = plan.summary()
    words = ("added", "updated", "reactivated", "deactivated", "absent", "unchanged", "skipped")
    counts = ", ".join(f"{found[word]} {word}" for word in words)
    return f"{'Would be: ' if dry_run else ''}{counts}."
