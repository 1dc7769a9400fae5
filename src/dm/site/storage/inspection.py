"""Looking through what is in storage: all experiments in turn, at a pace nobody notices, and those asked for at once.

Of all processes of the site one inspects at a time: it holds a lease in the database, which runs out when it dies.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from typing import Any

from sqlalchemy import Connection, RowMapping

from dm.common import paths, timestamps
from dm.common.errors import DmException, InvalidArgument, InvalidObjectState
from dm.common.health import Health, Level
from dm.common.web.routes import Principal
from dm.site.database import registry_store
from dm.site.database.store import INSPECTION_LOCK, Store, try_lock
from dm.site.identity import audit
from dm.site.storage import experiment_store, inspection_store
from dm.site.storage.batches import Signal
from dm.site.storage.directories import Owners
from dm.site.storage.experiments import Reference, find_visible
from dm.site.storage.inspection_round import DAMAGE, LeaseLostError, Round
from dm.site.storage.inspection_settings import InspectionSettings
from dm.site.storage.pace import Pace
from dm.site.storage.verification import StoppedError

LOG = logging.getLogger(__name__)

_POLL_SECONDS = 60.0
_LEASE_SECONDS = 120.0
_LOOK_SECONDS = 2.0
_RETRY_SECONDS = 300.0
_STOP_SECONDS = 3.0
_MOST = 10_000
_MEGABYTE = 1 << 20


class Inspections:
    """The use cases.

    :param work: rung when a round was asked for.
    """

    def __init__(self, store: Store, owners: Owners, work: Signal) -> None:
        self._store = store
        self._owners = owners
        self._work = work

    def ask(self, principal: Principal, reference: Reference, read_again: bool, repair: bool) -> dict[str, Any]:
        """Have an experiment looked through as soon as possible.

        :param read_again: read and digest every file, not only look at size and time.
        :param repair: set owners, modes and lists right that are wrong; nothing else is ever changed.
        :returns: the record, with ``untilRound``: when ``rounds`` is as large, this round has ended.
        :raises InvalidObjectState: the experiment is being deleted or moved.
        """
        options = {key: True for key, wanted in (("readAgain", read_again), ("repair", repair)) if wanted}
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
            if experiment["state"] != "active":
                raise InvalidObjectState(f"Experiment {experiment['name']!a} is {experiment['state']}.")
            row = inspection_store.ask(connection, experiment["id"], principal.username, options)
            subject = f"{experiment['name']}/{experiment['station_name']}"
            audit.record(connection, "inspection.asked", subject, experimentId=experiment["id"], **options)
        self._work.ring()
        under_way = row["started"] is not None
        return self._record(row, experiment) | {"untilRound": row["rounds"] + (2 if under_way else 1)}

    def get(self, principal: Principal, reference: Reference, after: int = 0, limit: int = 1000) -> dict[str, Any]:
        """Return an experiment's record with a page of ``findings``.

        :param after: ``nextAfter`` of the page before. :param limit: 1 to 10,000 findings.
        :raises ObjectNotFound: no such experiment.
        """
        if not 1 <= limit <= _MOST:
            raise InvalidArgument(f"Limit {limit} is outside 1 to {_MOST}.")
        with self._store.transaction() as connection:
            experiment = find_visible(connection, reference, principal)
            row = inspection_store.get(connection, experiment["id"])
            found = inspection_store.findings(connection, experiment["id"], max(after, 0), limit)
        record = self._record(row, experiment)
        record["findings"] = [_finding(one, experiment) for one in found]
        record["nextAfter"] = found[-1]["id"] if len(found) == limit else None
        return record

    def at_station(self, station: str) -> list[dict[str, Any]]:
        """Return the records of all experiments of a station that were looked through, or are to be."""
        with self._store.transaction() as connection:
            place = registry_store.required(connection, "station", station)
            rows = inspection_store.at_station(connection, place["id"])
        return [_summary(row, row["experiment_name"], row["station_name"]) for row in rows]

    def _record(self, row: RowMapping | None, experiment: RowMapping) -> dict[str, Any]:
        record = _summary(row, experiment["name"], experiment["station_name"])
        return record | {"limits": self._owners.limits(experiment)}


class Inspector:
    """Goes round in the background from :meth:`start` to :meth:`stop`.

    :param work: rung when a round was asked for.
    """

    def __init__(self, store: Store, owners: Owners, settings: InspectionSettings, work: Signal) -> None:
        self._store = store
        self._owners = owners
        self._settings = settings
        self._work = work
        self._name = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._experiment: int | None = None
        self._patient = False
        self._renewed = self._looked = 0.0
        self.files = 0
        self.bytes = 0

    def start(self) -> None:
        """Begin."""
        if not self._settings.enabled:
            return
        self._thread = threading.Thread(target=self._run, name="inspector", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End soon; a round under way goes on where it was at the next start, here or elsewhere."""
        self._stop.set()
        self._work.ring()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            self._thread = None

    def _run(self) -> None:
        with audit.acting("inspector"):
            while not self._stop.is_set():
                seen = self._work.count()
                try:
                    if self.work():
                        continue
                except DmException as error:
                    LOG.warning("inspections wait: %s", error)
                except Exception:
                    LOG.exception("inspections")
                self._work.wait(seen, _POLL_SECONDS)

    def work(self) -> bool:
        """Go once through the experiment whose turn it is, unless another one becomes urgent.

        :returns: whether there may be more to do now; ``False`` also if another process inspects.
        """
        with self._store.transaction() as connection:
            if not try_lock(connection, INSPECTION_LOCK, 0):
                return False
            if self._settings.every_days > 0:
                inspection_store.plan(connection, self._settings.every_days, self._settings.read_every_days)
            experiment_id = inspection_store.claim(connection, self._name, _LEASE_SECONDS)
            if experiment_id is None:
                return False
            experiment = experiment_store.by_id(connection, experiment_id)
            row = inspection_store.get(connection, experiment_id)
        if experiment is None or row is None:
            return False
        self._experiment, self._renewed = experiment_id, time.monotonic()
        self._patient = not row["asked_by"]
        error, seconds = None, 0.0
        try:
            counts = self._round(experiment, row).run()
            LOG.info("experiment %d was looked through: %s", experiment_id, counts)
            return True
        except StoppedError:
            self._give_back(experiment_id, None, 0.0)
            return not self._stop.is_set()
        except LeaseLostError:
            LOG.info("experiment %d is elsewhere, or another process inspects it", experiment_id)
        except DmException as problem:  # the database, or the experiment's file system
            error, seconds = str(problem)[:500], _RETRY_SECONDS
            LOG.warning("inspecting experiment %d: %s", experiment_id, error)
        except Exception as problem:
            error, seconds = f"{type(problem).__name__}: {problem}"[:500], _RETRY_SECONDS
            LOG.exception("inspecting experiment %d", experiment_id)
        self._give_back(experiment_id, error, seconds)
        return False

    def _give_back(self, experiment_id: int, error: str | None, seconds: float) -> None:
        try:
            with self._store.transaction() as connection:
                inspection_store.release(connection, experiment_id, self._name, error, seconds)
        except DmException as problem:
            LOG.warning("the inspection of experiment %d goes on when its lease runs out: %s", experiment_id, problem)

    def _round(self, experiment: RowMapping, row: RowMapping) -> Round:
        settings = self._settings
        return Round(
            self._store,
            self._owners,
            experiment,
            row,
            files=_Counting(self, "files", settings.files_per_second),
            reading=_Counting(self, "bytes", settings.megabytes_per_second * _MEGABYTE),
            hold=self._hold,
        )

    def _hold(self, connection: Connection) -> bool:
        self._renewed = time.monotonic()
        return inspection_store.hold(connection, self._experiment or 0, self._name, _LEASE_SECONDS)

    def alive(self) -> None:
        """Keep the lease, however large one file is, and let a round go first that somebody waits for.

        :raises LeaseLostError: it is lost. :raises StoppedError: this round, which nobody waits for, goes on later.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        with self._store.transaction() as connection:
            if now - self._renewed > _LEASE_SECONDS / 4 and not self._hold(connection):
                raise LeaseLostError
            if self._patient and inspection_store.is_wanted(connection):
                raise StoppedError

    @property
    def stopping(self) -> threading.Event:
        """Set when the service stops."""
        return self._stop


class _Counting(Pace):
    """A pace that adds up what was done in an attribute of the inspector."""

    def __init__(self, inspector: Inspector, name: str, rate: float) -> None:
        super().__init__(rate, inspector.stopping, inspector.alive)
        self._inspector = inspector
        self._attribute = name

    def take(self, amount: float) -> None:
        """See :meth:`Pace.take`."""
        super().take(amount)
        setattr(self._inspector, self._attribute, getattr(self._inspector, self._attribute) + int(amount))


def watch(health: Health, store: Store, owners: Owners, inspector: Inspector, settings: InspectionSettings) -> None:
    """Add the checks ``files`` (what inspections found) and ``permissions`` (what this service can give)."""
    findings = health.gauge("inspection_findings", "Files in storage with something wrong.", ("kind",))
    late = health.gauge("inspection_overdue", "Experiments that were not looked through for twice the time set.")
    for name, text in (("files", "Files looked at by inspections."), ("bytes", "Bytes read by inspections.")):
        gauge: Any = health.gauge(f"inspected_{name}", f"{text} Since the start.")
        gauge.set_function(lambda name=name: getattr(inspector, name))

    def files() -> tuple[Level, str]:
        with store.transaction() as connection:
            found = inspection_store.open_findings(connection)
            overdue = inspection_store.overdue(connection, 2 * settings.every_days) if settings.every_days else 0
        findings.clear()
        for kind, (count, _) in found.items():
            findings.labels(kind).set(count)
        late.set(overdue)
        told = [f"{found[kind][0]} {kind}" for kind in (*DAMAGE, "permissions", "link", "special") if kind in found]
        if told:
            return "warning", f"inspections found files in storage: {', '.join(told)}; see dm-list-inspections"
        if overdue and settings.enabled:
            return "warning", f"{overdue} experiments were not looked through in time; inspections are too slow"
        return "ok", "inspections found nothing missing, damaged or open to others"

    def permissions() -> tuple[Level, str]:
        if owners.as_root:
            return "ok", "files get their experiment's owner and group"
        with store.transaction() as connection:
            numbers = inspection_store.own_numbers(connection)
        said = "reduced: the service is not run as root and gives files only groups it is a member of"
        if numbers:
            return "warning", f"{said}; {numbers} experiments have a group of their own"
        return "ok", said

    health.check("files", files)
    health.check("permissions", permissions)


def _summary(row: RowMapping | None, experiment: str, station: str) -> dict[str, Any]:
    """Return the record of an experiment's inspections."""
    record: dict[str, Any] = {"experimentName": experiment, "stationName": station}
    if row is None:
        return record | {"status": "never", "rounds": 0}
    record |= {
        "status": "running" if row["started"] is not None else "waiting" if row["asked"] is not None else "done",
        "rounds": row["rounds"],
        **{f"count{kind[:1].upper()}{kind[1:]}": count for kind, count in sorted(row["counts"].items())},
    }
    for key, column in (("start", "started"), ("end", "ended"), ("readEnd", "read_ended")):
        if row[column] is not None:
            seconds = row[column].timestamp()
            record |= {f"{key}Time": seconds, f"{key}Timestamp": timestamps.text(seconds)}
    if row["last_error"]:
        record["errorMessage"] = row["last_error"]
    return record


