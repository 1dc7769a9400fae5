"""Metadata from SPEC data files: who, when, which scans."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import closing
from typing import Any

from dm.station.acquisition.plugins import metadata_values as values

_HEAD = 1 << 16
MAX_BYTES = 1 << 29
_USER = re.compile(r"\s*\bUser = (?P<user>\S+)")
_ENERGY = {"DCM_energy": "energy", "DCM_lambda": "wavelength"}


def is_spec(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is SPEC data: text whose first line names the file or a scan."""
    return b"\0" not in head and head.lstrip().startswith((b"#F ", b"#S ")) and b"\n#" in head


def extract(path: str) -> dict[str, Any]:
    """Return what a SPEC data file says about itself.

    :param path: a readable file.
    :returns: any of specFile, fileDate, epoch, title, user, scanCount, scanNumbers (``1-5,8``), commands (macro ->
        how often), firstScan and lastScan ``{number, command, date, points}``, columns of the last scan, motors,
        energy, wavelength; of a file beyond 512 MiB the header only, with ``truncated``.
    :raises OSError: not readable. :raises ValueError: silx cannot make sense of it.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
        size = os.fstat(file.fileno()).st_size
    found = _header(head.decode("utf-8", "replace"))
    if size > MAX_BYTES:
        found["truncated"] = True
    elif b"#S " in head or size > _HEAD:
        found |= _scans(path)
    result: dict[str, Any] = values.clean({name: value for name, value in found.items() if value not in (None, "", [])})
    return result


def _header(head: str) -> dict[str, Any]:
    """Read the lines before the first scan."""
    top = re.split(r"^#S ", head, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line.rstrip() for line in top.splitlines()]

    def first(mark: str) -> str | None:
        return next((line[len(mark) :].strip() for line in lines if line.startswith(mark)), None)

    comment = first("#C ") or ""
    user = _USER.search(comment)
    epoch = first("#E ") or ""
    motors = [
        name for line in lines if re.match(r"#O\d+ ", line) for name in re.split(r"\s{2,}", line.split(" ", 1)[1])
    ]
    return {
        "specFile": first("#F "),
        "fileDate": first("#D "),
        "epoch": int(epoch) if epoch.isdigit() else None,
        "title": _USER.sub("", comment).strip() or None,
        "user": user["user"] if user else None,
        "motors": [name for name in motors if name.strip()],
    }


def _scans(path: str) -> dict[str, Any]:
    from silx.io.specfile import SpecFile

    with closing(SpecFile(path)) as file:
        count = len(file)
        if not count:
            return {"scanCount": 0}
        numbers = [int(scan_key.partition(".")[0]) for scan_key in file.keys()]  # noqa: SIM118 - no dict
        commands = Counter(str(file.command(index)).split()[0] for index in range(count) if file.command(index).split())
        last = file[count - 1]
        return {
            "scanCount": count,
            "scanNumbers": values.ranges(numbers),
            "commands": dict(commands.most_common(20)),
            "firstScan": _scan(file[0]),
            "lastScan": _scan(last),
            "columns": list(last.labels),
            **_energy(file, last),
        }


def _scan(scan: Any) -> dict[str, Any]:
    number, _, command = scan.scan_header_dict.get("S", "").partition(" ")
    try:
        points = int(scan.data.shape[1])
    except (IndexError, ValueError, AttributeError):
        points = 0
    return {
        "number": int(number) if number.isdigit() else None,
        "command": command.strip(),
        "date": scan.scan_header_dict.get("D"),
        "points": points,
    }


def _energy(file: Any, scan: Any) -> dict[str, Any]:
    """Find energy and wavelength among the ``#H`` names and ``#V`` values of a scan, where the station writes them."""
    names: dict[str, list[str]] = {}
    for line in scan.file_header:
        if match := re.match(r"#H(\d+) (.*)", line):
            names[match[1]] = match[2].split()
    found: dict[str, Any] = {}
    for line in scan.scan_header:
        if match := re.match(r"#V(\d+) (.*)", line):
            for name, value in zip(names.get(match[1], []), match[2].split(), strict=False):
                amount = values.number(value)
                if name in _ENERGY and amount:
                    found[_ENERGY[name]] = amount
    return found
