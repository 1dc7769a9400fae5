"""The sample of a facility that an installation begins with: a directory for adapter ``csv``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

README = """Files of the csv adapter of DM's facility service: what proposals and safety forms it serves.
Replace them by your facility's own, or the adapter in dm.toml by one that asks your facility's systems;
see docs/how-to/facility-adapter.md. Files that are replaced by renaming are never read half.
"""
# first and last month of the three runs of a year
_RUNS = ((1, 4), (5, 8), (9, 12))


def write(directory: Path, station: str, today: date | None = None) -> list[Path]:
    """Write the sample unless the directory exists: runs around today, the station's beamline, one record each.

    :returns: the files made.
    """
    if directory.exists():
        return []
    today = today or date.today()
    directory.mkdir(mode=0o755, parents=True)
    runs = [
        (f"{year}-{number}", f"{year}-{first:02d}-01 08:00:00", f"{_last_day(year, last)} 20:00:00")
        for year in range(today.year - 1, today.year + 2)
        for number, (first, last) in enumerate(_RUNS, start=1)
    ]
    run = next(name for name, start, end in runs if start[:10] <= str(today) <= end[:10])
    begin, end = f"{today} 08:00:00", f"{today + timedelta(days=2)} 08:00:00"
    text = "Example; replace it by what your facility has"
    people = ("recordId", "badge", "firstName", "lastName", "email", "institution", "piFlag")
    tables: dict[str, Sequence[Sequence[str]]] = {
        "runs": [("name", "startTime", "endTime"), *runs],
        "beamlines": [("name",), (station,)],
        "proposals": [
            ("id", "title", "run", "beamline", "startTime", "endTime", "mailInFlag", "proprietaryFlag"),
            ("100001", text, run, station, begin, end, "N", "N"),
        ],
        "proposal_people": [people, ("100001", "100001", "First", "Example", "first@example.org", "Example", "Y")],
        "esafs": [
            (
                "esafId", "esafTitle", "description", "beamlineStation", "sector", "esafStatus",
                "experimentStartDate", "experimentEndDate",
            ),
            ("200001", text, text, station, "", "Approved", begin, end),
        ],
        "esaf_people": [
            people,
            ("200001", "100001", "First", "Example", "first@example.org", "Example", "Y"),
            ("200001", "100002", "Second", "Example", "second@example.org", "Example", "N"),
        ],
    }  # fmt: skip
    made = [directory / "README"]
    made[0].write_text(README, "utf-8")
    for name, rows in tables.items():
        made.append(directory / f"{name}.csv")
        with made[-1].open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return made


def _last_day(year: int, month: int) -> date:
    return date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)
