"""The audit log: who logged in, who changed rights, who deleted what. Rows are added and, years later, dropped.

Each event is a row of ``audit_events``, written in the transaction of what it tells of, and a line of the logger
``dm.audit``. No route changes or removes one. Events are called ``noun.verb``.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert, select

from dm.common.caller import CALLER, calling
from dm.common.texts import storable
from dm.site.database.tables import audit_events

AUDIT = logging.getLogger("dm.audit")
_LONGEST = 500


@contextmanager
def acting(actor: str) -> Iterator[None]:
    """Name a background worker as the one who acts inside the block."""
    with calling(replace(CALLER.get(), actor=actor)):
        yield


def record(connection: Connection, event: str, subject: str = "", **details: Any) -> None:
    """Note an event in the caller's transaction.

    Who acts, from where and for which request is taken from :data:`dm.common.caller.CALLER`.

    :param event: ``noun.verb``. :param subject: the user, experiment, token ... it is about, as an administrator would
        search for it: a user name, ``experiment/station``, a token's id.
    :param details: what else should be known; JSON values without secrets.
    """
    caller = CALLER.get()
    values = {name: _plain(value) for name, value in details.items() if value is not None}
    if caller.token:
        values["token"] = caller.token
    connection.execute(
        insert(audit_events).values(
            service=caller.service,
            event=event,
            actor=_text(caller.actor),
            subject=_text(subject),
            remote=_text(caller.remote),
            request_id=caller.request_id,
            details=values,
        )
    )
    log(event, subject, **values)


def record_all(connection: Connection, events: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Note many events in the caller's transaction with one statement.

    :param events: each event, subject and details, as of :func:`record`.
    """
    caller = CALLER.get()
    rows: list[dict[str, Any]] = [
        {
            "service": caller.service,
            "event": event,
            "actor": _text(caller.actor),
            "subject": _text(subject),
            "remote": _text(caller.remote),
            "request_id": caller.request_id,
            "details": {name: _plain(value) for name, value in details.items() if value is not None},
        }
        for event, subject, details in events
    ]
    if rows:
        connection.execute(insert(audit_events), rows)
    for row in rows:
        log(row["event"], row["subject"], **row["details"])


def log(event: str, subject: str = "", **details: Any) -> None:
    """Write only the line, for what cannot have a row."""
    caller = CALLER.get()
    words = " ".join(f"{name}={json.dumps(value)}" for name, value in details.items())
    actor, remote = caller.actor or "-", caller.remote or "-"
    AUDIT.info("%s %s by %s remote=%s %s", event, _text(subject) or "-", actor, remote, words)


def _plain(value: Any) -> Any:
    """Return a value as PostgreSQL's JSON takes it: no NUL, no lone surrogates, no end."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, dict):
        return {_text(str(key)): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    return _text(str(value))


def _text(value: str) -> str:
    shown = storable(value)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."


def known(connection: Connection, event: str, subject: str) -> bool:
    """Whether such an event has been noted of the subject."""
    statement = select(audit_events.c.id).where(audit_events.c.subject == subject, audit_events.c.event == event)
    return connection.execute(statement.limit(1)).first() is not None
