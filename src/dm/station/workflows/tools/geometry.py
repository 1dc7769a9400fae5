"""Where the detector was: from a PONI file, from numbers, or from what a NeXus file says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dm.common.errors import InvalidArgument
from dm.station.workflows.tools import results

_HC = 12.398419843320026  # keV * angstrom
# metres and angstrom; lengths without a unit are millimetres, wavelengths angstrom, energies keV, as files have them
_LENGTHS = {"m": 1.0, "mm": 1e-3, "cm": 1e-2, "um": 1e-6, "µm": 1e-6, "micron": 1e-6, "microns": 1e-6, "": 1e-3}
_WAVELENGTHS = {"a": 1.0, "angstrom": 1.0, "angstroms": 1.0, "å": 1.0, "nm": 10.0, "m": 1e10, "pm": 0.01, "": 1.0}
_ENERGIES = {"kev": 1.0, "ev": 1e-3, "mev": 1e3, "": 1.0}
_PIXELS = ("pixel", "pixels", "px")
_DETECTOR = {
    "distance": ("distance", "detector_distance"),
    "pixel_x": ("x_pixel_size",),
    "pixel_y": ("y_pixel_size",),
    "beam_x": ("beam_center_x",),
    "beam_y": ("beam_center_y",),
}


@dataclass(frozen=True)
class Geometry:
    """A detector across the beam.

    :param distance: sample to detector, mm. :param beam_x: :param beam_y: where the beam hits, pixels; may be outside.
    :param pixel_x: :param pixel_y: pixel size, micrometres. :param wavelength: angstrom.
    """

    distance: float
    beam_x: float
    beam_y: float
    pixel_x: float
    pixel_y: float
    wavelength: float

    def integrator(self) -> Any:
        """Return pyFAI's azimuthal integrator. :raises ConfigurationError: pyFAI is not installed."""
        made = results.required("pyFAI.integrator.azimuthal", "Azimuthal integration").AzimuthalIntegrator(
            detector=results.required("pyFAI.detectors", "Azimuthal integration").Detector(
                self.pixel_y * 1e-6, self.pixel_x * 1e-6
            ),
            wavelength=self.wavelength * 1e-10,
        )
        made.setFit2D(self.distance, self.beam_x, self.beam_y)
        return made


def integrator(path: str, poni: str, given: Mapping[str, float | None]) -> Any:
    """Return pyFAI's integrator for a file of images.

    :param path: HDF5 file; asked for what is not given. :param poni: a calibration by pyFAI; empty: none, then the
        numbers count. :param given: fields of :class:`Geometry`, ``energy`` (keV) instead of ``wavelength``.
    :raises InvalidArgument: the PONI file is none, or a number is known from nowhere.
    """
    if poni:
        if any(value is not None for value in given.values()):
            raise InvalidArgument("Give either a PONI file or numbers, not both.")
        return _calibrated(poni)
    return chosen(path, given).integrator()


def _calibrated(poni: str) -> Any:
    if not Path(poni).is_file():
        raise InvalidArgument(f"PONI file {poni[:200]!r} does not exist.")
    try:
        made = results.required("pyFAI", "Azimuthal integration").load(poni)
    except (KeyError, ValueError, RuntimeError, UnicodeDecodeError, OSError) as error:
        raise InvalidArgument(f"PONI file {poni[:200]!r} is not readable: {error}.") from None
    if not made.wavelength:
        raise InvalidArgument(f"PONI file {poni[:200]!r} names no wavelength.")
    return made


def chosen(path: str, given: Mapping[str, float | None]) -> Geometry:
    """Return the geometry: numbers that are given, the others as the file has them.

    :raises InvalidArgument: one is missing, or not positive.
    """
    values = {name: value for name, value in given.items() if value is not None}
    if "wavelength" in values and "energy" in values:
        raise InvalidArgument("Give either the wavelength or the energy, not both.")
    if "energy" in values:
        values["wavelength"] = _HC / _positive("energy", values.pop("energy"))
    wanted = [field.name for field in fields(Geometry)]
    if any(name not in values for name in wanted):
        values = in_file(path) | values
    if missing := [name for name in wanted if name not in values]:
        raise InvalidArgument(
            f"The {' and '.join(missing).replace('_', ' ')} of {Path(path).name[:200]!r} is not known from the file; "
            "give it as an argument, or a PONI file."
        )
    found = Geometry(**values)
    for name, value in asdict(found).items():
        if not name.startswith("beam"):
            _positive(name, value)
    return found


def in_file(path: str) -> dict[str, float]:
    """Return what a NeXus file says of its first detector that has a distance: fields of :class:`Geometry`."""
    import h5py

    found: dict[str, float] = {}
    with h5py.File(path, "r", locking=False) as file:

        def visit(_name: str, item: Any) -> None:
            if not isinstance(item, h5py.Group):
                return
            kind = results.plain(item.attrs.get("NX_class", b""))
            kind = kind[0] if isinstance(kind, list) and kind else kind
            if kind == "NXdetector" and "distance" not in found:
                found.update(_detector(item))
            elif kind in ("NXmonochromator", "NXbeam") and "wavelength" not in found:
                found.update(_wavelength(item))

        file.visititems(visit)
    return found


def _detector(group: Any) -> dict[str, float]:
    values: dict[str, float] = {}
    units: dict[str, str] = {}
    for name, spellings in _DETECTOR.items():
        for spelling in spellings:
            if (read := _number(group, spelling)) is not None:
                values[name], units[name] = read
    result = {}
    if "distance" in values and units["distance"] in _LENGTHS:
        result["distance"] = values["distance"] * _LENGTHS[units["distance"]] * 1e3
    for axis in ("x", "y"):
        size = values.get(f"pixel_{axis}", 0) * _LENGTHS.get(units.get(f"pixel_{axis}", ""), 0)
        if size > 0:
            result[f"pixel_{axis}"] = size * 1e6
        centre, unit = values.get(f"beam_{axis}"), units.get(f"beam_{axis}", "")
        if centre is not None and unit in _PIXELS:
            result[f"beam_{axis}"] = centre
        elif centre is not None and unit in _LENGTHS and size > 0:
            result[f"beam_{axis}"] = centre * _LENGTHS[unit] / size
    return result


def _wavelength(group: Any) -> dict[str, float]:
    for name in ("wavelength", "incident_wavelength"):
        if (read := _number(group, name)) is not None and read[1] in _WAVELENGTHS and read[0] > 0:
            return {"wavelength": read[0] * _WAVELENGTHS[read[1]]}
    for name in ("energy", "incident_energy"):
        if (read := _number(group, name)) is not None and read[1] in _ENERGIES and read[0] > 0:
            return {"wavelength": _HC / (read[0] * _ENERGIES[read[1]])}
    return {}


def _number(group: Any, name: str) -> tuple[float, str] | None:
    """Return a number of a group and its unit, in lower case."""
    try:
        item = group[name]
        if item.size != 1 or item.dtype.kind not in "iuf":
            return None
        unit = results.plain(item.attrs.get("units", b""))
        unit = unit[0] if isinstance(unit, list) and unit else unit
        return float(item[()].flat[0] if item.shape else item[()]), str(unit or "").strip().lower()
    except (KeyError, OSError, AttributeError, TypeError):
        return None


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise InvalidArgument(f"The {name.replace('_', ' ')} {value:g} is not a positive number.")
    return value