def _finding(row: RowMapping, experiment: RowMapping) -> dict[str, Any]:
    seconds = row["found"].timestamp()
    record = {
        "id": row["id"],
        "path": paths.decode(bytes(row["path"])),
        "kind": row["kind"],
        "detail": row["detail"],
        "foundTime": seconds,
        "foundTimestamp": timestamps.text(seconds),
        "repaired": row["repaired"] is not None,
    }
    if advice := _advice(row["kind"], experiment["name"], bytes(row["path"])):
        record["advice"] = advice
    return record


def _advice(kind: str, name: str, path: bytes) -> str:
    """Return what to do about a finding."""
    root, _, below = path.partition(b"/")
    if kind in ("missing", "changed", "digest") and below:
        place = " --use-analysis-directory-as-root" if root == b"analysis" else ""
        return (
            f"Send it again from its source: dm-upload --experiment {name} --data-directory DIRECTORY"
            f" --experiment-file-path {paths.display(below)!a} --reprocess{place}; storage takes it."
        )
    return {
        "missing": "Restore the directory from a backup, or send the files again.",
        "permissions": f"dm-restore-permissions --experiment {name} sets it right.",
        "extra": "Nobody published it: move it to analysis, upload it, or remove it.",
        "link": "Links are never followed: replace it by a copy, or remove it.",
        "special": "Remove it.",
        "unreadable": "See the storage log; the disk may be failing.",
    }.get(kind, "")
