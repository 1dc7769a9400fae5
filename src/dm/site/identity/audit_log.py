"""Reading the audit log, and dropping what is too old to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, func, or_, select

from dm.common import timestamps
from dm.common.errors import InvalidArgument
from dm.common.web.routes import Principal
from dm.site.database.store import Store
from dm.site.database.tables import audit_events

MOST = 1000
_DROPPED_AT_ONCE = 10_000


@dataclass(frozen=True)
class Question:
    """Which events are wanted; ``None`` leaves a condition out.

    :param event: its name, or the part before the dot for all of a kind. :param user: who acted, or whom it concerns.
    :param subject: what it is about. :param since: :param until: any form :func:`dm.common.timestamps.parse` reads.
    :param before: only events with a smaller id, for the next page.
    """

    event: str | None = None
    user: str | None = None
    subject: str | None = None
    since: str | float | None = None
    until: str | float | None = None
    before: int | None = None
    limit: int = 100


def record(row: RowMapping) -> dict[str, Any]:
    """Return the published record of an event."""
    return {
        "id": row["id"],
        "time": timestamps.iso(row["time"]),
        "service": row["service"],
        "event": row["event"],
        "actor": row["actor"],
        "subject": row["subject"],
        "remote": row["remote"],
        "requestId": row["request_id"],
        "details": row["details"],
    }


class AuditLog:
    """The use cases.

    :param keep_days: events older than this are dropped.
    """

    def __init__(self, store: Store, keep_days: float) -> None:
        self._store = store
        self._keep_days = keep_days

    def page(self, principal: Principal, question: Question) -> dict[str, Any]:
        """Return the newest events that fit, oldest first.

        Administrators see all, managers what concerns their stations: their experiments, and roles there.

        :returns: ``events``, and ``before`` with which to ask for the page of older ones; ``None`` when there is none.
        :raises InvalidArgument: a limit or a date that cannot be.
        """
        if not 1 <= question.limit <= MOST:
            raise InvalidArgument(f"Limit {question.limit} is out of range; take 1 to {MOST}.")
        conditions = _conditions(question)
        if not principal.is_admin:
            conditions.append(_of_stations([name for name in principal.station_roles if principal.manages(name)]))
        statement = select(audit_events).where(*conditions).order_by(audit_events.c.id.desc()).limit(question.limit)
        with self._store.transaction() as connection:
            rows = connection.execute(statement).mappings().all()
        full = len(rows) == question.limit
        return {"events": [record(row) for row in reversed(rows)], "before": rows[-1]["id"] if full else None}

    def forget(self) -> int:
        """Drop events that are too old, some at a time, and return how many. For the housekeeper."""
        with self._store.transaction() as connection:
            return _drop(connection, self._keep_days)


def _conditions(question: Question) -> list[ColumnElement[bool]]:
    table = audit_events.c
    for value in (question.event, question.user, question.subject):
        if value is not None and "\0" in value:
            raise InvalidArgument("A NUL cannot be looked for in the audit log.")
    found: list[ColumnElement[bool]] = []
    if question.event is not None:
        found.append(or_(table.event == question.event, func.split_part(table.event, ".", 1) == question.event))
    if question.user is not None:
        found.append(or_(table.actor == question.user, table.subject == question.user))
    if question.subject is not None:
        found.append(table.subject == question.subject)
    if question.since is not None:
        found.append(table.time >= timestamps.parse(question.since))
    if question.until is not None:
        found.append(table.time < timestamps.parse(question.until))
    if question.before is not None:
        found.append(table.id < question.before)
    return found


def _of_stations(stations: Sequence[str]) -> ColumnElement[bool]:
    """Events about these stations: subjects and details name experiments as ``name/station``."""
    table = audit_events.c
    return or_(
        func.split_part(table.subject, "/", 2).in_(stations),
        func.split_part(table.details["experiment"].astext, "/", 2).in_(stations),
        table.details["station"].astext.in_(stations),
    )


def _drop(connection: Connection, days: float) -> int:
    # By id: one walk along the primary key from its old end, however large the table is.
    old = (
        select(audit_events.c.id)
        .where(audit_events.c.time < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, days * 86400))
        .order_by(audit_events.c.id)
        .limit(_DROPPED_AT_ONCE)
    )
    return connection.execute(delete(audit_events).where(audit_events.c.id.in_(old))).rowcount
