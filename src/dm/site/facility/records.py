"""Records of the facility as they are published: all keys there, numbers as numbers, flags and times in one spelling.

What adapters read comes from foreign systems. A record is cleaned where that is safe (text), and refused as a whole
where it is not (no number, no dates): whoever calls counts and reports it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from dm.common import timestamps
from dm.common.errors import InvalidArgument

MAX_TEXT = 20_000
MAX_RECORD_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_PEOPLE = 1000
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_DIGITS = re.compile(r"\d+")
_PERSON_KEYS = ("badge", "firstName", "lastName", "email", "institution")
Runs = Mapping[str, Mapping[str, Any]]


class BadRecord(ValueError):  # noqa: N818 - it is the record that is bad
    """A record that cannot be used; the text says why."""


def run(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run cycle: name, startTime, endTime, and the keys newer systems have (runId, runName, version).

    :raises BadRecord: no name or dates, or it ends before it starts.
    """
    record = _clean_record(raw)
    name = _text(record, "name") or _text(record, "runName")
    if not name or len(name) > 100 or "/" in name:
        raise BadRecord(f"its name is {name[:40]!a}")
    start, end = _span(record, "startTime", "endTime")
    return record | {
        "name": name,
        "runName": name,
        "startTime": timestamps.iso(start),
        "endTime": timestamps.iso(end),
    }


