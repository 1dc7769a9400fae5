"""Waiting for one file, woken by the ledger instead of asking it again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument, ObjectNotFound
from dm.common.paths import decode
from dm.station.acquisition.plugins.base import Order
from dm.station.acquisition.rows import State
from dm.station.acquisition.whereabouts import Candidate, Record, Sees, Wanted, record_of, responsible

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office

UNTIL = ("stored", "cataloged", "done")
_SLICE = 0.25  # seconds after which a waiting request looks whether the service stops


def wait_for_file(office: Office, wanted: Wanted, sees: Sees, until: str, seconds: float) -> Record:
    """Return a file's record as soon as it is so far, or never will be, or the time has passed.

    :param until: ``stored`` (in storage, verified), ``cataloged`` (and in the catalog), or ``done`` (and every plugin).
    :returns: the record, with ``reached``, ``over`` (it can no longer be reached by itself), ``daqId``, ``state``
        (``unknown`` while no DAQ or upload has the file).
    :raises ObjectNotFound: no such DAQ or upload.
    """
    if until not in UNTIL:
        raise InvalidArgument(f"A file cannot be waited for until it is {until!r}; choose {', '.join(UNTIL)}.")
    deadline = time.monotonic() + seconds
    with office.waits.place() as held:
        while True:
            changes = office.changes
            found = responsible(office, wanted, sees)
            if found is None and wanted.id:
                raise ObjectNotFound(f"DAQ or upload {wanted.id[:80]!r} does not exist.")
            answer = _watched(office, found[0] if found else None, wanted, until, deadline if held else 0.0)
            if answer["reached"] or answer["over"] or not held or _late(office, deadline):
                return answer
            # Nobody is responsible, or who was has just ended: something has to begin or end before that is otherwise.
            while office.changes == changes and not _late(office, deadline):
                with office.begun:
                    office.begun.wait(min(_SLICE, max(0.01, deadline - time.monotonic())))


def _late(office: Office, deadline: float) -> bool:
    return time.monotonic() >= deadline or office.stopping.is_set()


def _watched(office: Office, found: Candidate | None, wanted: Wanted, until: str, deadline: float) -> Record:
    """Follow a file through the ledger of its task, to the end of the task at most."""
    if found is None:
        return {"path": wanted.source_path or wanted.path, "state": "unknown", "reached": False, "over": False}
    while True:
        live = office.live.get(found.id)
        writes = live.ledger.writes if live is not None else 0
        state = live.ledger.state(found.path) if live is not None else None
        answer = _answer(office, found, until, live is not None)
        if answer["reached"] or answer["over"] or live is None or _late(office, deadline):
            return answer
        ledger = live.ledger
        while not _late(office, deadline) and office.live.get(found.id) is live:
            ledger.wait(writes, _SLICE)
            writes = ledger.writes
            now = ledger.state(found.path)
            if now is not state or now is State.STORED:
                break


def _answer(office: Office, found: Candidate, until: str, running: bool) -> Record:
    record: dict[str, Any] = record_of(office, found) or {"path": decode(found.path), "state": "unknown"}
    reached = _reached(office, record, until)
    lost = record["state"] in ("failed", "skipped", "vanished") or (not running and not found.document.get("open"))
    return {
        **record,
        "daqId": found.id,
        "kind": found.kind,
        "experimentName": found.experiment["name"],
        "experimentFilePath": decode(found.target),
        "reached": reached,
        "over": not reached and lost,
    }


def _reached(office: Office, record: Record, until: str) -> bool:
    if record["state"] == "done":
        return True
    pending = set(record.get("pendingPlugins") or [])
    in_storage = record["state"] == "stored" or (record["state"] == "failed" and bool(pending))
    if until == "stored" or not in_storage:
        return until == "stored" and in_storage
    catalogs = {plugin.name for plugin in office.parts.plugins if plugin.order == Order.CATALOG}
    return until == "cataloged" and not pending & catalogs
