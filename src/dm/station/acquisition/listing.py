"""The ledger as users see it: rows of the database, joined with what is on its way at this moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument
from dm.common.paths import decode, display, encode
from dm.station.acquisition import ledger
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
    if live is None:
        return ledger.Ledger(office.store, task_id).listing(state, skip, limit)
    moving = _moving(office, live)
    if state == "moving":
        found = [live.ledger.find(path) for path in list(moving)[skip : skip + limit]]
        return [_shown(row, moving) for row in found if row is not None]
    if state == "ready":
        # Those on their way count as moving; as many more are read as there can be of them.
        ready = live.ledger.listing(state, skip, limit + len(moving))
        return [row for row in ready if encode(row["path"]) not in moving][:limit]
    return [_shown(row, moving) for row in live.ledger.listing(state, skip, limit)]


def _moving(office: Office, task: Task) -> dict[bytes, None]:
    with office.pipeline.condition:
        return {load.item.path: None for batch in task.batches.values() for load in batch.loads}


def _shown(row: dict[str, Any], moving: dict[bytes, None]) -> dict[str, Any]:
    if row["state"] == "ready" and encode(row["path"]) in moving:
        row["state"] = "moving"
    return row


def _brief(path: bytes, state: str) -> dict[str, Any]:
    return {"path": decode(path), "displayPath": display(path), "state": state, "size": None, "lastError": ""}
