"""What happened to one file, in order."""

from __future__ import annotations

from typing import Any

from dm.common import timestamps

_STEPS = {
    "seen": "It was first seen.",
    "ready": "It was found whole",
    "moved": "Its bytes had arrived in the staging area of storage.",
    "stored": "Storage had verified it and put it in its place.",
    "done": "Its outcome was final",
}


def timeline(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a file's record, oldest first: ``time`` (epoch seconds), ``timestamp``, ``event``, ``text``.

    :param record: as in a list of files, with ``times`` and perhaps ``history``.
    """
    events = [
        {"time": float(moment), "event": step, "text": _text(step, record)}
        for step, moment in (record.get("times") or {}).items()
        if step in _STEPS and moment
    ]
    events += [dict(event) for event in record.get("history") or []]
    order = list(_STEPS)
    events.sort(key=lambda event: (event["time"], order.index(event["event"]) if event["event"] in order else -1))
    return [{**event, "timestamp": timestamps.text(float(event["time"]))} for event in events]


def _text(step: str, record: dict[str, Any]) -> str:
    if step == "ready":
        rule = record.get("rule")
        return _STEPS[step] + (f" (rule {rule})." if rule else ".")
    if step == "done":
        return f"{_STEPS[step]}: {record['state']}."
    return _STEPS[step]
