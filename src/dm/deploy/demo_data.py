"""The demo's detector: makes a small realistic set of files and writes files the way detectors do."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

SCANS = 4
FRAMES = 12
_CHUNK = 1 << 18
_SHAPE = (195, 487)  # Pilatus 100K
_ENERGY = 21.0
_ENTRY = {
    "title": "Silver behenate, frame {number}",
    "definition": "NXsas",
    "start_time": "2026-03-02T09:{minute:02d}:00-06:00",
    "end_time": "2026-03-02T09:{minute:02d}:05-06:00",
}


def make_default_set(directory: Path) -> list[Path]:
    """Write the default data set: :data:`FRAMES` NeXus images, a SPEC file with :data:`SCANS` scans and a note.

    :returns: the files, relative to ``directory``, in the order a beamline would write them.
    """
    frames = directory / "saxs"
    frames.mkdir(parents=True)
    files = []
    for number in range(1, FRAMES + 1):
        path = frames / f"agbh_{number:04d}.h5"
        _write_frame(path, number)
        files.append(path.relative_to(directory))
    spec = directory / "agbh_setup.dat"
    spec.write_text("".join(spec_parts()), "ascii")
    note = directory / "notes.txt"
    note.write_text("Silver behenate, 12 frames of 5 s; beam centre to be checked against ring 1.\n", "ascii")
    return [*files, spec.relative_to(directory), note.relative_to(directory)]


def _write_frame(path: Path, number: int) -> None:
    import h5py
    import numpy as np

    rows, columns = np.indices(_SHAPE)
    radius = np.hypot(rows - 98.0, columns - 20.0)
    wavelength = 12.398 / _ENERGY
    rings = 25.0 * np.exp(-radius / 180.0)
    for order in range(1, 8):
        angle = 2 * math.asin(order * wavelength / (2 * 58.38))
        rings += 400.0 / order * np.exp(-((radius - 700.0 / 0.172 * math.tan(angle)) ** 2) / 18.0)
    image = np.random.default_rng(number).poisson(rings * (1 + 0.02 * number)).astype("i4")
    with h5py.File(path, "w") as file:
        file.attrs.update(default="entry", creator="dm-quickstart", file_time=f"2026-03-02T09:{number:02d}:05-06:00")
        entry = _group(file, "entry", "NXentry", default="data")
        for name, text in _ENTRY.items():
            entry[name] = text.format(number=number, minute=number)
        entry["entry_identifier"] = str(number)
        instrument = _group(entry, "instrument", "NXinstrument")
        instrument["name"] = "DM demo SAXS camera"
        source = _group(instrument, "source", "NXsource")
        source["name"] = "DM demo storage ring"
        source["probe"] = "x-ray"
        mono = _group(instrument, "monochromator", "NXmonochromator")
        mono["energy"] = _ENERGY
        mono["energy"].attrs["units"] = "keV"
        detector = _group(instrument, "detector", "NXdetector")
        detector["local_name"] = "Pilatus 100K"
        detector["count_time"] = 5.0
        detector.create_dataset("data", data=image, compression="gzip", compression_opts=1, chunks=_SHAPE)
        sample = _group(entry, "sample", "NXsample")
        sample["name"] = "silver behenate"
        data = _group(entry, "data", "NXdata", signal="data")
        data["data"] = detector["data"]


def _group(parent: Any, name: str, kind: str, **attributes: str) -> Any:
    group = parent.create_group(name)
    group.attrs.update(NX_class=kind, **attributes)
    return group


def spec_parts() -> Iterator[str]:
    """Yield a SPEC file piece by piece: its header, then one scan after the other."""
    yield (
        "#F agbh_setup.dat\n#E 1772463600\n#D Mon Mar 02 09:00:00 2026\n#C Silver behenate setup  User = demo\n"
        "#H0 SR_current  DCM_energy  DCM_lambda\n#O0 mono theta  sample x  sample y\n\n"
    )
    for scan in range(1, SCANS + 1):
        centre = 16.94 + 0.002 * scan
        lines = [
            f"#S {scan} ascan  th {centre - 0.02:.4f} {centre + 0.02:.4f} 40 0.5",
            f"#D Mon Mar 02 09:{scan:02d}:00 2026",
            "#T 0.5  (Seconds)",
            "#P0 16.9400 0.0000 1.2500",
            f"#V0 101.9 {_ENERGY} 0.5904",
            "#N 3",
            "#L th  seconds  I0",
        ]
        for step in range(41):
            th = centre - 0.02 + 0.001 * step
            counts = 1000 + 90000 * math.exp(-((th - centre) ** 2) / (2 * 0.004**2))
            lines.append(f"{th:.4f} 0.5 {counts:.0f}")
        yield "\n".join(lines) + "\n\n"


def write_as_detector(
    source: Path, target: Path, files: list[Path], pause: float, wrote: Callable[[Path], None]
) -> None:
    """Write ``files`` below ``target`` as a beamline does.

    Data files are written in pieces and closed once, so that they are seen growing. A small SPEC file is opened and
    closed for each scan, in between the others: it is whole several times.

    :param source: directory the contents come from. :param pause: seconds between pieces and between files.
    :param wrote: called with each file's name whenever it is closed.
    """
    scans = {name: _scans((source / name).read_bytes()) for name in files}
    appended = [(name, part) for name, parts in scans.items() for part in parts]
    others = [name for name in files if not scans[name]]
    for number, name in enumerate(others, 1):
        _write(target / name, _chunks((source / name).read_bytes()), pause, "wb")
        wrote(name)
        time.sleep(pause)
        # spread evenly, so that each scan has its time to be seen, moved and processed
        while appended and len(appended) > (len(others) - number) * SCANS / len(others):
            _append(target, *appended.pop(0), wrote)
    for part in appended:
        _append(target, *part, wrote)
        time.sleep(pause)


def _append(target: Path, name: Path, scan: bytes, wrote: Callable[[Path], None]) -> None:
    _write(target / name, [scan], 0, "ab")
    wrote(name)


def _write(path: Path, pieces: Iterable[bytes], pause: float, mode: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as out:
        for piece in pieces:
            out.write(piece)
            out.flush()
            time.sleep(pause)


def _scans(data: bytes) -> list[bytes]:
    """Return header and scans of a SPEC file with few scans; of anything else nothing."""
    if not data.startswith(b"#F ") or data.count(b"\n#S ") > SCANS:
        return []
    head, *scans = data.split(b"\n#S ")
    return [head, *(b"\n#S " + scan for scan in scans)]


def _chunks(data: bytes) -> Iterator[bytes]:
    size = max(1, min(_CHUNK, len(data) // 2))
    for start in range(0, len(data), size):
        yield data[start : start + size]


def main() -> None:
    """Be the detector: ``demo_data SOURCE TARGET PAUSE`` copies a folder as :func:`write_as_detector` does."""
    source, target, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file() and not path.is_symlink())
    write_as_detector(source, target, files, pause, lambda name: print(os.fsencode(name).hex(), flush=True))


if __name__ == "__main__":
    main()
