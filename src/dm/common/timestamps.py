"""Times as DM writes them: epoch seconds inside, local wall-clock text outside.

Month names are English whatever the locale, and texts without a zone are local time.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import ClassVar

from dm.common.errors import InvalidArgument

_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
    )
}
_DAY_MONTH_YEAR = re.compile(r"(\d{1,2})-([A-Za-z]{3})-(\d{4}|\d{2})")
_PUBLISHED = re.compile(r"(\d{4})/(\d{2})/(\d{2})(?: (\d{2}:\d{2}:\d{2}(?:\.\d+)?))?(?: (\S+))?")
_SHORT_OFFSET = re.compile(r"[+-]\d{2}(:?\d{2})?")
_CENTURY_PIVOT = 69


def now() -> float:
    """Return the time of day as epoch seconds."""
    return time.time()


def text(epoch: float) -> str:
    """Return ``YYYY/MM/DD HH:MM:SS TZ`` of epoch seconds, in local time (the published timestamp form)."""
    return datetime.fromtimestamp(epoch).astimezone().strftime("%Y/%m/%d %H:%M:%S %Z")


def iso(moment: float | datetime) -> str:
    """Return ``2026-02-13 00:00:00-06:00``: ISO 8601 with a blank and the offset, local time.

    :param moment: epoch seconds or a datetime (a naive one is local time). Microseconds appear when not zero.
    """
    stamp = moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment)
    return stamp.astimezone().isoformat(" ")


def parse(value: str | float | datetime) -> datetime:
    """Read a date or time as callers give it.

    :param value: ``05-Mar-26`` or ``05-Mar-2026`` (any letter case), an ISO 8601 date or time with or without
        offset, the published ``YYYY/MM/DD HH:MM:SS TZ``, epoch seconds, or a datetime. Without a zone: local time.
    :returns: a datetime with a zone.
    :raises InvalidArgument: anything else.
    """
    if isinstance(value, datetime):
        return value.astimezone()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidArgument(f"Date {value!r} is not a text.")
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value).astimezone()
        return _parse_text(value.strip())
    except (ValueError, OverflowError, OSError, KeyError):
        raise InvalidArgument(
            f"Date {value!r} is not understood; write it like 05-Mar-26 or 2026-03-05 or 2026-03-05 08:00:00-06:00."
        ) from None


def _parse_text(stripped: str) -> datetime:
    if match := _DAY_MONTH_YEAR.fullmatch(stripped):
        day, month, year = match.groups()
        number = int(year)
        if len(year) == 2:
            number += 2000 if number < _CENTURY_PIVOT else 1900
        return datetime(number, _MONTHS[month.lower()], int(day)).astimezone()
    if match := _PUBLISHED.fullmatch(stripped):
        year, month, day, clock, zone = match.groups()
        stamp = datetime.fromisoformat(f"{year}-{month}-{day} {clock or '00:00:00'}")
        return _in_zone(stamp, zone)
    return datetime.fromisoformat(stripped).astimezone()


def _in_zone(stamp: datetime, zone: str | None) -> datetime:
    """Give a naive local time the zone its abbreviation names; only our own zone's abbreviations are known."""
    if zone is None:
        return stamp.astimezone()
    if zone in ("UTC", "GMT", "Z"):
        return datetime.fromisoformat(f"{stamp.isoformat()}+00:00").astimezone()
    if _SHORT_OFFSET.fullmatch(zone):
        return datetime.fromisoformat(f"{stamp.isoformat()}{zone}").astimezone()
    for fold in (0, 1):  # the hour that occurs twice in autumn is told apart by its abbreviation
        local = stamp.replace(fold=fold).astimezone()
        if local.tzname() == zone:
            return local
    raise ValueError(zone)


class TimeUtility:
    """Formats and conversions under their published names (``dm.common.utility.timeUtility``)."""

    GMT_FORMAT_SHORT: ClassVar[str] = "%Y-%m-%d"
    PYQT_FORMAT_YMD: ClassVar[str] = "yyyy-MM-dd"
    PYQT_FORMAT_DMY: ClassVar[str] = "dd-MMM-yy"

    now = staticmethod(now)
    text = staticmethod(text)
    iso = staticmethod(iso)
    parse = staticmethod(parse)