def beamline(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a beamline: name. :raises BadRecord: no name."""
    record = _clean_record(raw)
    name = _text(record, "name") or _text(record, "beamlineId") or _text(record, "beamlineName")
    if not name:
        raise BadRecord("it has no name")
    return record | {"name": name}


def proposal(raw: Mapping[str, Any], runs: Runs, asked: str | None = None) -> dict[str, Any]:
    """Return a proposal with all published keys, and ``run``, ``beamline``, ``station`` where they are known.

    :param runs: run name -> run record. A proposal without times gets those of its run. :param asked: the run it was
        read for. :raises BadRecord: no number, no dates and no run to take them from, people that are no list.
    """
    record = _clean_record(raw)
    number = _number(record.get("id"), "id")
    name = _text(record, "run") or asked or ""
    if name in runs:
        record["startTime"] = record.get("startTime") or runs[name]["startTime"]
        record["endTime"] = record.get("endTime") or runs[name]["endTime"]
    start, end = _span(record, "startTime", "endTime")
    if not name:
        name = next((one for one, known in runs.items() if _within(start, known)), "")
    duration = record.get("duration")
    return record | {
        "id": number,
        "title": _text(record, "title"),
        "run": name,
        "beamline": _text(record, "beamline"),
        "startTime": timestamps.iso(start),
        "endTime": timestamps.iso(end),
        "duration": _number(duration, "duration") if duration not in (None, "") else int((end - start).total_seconds()),
        "submittedDate": _moment(record, "submittedDate") or "",
        "totalShiftsRequested": _number(record.get("totalShiftsRequested") or 0, "totalShiftsRequested"),
        "mailInFlag": "Y" if flag(record.get("mailInFlag")) else "N",
        "proprietaryFlag": "Y" if flag(record.get("proprietaryFlag")) else "N",
        "activities": _activities(record.get("activities"), start, end),
        "experimenters": [
            person | {"piFlag": "Y" if pi else "N"} for person, pi in _people(record.get("experimenters"))
        ],
    }


def esaf(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a safety form with all published keys.

    :raises BadRecord: no number, no dates, people that are no list.
    """
    record = _clean_record(raw)
    start, end = _span(record, "experimentStartDate", "experimentEndDate")
    place = _text(record, "beamlineStation") or _text(record, "beamline")
    return record | {
        "esafId": _number(record.get("esafId"), "esafId"),
        "esafTitle": _text(record, "esafTitle"),
        "description": _text(record, "description"),
        "sector": sector(record.get("sector") or (digits.group() if (digits := _DIGITS.match(place)) else "")),
        "beamlineStation": place,
        "beamline": place,
        "esafStatus": _text(record, "esafStatus"),
        "experimentStartDate": _wall_clock(start),
        "experimentEndDate": _wall_clock(end),
        "experimentUsers": [
            person | {"badgeNumber": person["badge"], "piFlag": "Yes" if pi else "No"}
            for person, pi in _people(record.get("experimentUsers"))
        ],
    }


def sector(value: Any) -> str:
    """Return a sector as published: two digits where it is a number (``8`` -> ``08``), else the text."""
    text = str(value if value is not None else "").strip()
    return f"{int(text):02d}" if text.isascii() and text.isdigit() and len(text) < 6 else text[:100]


def flag(value: Any) -> bool:
    """Whether a flag in any spelling (Y, yes, true, 1, X) says yes."""
    if isinstance(value, str):
        return value.strip().lower() in ("y", "yes", "true", "t", "1", "x")
    return bool(value)


def badge(value: Any) -> str:
    """Return a badge number as text without leading zeros; empty for none."""
    if isinstance(value, bool) or value is None:
        return ""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lstrip("dD")
    return (text.lstrip("0") if text.isascii() and text.isdigit() else text)[:64]


def _people(value: Any) -> list[tuple[dict[str, Any], bool]]:
    """Return the people of a record, each once, and whether they are its principal investigator."""
    if value in (None, ""):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRecord("its people are no list") from None
    if not isinstance(value, list) or len(value) > MAX_PEOPLE or not all(isinstance(one, dict) for one in value):
        raise BadRecord(f"its people are no list of at most {MAX_PEOPLE} records")
    found: dict[Any, tuple[dict[str, Any], bool]] = {}
    for position, one in enumerate(value):
        key: str | int
        number = badge(one.get("badge") or one.get("badgeNumber"))
        person = one | {key: _text(one, key) for key in _PERSON_KEYS} | {"badge": number}
        person |= {"id": _number_or_zero(one.get("id")), "instId": _number_or_zero(one.get("instId"))}
        pi = flag(one.get("piFlag"))
        key = number or position
        if key in found:  # listed once as a member and once as the PI
            pi = pi or found[key][1]
        found[key] = (person, pi)
    return list(found.values())


def _activities(value: Any, start: datetime, end: datetime) -> list[dict[str, Any]]:
    given = value if isinstance(value, list) else []
    spans = []
    for one in given:
        if not isinstance(one, dict):
            raise BadRecord("its activities are no list of records")
        spans.append((one, *_span(one, "startTime", "endTime")))
    return [
        one
        | {
            "startTime": timestamps.iso(first),
            "endTime": timestamps.iso(last),
            "duration": int((last - first).total_seconds()),
        }
        for one, first, last in spans or [({}, start, end)]
    ]


def _span(record: Mapping[str, Any], first: str, last: str) -> tuple[datetime, datetime]:
    moments = []
    for key in (first, last):
        value = record.get(key)
        if value in (None, ""):
            raise BadRecord(f"it has no {key}")
        moments.append(_parsed(value, key))
    if moments[1] < moments[0]:
        raise BadRecord(f"it ends ({last}) before it starts")
    return moments[0], moments[1]


def _moment(record: Mapping[str, Any], key: str) -> str | None:
    value = record.get(key)
    return timestamps.iso(_parsed(value, key)) if value not in (None, "") else None


def _parsed(value: Any, key: str) -> datetime:
    try:
        moment = timestamps.parse(value)
    except InvalidArgument:
        raise BadRecord(f"its {key} is no date: {str(value)[:40]!a}") from None
    if not 1970 <= moment.year <= 2261:
        raise BadRecord(f"its {key} is in the year {moment.year}")
    return moment


def _wall_clock(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _within(moment: datetime, known: Mapping[str, Any]) -> bool:
    return timestamps.parse(known["startTime"]) <= moment <= timestamps.parse(known["endTime"])


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if isinstance(value, dict | list):
        raise BadRecord(f"its {key} is no text")
    return str(value).strip()[:MAX_TEXT]


def _number(value: Any, key: str) -> int:
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise BadRecord(f"its {key} is no number: {text[:40]!a}")
    return int(text)


def _number_or_zero(value: Any) -> int:
    try:
        return _number(value, "id")
    except BadRecord:
        return 0


def _clean_record(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise BadRecord("it is no record")
    record = {str(key): clean(value) for key, value in raw.items() if key is not None}
    if len(json.dumps(record)) > MAX_RECORD_BYTES:
        raise BadRecord(f"it has more than {MAX_RECORD_BYTES} bytes")
    return record


def clean(value: Any, depth: int = 0) -> Any:  # noqa: PLR0911 - one for each kind of value
    """Return a value as JSON that PostgreSQL stores: dates as text, no NUL, no half characters, no NaN.

    :raises BadRecord: nested too deep.
    """
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if value is None or isinstance(value, int):  # bool is one
        return value
    if depth > MAX_DEPTH:
        raise BadRecord(f"it is nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item, depth + 1) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    return clean(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _decimal(value: Decimal) -> int | float | None:
    if not value.is_finite() or abs(value) >= 10**18:  # no number of a record has so many digits
        return None
    return int(value) if value == value.to_integral_value() else float(value)
