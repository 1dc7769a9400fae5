"""Reading: what adapters say is checked and kept in PostgreSQL, from where alone the service answers.

Each adapter and kind is read on its own, by one process of the site at a time. A system that does not answer costs
nothing but freshness. Records come in parts (the proposals of a run, the safety forms of a year): what a part no longer
has is removed, parts that are not read any more stay as they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from dm.common import timestamps
from dm.common.errors import DmException, InvalidArgument, InvalidObjectState, ServiceLimit
from dm.common.texts import storable
from dm.site.database.store import Store
from dm.site.facility import records, store
from dm.site.facility.adapters.base import LOG, FacilityAdapter
from dm.site.facility.records import BadRecord
from dm.site.facility.settings import FacilitySettings
from dm.site.identity import audit

CACHED = ("runs", "beamlines", "proposals", "esafs")
MOST_RECORDS = 200_000
_FEW = 10  # so few records may vanish whatever their share
_SHOWN = 5


@dataclass
class Part:
    """What one part of a kind holds: records by key, and those that are left out."""

    prefix: str
    found: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Outcome:
    """How reading one kind from one adapter went.

    :param rejected: records left out. :param reasons: why, for some of them. :param problem: why nothing was changed.
    """

    adapter: str
    kind: str
    count: int = 0
    changed: int = 0
    removed: int = 0
    rejected: int = 0
    duplicates: int = 0
    reasons: list[str] = field(default_factory=list)
    problem: str = ""
    skipped: bool = False

    def reject(self, which: str, why: str) -> None:
        """Count a record that is left out."""
        self.rejected += 1
        if len(self.reasons) < _SHOWN:
            self.reasons.append(storable(f"{which[:80]}: {why[:200]}"))

    def record(self) -> dict[str, Any]:
        """Return the outcome as scripts see it."""
        return {
            "adapter": self.adapter,
            "kind": self.kind,
            "status": "failed" if self.problem else "skipped" if self.skipped else "done",
            "countRecords": self.count,
            "countRemoved": self.removed,
            "countRejected": self.rejected,
            "countDuplicates": self.duplicates,
            "rejected": self.reasons,
            "errorMessage": self.problem,
        }


class Readings:
    """Reads the adapters into the database.

    :param adapters: name -> adapter, in order of precedence.
    """

    def __init__(self, database: Store, adapters: Mapping[str, FacilityAdapter], settings: FacilitySettings) -> None:
        self._store = database
        self.adapters = dict(adapters)
        self._in_use = {name: threading.Lock() for name in self.adapters}  # an adapter serves one thread at a time
        self._settings = settings

    @property
    def names(self) -> list[str]:
        """The adapters' names, in order of precedence."""
        return list(self.adapters)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield adapter and kind of everything that is read, runs first: proposals are read by run."""
        for kind in CACHED:
            for name, adapter in self.adapters.items():
                if kind in adapter.provides:
                    yield name, kind

    def read(
        self, adapter: str | None = None, kind: str | None = None, force: bool = False, due: bool = False
    ) -> list[Outcome]:
        """Read adapters now and return how it went; failures are outcomes, too.

        :param adapter: :param kind: only this one. :param force: also when many records would go.
        :param due: only what is older than ``refresh_minutes`` and nobody else reads at this moment.
        :raises InvalidArgument: no such adapter or kind. :raises ServiceUnavailable: no database.
        """
        chosen = [pair for pair in self.pairs() if adapter in (None, "", pair[0]) and kind in (None, "", pair[1])]
        if not chosen and (adapter or kind):
            known = ", ".join(f"{name}/{what}" for name, what in self.pairs()) or "none"
            raise InvalidArgument(f"No adapter {adapter or ''!a} with {kind or 'records'!a}; there are {known}.")
        return [self._in_turn(self.adapters[name], what, force, due) for name, what in chosen]

    def _in_turn(self, adapter: FacilityAdapter, kind: str, force: bool, due: bool) -> Outcome:
        if not self._in_use[adapter.name].acquire(blocking=not due):
            return Outcome(adapter.name, kind, skipped=True)
        try:
            return self._read(adapter, kind, force, due)
        finally:
            self._in_use[adapter.name].release()

    def _read(self, adapter: FacilityAdapter, kind: str, force: bool, due: bool) -> Outcome:
        outcome = Outcome(adapter.name, kind)
        try:
            with self._store.transaction() as connection:
                if not store.hold(connection, adapter.name, kind, wait=not due):
                    outcome.skipped = True
                    return outcome
                last = store.readings(connection).get((adapter.name, kind), {})
                if due and time.time() - float(last.get("tried", 0)) < self._settings.refresh_minutes * 60 - 1:
                    outcome.skipped = True
                    return outcome
                runs = self._runs(connection)
                for part in self._parts(adapter, kind, runs, outcome):
                    self._keep(connection, outcome, part, force)
                now = time.time()
                store.note(
                    connection, adapter.name, kind, tried=now, time=now, count=outcome.count, problem="",
                    rejected=outcome.rejected, reasons=outcome.reasons,
                )  # fmt: skip
        except DmException as error:
            outcome.problem = error.message
        except Exception as error:  # an adapter may be anybody's code: whatever it throws is a reading that failed
            LOG.exception("adapter %s failed while reading %s", adapter.name, kind)
            outcome.problem = f"{type(error).__name__}: {error}"
        if outcome.problem:
            self._failed(outcome)
        elif outcome.rejected:
            LOG.warning("adapter %s: %d %s left out: %s", adapter.name, outcome.rejected, kind, outcome.reasons)
        return outcome

    def _failed(self, outcome: Outcome) -> None:
        outcome.problem = storable(outcome.problem[:500])
        LOG.warning("adapter %s: %s not read: %s", outcome.adapter, outcome.kind, outcome.problem)
        with self._store.transaction() as connection:
            store.note(connection, outcome.adapter, outcome.kind, tried=time.time(), problem=outcome.problem)

    def _runs(self, connection: Any) -> dict[str, dict[str, Any]]:
        found = store.records(connection, self.names, "runs")
        return {run["name"]: run for run in sorted(found, key=lambda run: timestamps.parse(run["startTime"]))}

    def _parts(
        self, adapter: FacilityAdapter, kind: str, runs: dict[str, dict[str, Any]], outcome: Outcome
    ) -> Iterator[Part]:
        """Yield what a kind has today, part by part, checked."""
        adapter.on_rejected = lambda _kind, which, why: outcome.reject(which, why)
        match kind:
            case "runs":
                yield self._checked(outcome, "", adapter.runs(), lambda raw: (run := records.run(raw))["name"] and run)
            case "beamlines":
                yield self._checked(outcome, "", adapter.beamlines(), records.beamline)
            case "esafs":
                this = date.today().year
                for year in range(this - self._settings.past_years, this + 2):
                    yield self._checked(outcome, f"{year}/", adapter.esafs(year), records.esaf, year)
            case "proposals":
                names: list[str | None] = [*self._recent(runs)]
                for name in names or [None]:
                    yield self._checked(
                        outcome,
                        f"{name}/" if name else "",
                        adapter.proposals(name),
                        lambda raw, name=name: records.proposal(raw, runs, name),
                        name,
                    )

    def _recent(self, runs: dict[str, dict[str, Any]]) -> list[str]:
        """Return the runs whose proposals are read: the current one, those to come, and some before."""
        now = datetime.now().astimezone()
        begun = [name for name, run in runs.items() if timestamps.parse(run["startTime"]) <= now]
        return list(runs)[max(0, len(begun) - 1 - self._settings.past_runs) :]

    @staticmethod
    def _checked(
        outcome: Outcome, prefix: str, raws: Iterable[Any], check: Any, asked: str | int | None = None
    ) -> Part:
        part = Part(prefix)
        for position, raw in enumerate(raws):
            if position >= MOST_RECORDS:
                raise ServiceLimit(f"More than {MOST_RECORDS} records; {MOST_RECORDS} of one part is the limit.")
            try:
                record = check(raw)
            except BadRecord as error:
                outcome.reject(_which(raw, position), str(error))
                continue
            key = _key(outcome.kind, record)
            if not _asked_for(outcome.kind, record, asked):
                continue
            if key in part.found:
                outcome.duplicates += 1
                continue
            part.found[key] = record
        outcome.count += len(part.found)
        return part

    def _keep(self, connection: Any, outcome: Outcome, part: Part, force: bool) -> None:
        had = store.known(connection, outcome.adapter, outcome.kind, part.prefix)
        gone = had - part.found.keys()
        share = 100 * len(gone) / len(had) if had else 0
        if not force and len(gone) > _FEW and share > self._settings.drop_limit_percent:
            raise InvalidObjectState(
                f"{len(gone)} of {len(had)} {outcome.kind} {part.prefix.rstrip('/')} would go ({share:.0f} %, limit "
                f"{self._settings.drop_limit_percent:.0f} %); look why, then run dm-refresh-facility --force."
            )
        if force and gone:
            audit.record(connection, "facility.forced", f"{outcome.adapter}/{outcome.kind}", removed=len(gone))
        store.write(connection, outcome.adapter, outcome.kind, part.found, gone)
        outcome.removed += len(gone)

    def close(self) -> None:
        """Let the adapters give up their connections."""
        for name, adapter in self.adapters.items():
            try:
                adapter.close()
            except Exception:  # anybody's code; the others are to be closed as well
                LOG.exception("adapter %s cannot be closed", name)

    def state(self) -> list[dict[str, Any]]:
        """Return for every adapter and kind when it was read last, how many records there were, and any problem.

        ``ageSeconds`` is ``None`` for what has never been read.
        """
        with self._store.transaction() as connection:
            noted = store.readings(connection)
        now = time.time()
        found = []
        for adapter, kind in self.pairs():
            last = noted.get((adapter, kind), {})
            found.append(
                {
                    "adapter": adapter,
                    "kind": kind,
                    "readTime": last.get("time"),
                    "readTimestamp": timestamps.text(last["time"]) if "time" in last else "",
                    "ageSeconds": round(max(0.0, now - last["time"]), 1) if "time" in last else None,
                    "countRecords": last.get("count", 0),
                    "countRejected": last.get("rejected", 0),
                    "rejected": last.get("reasons", []),
                    "errorMessage": last.get("problem", ""),
                }
            )
        return found


def _key(kind: str, record: Mapping[str, Any]) -> str:
    """Return the key of a record; it begins with the part the record is in."""
    if kind == "proposals":
        return f"{record['run']}/{record['id']}/{record['beamline']}"
    if kind == "esafs":
        return f"{record['experimentStartDate'][:4]}/{record['esafId']}"
    return str(record["name"])


def _asked_for(kind: str, record: Mapping[str, Any], asked: str | int | None) -> bool:
    """Whether a record is of the part that was asked for; an adapter may give more than that."""
    if asked is None:
        return True
    if kind == "esafs":
        return bool(record["experimentStartDate"][:4] == str(asked))
    return bool(record["run"] == asked)


def _which(raw: Any, position: int) -> str:
    for key in ("id", "esafId", "name", "runName"):
        if isinstance(raw, Mapping) and raw.get(key) not in (None, ""):
            return f"{key} {str(raw[key])[:40]!a}"
    return f"record {position + 1}"
