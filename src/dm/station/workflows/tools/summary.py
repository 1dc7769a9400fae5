"""What is in a NeXus, HDF5 or SPEC file, for people (text) and for programs (JSON)."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

from dm.common.errors import InvalidArgument
from dm.station.acquisition.plugins import metadata_hdf5, metadata_spec
from dm.station.workflows.tools import results

MAX_OBJECTS = 5_000
MAX_SCANS = 20_000
_HEAD = 1 << 12
_LINE = 150


def run(path: str, output: Path) -> dict[str, Any]:
    """Write ``<name>.summary.json`` and ``<name>.summary.txt``.

    :param path: NeXus or other HDF5 file, or SPEC data file. :param output: directory.
    :returns: what :func:`results.tell` shows: kind, title, and counts of what is inside.
    :raises InvalidArgument: neither.
    """
    import h5py

    if h5py.is_hdf5(path):
        told, whole, lines = _hdf5(path)
    else:
        with Path(path).open("rb") as stream:
            head = stream.read(_HEAD)
        if not metadata_spec.is_spec(head):
            raise InvalidArgument(f"File {path[:200]!r} is neither HDF5 (NeXus) nor SPEC data.")
        told, whole, lines = _spec(path)
    numbers, text = (output / results.named(path, ending) for ending in (".summary.json", ".summary.txt"))
    results.write_json(numbers, {"file": Path(path).name, **told, **whole})
    with results.replaced(text) as partial:
        partial.write_text("\n".join(results.plain([f"{Path(path).name}: {told['kind']}", *lines])) + "\n", "utf-8")
    return {**told, "summary": text.name, "summaryJson": numbers.name}


# --- HDF5 and NeXus -------------------------------------------------------------------------------------------


def _hdf5(path: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    import h5py

    metadata = metadata_hdf5.extract(path)
    with h5py.File(path, "r", locking=False) as file:
        objects, complete = _objects(file)
        default = _plot(file)
    entries = [found for found in objects if found.get("class") in ("NXentry", "NXsubentry")]
    told = {
        "kind": "NeXus" if entries else "HDF5",
        "title": metadata.get("title") or metadata.get("sampleName"),
        "nEntries": len(entries),
        "nGroups": sum(found["what"] == "group" for found in objects),
        "nDatasets": sum(found["what"] == "dataset" for found in objects),
        "nBrokenLinks": sum(found["what"] == "broken link" for found in objects),
        "signal": default.get("signal"),
        "complete": complete,
    }
    lines = [f"{name}: {_short(value)}" for name, value in metadata.items() if isinstance(value, str | int | float)]
    if default:
        lines.append(f"default plot: {default['signal']} {default['shape']} over {', '.join(default['axes']) or '-'}")
    lines += ["", *(_object_line(found) for found in objects)]
    if not complete:
        lines.append(f"... and more; the first {MAX_OBJECTS} are shown")
    return told, {"metadata": metadata, "defaultPlot": default, "objects": objects}, lines


def _objects(file: Any) -> tuple[list[dict[str, Any]], bool]:
    """Return groups, datasets and broken links by path, in the file's order, and whether these are all.

    Links are named with their target, not followed: what is in this file is asked, and a file may link to itself.
    """
    import h5py

    found: list[dict[str, Any]] = []
    waiting = deque([("", file)])
    seen = {h5py.h5o.get_info(file.id).addr}
    while waiting:
        path, group = waiting.popleft()
        for name in group:
            if len(found) >= MAX_OBJECTS:
                return sorted(found, key=lambda one: str(one["path"])), False
            place = f"{path}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.HardLink):
                item = group[name]
                found.append(_described(place, item))
                address = h5py.h5o.get_info(item.id).addr
                if isinstance(item, h5py.Group) and address not in seen:
                    seen.add(address)
                    waiting.append((place, item))
            else:
                outside = f"{link.filename}:" if isinstance(link, h5py.ExternalLink) else ""
                what = "link" if _leads(group, name) else "broken link"
                found.append({"path": place, "what": what, "target": f"{outside}{link.path}"})
    return sorted(found, key=lambda one: str(one["path"])), True


def _leads(group: Any, name: str) -> bool:
    try:
        return group[name] is not None
    except (KeyError, OSError, RuntimeError):
        return False


def _described(place: str, item: Any) -> dict[str, Any]:
    import h5py

    described: dict[str, Any] = {"path": place, "what": "group" if isinstance(item, h5py.Group) else "dataset"}
    described |= {key: text for key, name in (("class", "NX_class"), ("units", "units")) if (text := _text(item, name))}
    if isinstance(item, h5py.Dataset):
        described |= {"type": str(item.dtype), "shape": list(item.shape or ()), "compression": _compression(item)}
        if item.shape is not None and item.size == 1 and item.dtype.itemsize < 1 << 16:
            value = results.plain(item[()])
            while isinstance(value, list) and value:
                value = value[0]
            described["value"] = value if isinstance(value, str | int | float | None) else str(value)
    return {key: value for key, value in described.items() if value is not None}


def _compression(item: Any) -> str | None:
    properties = item.id.get_create_plist()
    if not item.chunks or not properties.get_nfilters():
        return None
    names = [properties.get_filter(number)[3].decode("utf-8", "replace") for number in range(properties.get_nfilters())]
    return ", ".join(name.partition(";")[0] for name in names)


def _text(item: Any, name: str) -> str | None:
    try:
        value = item.attrs.get(name)
    except (OSError, TypeError, RuntimeError, ValueError):  # an attribute nobody can read describes nothing
        return None
    while value is not None and not isinstance(value, str | bytes) and len(value) and not isinstance(value, dict):
        value = value[0]
    return results.plain(value) if isinstance(value, str | bytes) and value else None


def _plot(file: Any) -> dict[str, Any]:
    from silx.io.nxdata import get_default

    try:
        found = get_default(file, validate=False)
        if found is None or not found.is_valid:
            return {}
        axes = [name for name in found.axes_dataset_names if name]
        return {"signal": found.signal.name, "shape": list(found.signal.shape), "axes": results.plain(axes)}
    except (KeyError, OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}  # a plot marked badly is as good as none


def _object_line(found: dict[str, Any]) -> str:
    words = [found["path"]]
    if found["what"] == "group":
        words.append(f"[{found.get('class', 'group')}]")
    elif found["what"] == "dataset":
        words += [found["type"], "x".join(map(str, found["shape"]))]
        words += [f"({found['compression']})"] if "compression" in found else []
        words += ["=", _short(found["value"])] if "value" in found else []
        words.append(found.get("units", ""))
    else:
        words += ["->", found["target"], "(not here)" if found["what"] == "broken link" else ""]
    return " ".join(word for word in words if word)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _LINE else text[:_LINE] + " ..."


# --- SPEC -----------------------------------------------------------------------------------------------------


def _spec(path: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    from silx.io.specfile import SpecFile

    metadata = metadata_spec.extract(path)
    with closing(SpecFile(path)) as file:
        count = len(file)
        scans = [_scan(file[number]) for number in range(min(count, MAX_SCANS))]
    told = {
        "kind": "SPEC",
        "title": metadata.get("title"),
        "nScans": count,
        "nEmptyScans": sum(not scan["points"] for scan in scans),
        "nPoints": sum(scan["points"] for scan in scans),
        "lastCommand": scans[-1]["command"] if scans else None,
        "complete": count == len(scans),
    }
    lines = [f"{name}: {_short(value)}" for name, value in metadata.items() if isinstance(value, str | int | float)]
    lines += ["", f"{'scan':>8}  {'points':>6}  {'peak at':>12}  {'maximum':>12}  command"]
    lines += [
        f"{scan['scan']:>8}  {scan['points']:>6}  {scan.get('peakAt', ''):>12.6}  {scan.get('maximum', ''):>12.6}"
        f"  {_short(scan['command'])}"
        if "maximum" in scan
        else f"{scan['scan']:>8}  {scan['points']:>6}  {'-':>12}  {'-':>12}  {_short(scan['command'])}"
        for scan in scans
    ]
    return told, {"metadata": metadata, "scans": scans}, lines


def _scan(scan: Any) -> dict[str, Any]:
    """Return what a scan is and, of its last column over its first, maximum, where it is, and centre of mass."""
    import numpy as np

    number, _, command = scan.scan_header_dict.get("S", "").partition(" ")
    described: dict[str, Any] = {
        "scan": f"{number}.{scan.order}",
        "command": command.strip(),
        "date": scan.scan_header_dict.get("D"),
        "points": 0,
    }
    try:
        data, labels = scan.data, list(scan.labels)
    except (IndexError, ValueError, AttributeError):  # aborted before its first point
        return described
    if not data.size or data.ndim != 2:
        return described
    described |= {"points": int(data.shape[1]), "columns": labels}
    x, y = data[0].astype(float), data[-1].astype(float)
    if len(labels) > 1 and np.isfinite(y).any():
        peak = int(np.nanargmax(y))
        described |= {"counter": labels[-1], "maximum": float(y[peak]), "minimum": float(np.nanmin(y))}
        described["peakAt"] = float(x[peak])
        weights = np.nan_to_num(y - np.nanmin(y))
        if weights.sum() > 0:
            described["centreOfMass"] = float((x * weights).sum() / weights.sum())
    return described
