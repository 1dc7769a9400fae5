"""Metadata from inside HDF5 and NeXus files, whoever wrote them and however badly.

The tree is walked breadth first within limits on nodes, depth and time. Links out of the file, external and virtual
storage are never followed: their targets are often not there, and a file must not make us read another one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from dm.station.acquisition.plugins import metadata_values as values

MAX_NODES = 3000
MAX_DEPTH = 8
MAX_SECONDS = 5.0
_MAX_VALUE_BYTES = 1 << 16
_MAX_LINKS = 8

_ENTRY_FIELDS = {
    "title": "title", "start_time": "startTime", "end_time": "endTime", "duration": "duration",
    "definition": "definition", "scan_command": "scanCommand", "entry_identifier": "scanNumber",
    "run_number": "runNumber", "experiment_identifier": "experimentIdentifier", "program_name": "program",
    "run_cycle": "runCycle",
}  # fmt: skip
_ROOT_ATTRIBUTES = {"creator": "creator", "file_time": "fileTime", "timestamp": "fileTime", "instrument": "instrument"}
# dataset name -> key; also found as <name>/value of a positioner or collection
_PHYSICS = {
    "energy": "energy", "incident_energy": "energy", "photon_energy": "energy", "mono_energy": "energy",
    "monoe": "energy", "dcm_energy": "energy",
    "wavelength": "wavelength", "incident_wavelength": "wavelength", "dcm_wavelength": "wavelength",
}  # fmt: skip
_ANYWHERE = {
    "beamline": "beamline", "scan_cmd": "scanCommand", "scan_command": "scanCommand", "scan_duration": "scanDuration",
    "scan_identifier": "scanIdentifier", "sampletitle": "sampleName", "gupnumber": "proposal", "proposal": "proposal",
    "username": "user",
}  # fmt: skip


class _Walk:
    """One pass over a file; gathers into :attr:`found`, first come first kept."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.found: dict[str, Any] = {}
        self.parameters: dict[str, Any] = {}
        self.detectors: list[dict[str, Any]] = []
        self.signals: list[tuple[str, h5py.Dataset | None]] = []
        self.datasets: list[dict[str, Any]] = []
        self.entries: list[str] = []
        self.outside: set[str] = set()
        self.sources: set[str] = set()
        self.nodes = 0
        self.complete = True
        self._deadline = time.monotonic() + MAX_SECONDS

    def keep(self, name: str, value: Any) -> None:
        if value is not None and value != "":
            self.found.setdefault(name, value)

    # --- access that stays in the file -------------------------------------------------------------------------

    def child(self, group: h5py.Group, name: str, hops: int = 0) -> Any:
        """Return a member, soft links resolved step by step inside the file; ``None`` when there is none."""
        try:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.HardLink):
                return group[name]
            if isinstance(link, h5py.SoftLink) and hops < _MAX_LINKS:
                place: Any = self.file if link.path.startswith("/") else group
                for part in filter(None, link.path.split("/")):
                    if not isinstance(place, h5py.Group):
                        return None
                    place = self.child(place, part, hops + 1)
                return place
        except (KeyError, OSError, RuntimeError, ValueError, TypeError):
            return None
        return None

    def value(self, thing: Any) -> Any:
        """Return a scalar (or one-element) dataset or attribute as number or text, else ``None``."""
        if isinstance(thing, h5py.Dataset):
            try:
                if thing.size != 1 or thing.is_virtual or thing.external or thing.dtype.itemsize > _MAX_VALUE_BYTES:
                    return None
                thing = thing[()]
            except (OSError, RuntimeError, ValueError, TypeError, MemoryError):
                return None
        if isinstance(thing, np.ndarray):
            if thing.size != 1:
                return None
            thing = thing.reshape(-1)[0]
        if isinstance(thing, np.generic):
            thing = thing.item()
        if isinstance(thing, bytes | str):
            return values.text(thing)
        return values.number(thing)

    def attribute(self, node: Any, name: str) -> Any:
        try:
            return self.value(node.attrs.get(name))
        except (OSError, RuntimeError, ValueError, TypeError, KeyError):
            return None

    def field(self, group: h5py.Group, name: str) -> Any:
        return self.value(self.child(group, name))

    # --- the pass ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        for name, target in _ROOT_ATTRIBUTES.items():
            self.keep(target, self.attribute(self.file, name))
        seen = set()
        for path, depth, node in self._breadth_first():
            address = h5py.h5o.get_info(node.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(node, h5py.Dataset):
                self._dataset(path, node)
            elif depth:
                self._group(path, node)

    def _breadth_first(self) -> Iterator[tuple[str, int, Any]]:
        queue: deque[tuple[str, int, Any]] = deque([("", 0, self.file)])
        visited = set()
        while queue:
            path, depth, node = queue.popleft()
            yield path, depth, node
            if not isinstance(node, h5py.Group):
                continue
            address = h5py.h5o.get_info(node.id).addr  # hard links can form cycles
            if address in visited or depth >= MAX_DEPTH:
                continue
            visited.add(address)
            for name in node:
                self.nodes += 1
                if self.nodes > MAX_NODES or time.monotonic() > self._deadline:
                    self.complete = False
                    return
                link = node.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    self.outside.add(values.text(link.filename) or "?")
                elif isinstance(link, h5py.HardLink):
                    inner = self.child(node, name)
                    if isinstance(inner, h5py.Group | h5py.Dataset):
                        queue.append((f"{path}/{name}", depth + 1, inner))

    def _group(self, path: str, group: h5py.Group) -> None:
        kind = self.attribute(group, "NX_class")
        name = path.rpartition("/")[2]
        if kind == "NXentry":
            self.entries.append(values.text(name) or "?")
            for field, target in _ENTRY_FIELDS.items():
                self.keep(target, self.field(group, field))
        elif kind == "NXinstrument":
            plain = name if name.lower() not in ("instrument", "nxinstrument") else None
            self.keep(
                "instrument", self.field(group, "name") or self.attribute(group, "name") or values.text(plain or "")
            )
        elif kind == "NXsource":
            self.sources.add(path)  # its energy is that of the ring
            self.keep("source", self.field(group, "name"))
            self.keep("probe", self.field(group, "probe"))
        elif kind == "NXsample":
            self.keep("sampleName", self.field(group, "name"))
        elif kind == "NXuser":
            self.keep("user", self.field(group, "name") or self.field(group, "username"))
        elif kind == "NXdetector":
            self._detector(name, group)
        elif kind == "NXdata":
            self._signal(path, group)
        if name.lower() in _PHYSICS:
            self._physics(name, self.child(group, "value"))
            self._physics(name, self.child(group, "data"))

    def _dataset(self, path: str, dataset: h5py.Dataset) -> None:
        parent, _, name = path.rpartition("/")
        lower = name.lower()
        if lower in _PHYSICS and parent not in self.sources:
            self._physics(name, dataset)
        if lower in _ANYWHERE:
            self.keep(_ANYWHERE[lower], self.value(dataset))
        shape = dataset.shape
        if shape and (dataset.size or 0) > 1 and len(self.datasets) < values.MAX_ITEMS:
            self.datasets.append({"path": values.text(path), "shape": list(shape), "type": str(dataset.dtype)[:40]})
        elif (
            parent.rpartition("/")[2].lower().endswith("metadata")
            and len(self.parameters) < values.MAX_ITEMS
            and (value := self.value(dataset)) is not None
        ):
            self.parameters.setdefault(values.key(name), value)

    def _physics(self, name: str, thing: Any) -> None:
        target = _PHYSICS[name.lower()]
        value = self.value(thing)
        if isinstance(value, int | float) and value > 0 and target not in self.found:
            self.found[target] = value
            self.keep(f"{target}Units", self.attribute(thing, "units"))

    def _detector(self, name: str, group: h5py.Group) -> None:
        if len(self.detectors) >= values.MAX_ITEMS:
            return
        record: dict[str, Any] = {
            "name": self.field(group, "local_name") or self.field(group, "description") or values.text(name)
        }
        data = self.child(group, "data")
        if isinstance(data, h5py.Dataset) and data.shape:
            record |= {"shape": list(data.shape), "type": str(data.dtype)[:40]}
        self.detectors.append(record)

    def _signal(self, path: str, group: h5py.Group) -> None:
        """Remember the plotted dataset of an NXdata group, by any of the three ways NeXus had to mark it."""
        marked = self.attribute(group, "signal")
        dataset = self.child(group, marked) if isinstance(marked, str) else None
        if not isinstance(marked, str):
            marked = "data" if isinstance(group.get("data", getlink=True), h5py.ExternalLink) else None
        if isinstance(marked, str) and dataset is None and marked in group.keys():  # noqa: SIM118 - "in" follows links
            self.signals.append((f"{path}/{marked}", None))  # in a file that is not here
            return
        if not isinstance(dataset, h5py.Dataset):
            members = [(name, self.child(group, name)) for name, _ in zip(group, range(values.MAX_ITEMS), strict=False)]
            arrays = [(name, item) for name, item in members if isinstance(item, h5py.Dataset) and item.shape]
            signed = [pair for pair in arrays if self.attribute(pair[1], "signal") == 1]
            plain = [pair for pair in arrays if pair[0] == "data"]
            best = signed or plain or sorted(arrays, key=lambda pair: -(pair[1].size or 0))
            if not best:
                return
            marked, dataset = best[0]
        self.signals.append((f"{path}/{marked}", dataset))

    def default_signal(self) -> tuple[str, h5py.Dataset | None] | None:
        """Return the dataset the file wants to be looked at first."""
        path, node = "", self.file
        for _ in range(MAX_DEPTH):
            name = self.attribute(node, "default")
            inner = self.child(node, name) if isinstance(name, str) else None
            if not isinstance(inner, h5py.Group):
                break
            path, node = f"{path}/{name}", inner
        inside = [pair for pair in self.signals if path and pair[0].startswith(f"{path}/")]
        return next(iter(inside or self.signals), None)


def extract(path: str) -> dict[str, Any]:
    """Return what an HDF5 file says about itself.

    :param path: a readable file.
    :returns: any of title, startTime, endTime, instrument, source, beamline, sampleName, definition, scanNumber,
        scanCommand, user, energy(+Units), wavelength(+Units), detectors ``[{name, shape, type}]``, signal,
        signalShape, datasets (for files that mark no signal), parameters, externalFiles, and ``truncated`` when a
        limit ended the walk.
    :raises OSError: not an HDF5 file, or damaged beyond opening.
    """
    with h5py.File(path, "r", locking=False) as file:
        walk = _Walk(file)
        walk.run()
        found = walk.found
        if "startTime" not in found:
            walk.keep("startTime", found.get("fileTime"))
        signal = walk.default_signal()
        if signal is not None:
            found["signal"] = values.text(signal[0])
            if signal[1] is not None:
                found |= {"signalShape": list(signal[1].shape), "signalType": str(signal[1].dtype)[:40]}
        else:
            walk.keep("datasets", walk.datasets[:20])
        walk.keep("entries", walk.entries[: values.MAX_ITEMS] or None)
        walk.keep("detectors", walk.detectors or None)
        walk.keep("parameters", walk.parameters or None)
        walk.keep("externalFiles", sorted(walk.outside)[: values.MAX_ITEMS] or None)
        if not walk.complete:
            found["truncated"] = True
    result: dict[str, Any] = values.clean(found)
    return result
