"""The ledger as users see it: rows of the database, joined with what is on its way at this moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument
from dm.common.paths import decode, display
from dm.station.acquisition import ledger
from dm.station.acquisition.ledger import row_id
from dm.station.acquisition.task import Task

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office

STATES = ("seen", "settling", "ready", "moving", "stored", "done", "failed", "skipped", "vanished")


def listed_files(office: Office, task_id: str, state: str | None, skip: int, limit: int) -> list[dict[str, Any]]:
    """Return ledger records of a DAQ or upload.

    :param state: only files in this state. :param skip: :param limit: page.
    :raises InvalidArgument: no such state.
    """
    if state not in (None, "", *STATES):
        raise InvalidArgument(f"State {state!r} is unknown; choose {', '.join(STATES)}.")
    live = office.live.get(task_id)
    if state in ("seen", "settling"):
        paths = live.settling() if live is not None and state == "settling" else []
        return [_brief(path, "settling") for path in paths[skip : skip + limit]]
    moving = _moving(office, live) if live is not None else {}
    if state == "moving":
        rows = [office.store.row(row) for row in list(moving)[skip : skip + limit]]
        return [_shown(row, moving) for row in rows if row is not None]
    if state == "ready":
        # Those on their way count as moving; as many more are read as there can be of them.
        rows_ready = office.store.rows_in(task_id, state, skip, limit + len(moving))
        return [_shown(row, moving) for row in rows_ready if row["_id"] not in moving][:limit]
    found = office.store.rows_in(task_id, state, skip, limit) if state else office.store.page(task_id, skip, limit)
    return [_shown(row, moving) for row in found]


def _moving(office: Office, task: Task) -> dict[str, None]:
    with office.pipeline.condition:
        loads = [load for batch in task.batches.values() for load in batch.loads]
    return {row_id(task.id, load.item.path): None for load in loads}


def _shown(row: dict[str, Any], moving: dict[str, None]) -> dict[str, Any]:
    record = ledger.shown(row)
    if record["state"] == "ready" and row["_id"] in moving:
        record["state"] = "moving"
    return record


def _brief(path: bytes, state: str) -> dict[str, Any]:
    return {"path": decode(path), "displayPath": display(path), "state": state, "size": None, "lastError": ""}
