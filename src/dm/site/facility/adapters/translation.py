"""From the facility's names to the published ones, by the settings: what every adapter of ours does with a row.

Only known keys and those the settings map reach a record: whatever else the facility's tables hold stays there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator

from dm.common.settings import ServiceSettings
from dm.site.facility import records
from dm.site.facility.adapters.base import FacilityAdapter, Person

_JOIN = "recordId"  # leads from a person to the record; no key of either
_PLACE = ("run", "beamline", "station", "sector")
KNOWN: dict[str, frozenset[str]] = {
    "users": frozenset(
        {
            "key", "badge", "username", "firstName", "middleName", "lastName", "email", "institution", "passwordHash",
            "active",
        }
    ),
    "runs": frozenset({"name", "startTime", "endTime", "runId", "runName", "version"}),
    "beamlines": frozenset({"name", "beamlineId", "beamlineName", "beamlineNum", "station", "sector"}),
    "proposals": frozenset(
        {
            "id", "title", "startTime", "endTime", "duration", "submittedDate", "totalShiftsRequested", "mailInFlag",
            "proprietaryFlag", "activities", "experimenters", *_PLACE,
        }
    ),
    "esafs": frozenset(
        {
            "esafId", "esafTitle", "description", "esafStatus", "experimentStartDate", "experimentEndDate",
            "experimentUsers", "beamlineStation", "doi", "gupId", *_PLACE,
        }
    ),
    "people": frozenset(
        {"id", "badge", "badgeNumber", "firstName", "lastName", "email", "institution", "instId", "piFlag"}
    ),
}  # fmt: skip
PEOPLE_KEY = {"proposals": "experimenters", "esafs": "experimentUsers"}
ID_KEY = {"proposals": "id", "esafs": "esafId"}


class TranslatingSettings(ServiceSettings):
    """Settings of adapters whose records are translated by tables."""

    fields: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="For each kind (users, runs, beamlines, proposals, esafs, people): published key -> the facility's "
        "name of it; dots lead into nested records.",
    )
    constants: dict[str, dict[str, str | int | bool]] = Field(
        default_factory=dict, description="For each kind: published key -> a value that all records have."
    )

    @field_validator("fields", "constants")
    @classmethod
    def _known_kinds(cls, value: dict[str, Any]) -> dict[str, Any]:
        for kind in value:
            if kind not in KNOWN:
                raise ValueError(f"{kind!r} is no kind of record; known are {', '.join(KNOWN)}")
        return value


class Translation:
    """Translates rows of one adapter.

    :param adapter: told of rows that are no records.
    """

    def __init__(self, adapter: FacilityAdapter, settings: TranslatingSettings) -> None:
        self._adapter = adapter
        self._fields = settings.fields
        self._constants = settings.constants

    def record(self, kind: str, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return one row under published keys; its people, where it holds them as a list, as well."""
        record = {key: raw[key] for key in KNOWN[kind] if key in raw}
        record |= {key: at(raw, name) for key, name in self._fields.get(kind, {}).items() if key != _JOIN}
        people = record.get(PEOPLE_KEY.get(kind, ""))
        if isinstance(people, list):
            record[PEOPLE_KEY[kind]] = [
                self.record("people", one) if isinstance(one, Mapping) else one for one in people
            ]
        return record | self._constants.get(kind, {})

    def records(self, kind: str, rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yield rows under published keys; what is no row is reported and left out."""
        for position, row in enumerate(rows):
            if isinstance(row, Mapping):
                yield self.record(kind, row)
            else:
                self._adapter.rejected(kind, f"record {position + 1}", "it is no record")

    def joined(self, kind: str, rows: Iterable[Any], people: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yield rows with their people from a list of its own, joined by the record's number (``recordId``)."""
        name = self._fields.get("people", {}).get(_JOIN, _JOIN)
        by_record: dict[str, list[dict[str, Any]]] = {}
        for row in people:
            if isinstance(row, Mapping) and at(row, name) not in (None, ""):
                by_record.setdefault(_number(at(row, name)), []).append(self.record("people", row))
        for record in self.records(kind, rows):
            found = by_record.get(_number(record.get(ID_KEY[kind])))
            if found or PEOPLE_KEY[kind] not in record:
                record[PEOPLE_KEY[kind]] = found or []
            yield record

    def people(self, rows: Iterable[Any]) -> Iterator[Person]:
        """Yield the people of a user directory; rows without key or name are reported and left out."""
        seen: set[str] = set()
        for record in self.records("users", rows):
            badge = records.badge(record.get("badge"))
            key = _text(record.get("key")) or badge or _text(record.get("username"))
            which = f"user {key[:40]!a}"
            if not key or (not badge and not record.get("username")):
                self._adapter.rejected("users", which, "it has no key, or neither badge nor user name")
            elif badge and not (badge.isascii() and badge.isdigit() and len(badge) <= 9):
                self._adapter.rejected("users", which, f"its badge is no number: {badge[:40]!a}")
            elif key in seen:
                self._adapter.rejected("users", which, "it is there twice")
            else:
                seen.add(key)
                yield Person(
                    key=key,
                    badge=int(badge) if badge else None,
                    username=_text(record.get("username")) or None,
                    first_name=_text(record.get("firstName")),
                    middle_name=_text(record.get("middleName")),
                    last_name=_text(record.get("lastName")),
                    email=_text(record.get("email")),
                    institution=_text(record.get("institution")),
                    password_hash=_text(record.get("passwordHash")) or None,
                    active=records.flag(record["active"]) if record.get("active") not in (None, "") else True,
                )


def at(raw: Any, path: str) -> Any:
    """Return what a name with dots leads to in nested records and lists; ``None`` where it leads nowhere."""
    if isinstance(raw, Mapping) and path in raw:
        return raw[path]
    for part in path.split("."):
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list) and part.isdigit() and int(part) < len(raw):
            raw = raw[int(part)]
        else:
            return None
    return raw


def _text(value: Any) -> str:
    return "" if value is None else str(records.clean(str(value))).strip()[:500]


def _number(value: Any) -> str:
    text = str(value).strip()
    return text.lstrip("0") if text.isascii() and text.isdigit() else text
