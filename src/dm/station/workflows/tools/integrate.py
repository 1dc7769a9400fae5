"""Azimuthal integration of SAXS and WAXS images with pyFAI: intensity over q, as HDF5 (NeXus) and as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument
from dm.station.workflows.tools import geometry, images, results
from dm.station.workflows.tools.images import Images

if TYPE_CHECKING:
    import numpy as np

POINTS = 1000
MAX_FRAMES = 100_000
UNITS = {"q_A^-1": "1/angstrom", "q_nm^-1": "1/nm", "2th_deg": "degree"}


def run(
    path: str,
    output: Path,
    *,
    poni: str = "",
    given: Mapping[str, float | None] | None = None,
    mask: str = "",
    dataset: str = "",
    points: int = POINTS,
    unit: str = "q_A^-1",
    polarization: float | None = None,
) -> dict[str, Any]:
    """Write ``<name>.integrated.h5`` (each frame) and ``<name>.integrated.dat`` (their mean).

    :param path: HDF5 file. :param output: directory. :param poni: :param given: see :func:`geometry.integrator`.
    :param mask: file of a mask, not 0 where masked: anything fabio reads, or HDF5; empty: the detector's own only.
    :param dataset: which images; see :func:`images.find`. :param points: of the curve. :param unit: of :data:`UNITS`.
    :param polarization: factor, -1 to 1; ``None``: not corrected for. Solid angle always is.
    :returns: what :func:`results.tell` shows, with where the curve is highest.
    :raises InvalidArgument: not such a file, or the geometry is not known. :raises ConfigurationError: no pyFAI here.
    """
    import h5py
    import numpy as np

    if not h5py.is_hdf5(path):
        raise InvalidArgument(f"File {path[:200]!r} is not an HDF5 file; convert it first (workflow convert-to-hdf5).")
    integrator = geometry.integrator(path, poni, given or {})
    options = {"unit": unit, "polarization_factor": polarization}
    with h5py.File(path, "r", locking=False) as file:
        found = images.find(file, dataset)
        masked = _mask(mask, found.shape[1:]) if mask else None
        radial, intensity, errors, counts = _integrated(found, integrator, masked, points, options)
    if not counts.any():
        raise InvalidArgument(f"No valid pixel of {Path(path).name[:200]!r} lies where it could be integrated.")
    curve, sigma = _mean(intensity, errors)
    whole, text = (output / results.named(path, f".integrated.{kind}") for kind in ("h5", "dat"))
    header = {"file": Path(path).name, "dataset": found.name, "unit": unit, **_described(integrator)}
    _write(whole, header, unit, (radial, intensity, errors))
    lines = "\n".join(f"# {name}: {value}" for name, value in header.items())
    with results.replaced(text) as partial:
        table = np.column_stack([radial, curve, sigma])[counts > 0]
        np.savetxt(partial, table, header=f"{lines}\n# {unit} intensity sigma", comments="", fmt="%.8g")
    peak = int(np.nanargmax(curve))
    return {
        "dataset": found.name,
        "nFrames": len(intensity),
        "nPoints": int((counts > 0).sum()),
        "qMinimum": float(radial[counts > 0][0]),
        "qMaximum": float(radial[counts > 0][-1]),
        "peakAt": float(radial[peak]),
        "peakIntensity": float(curve[peak]),
        "curve": text.name,
        "integrated": whole.name,
    }


def _integrated(
    found: Images, integrator: Any, mask: np.ndarray[Any, Any] | None, points: int, options: Mapping[str, Any]
) -> tuple[np.ndarray[Any, Any], ...]:
    """Return the radial axis, and of each frame intensities and their errors; last how many pixels each point has."""
    import numpy as np

    frames = found.shape[0]
    if frames > MAX_FRAMES:
        raise InvalidArgument(f"Dataset {found.name!r} has {frames} frames, more than {MAX_FRAMES}; split it.")
    intensity, errors = np.full((frames, points), np.nan), np.full((frames, points), np.nan)
    counts, radial = np.zeros(points), np.zeros(points)
    for number, values, valid in found.frames():
        hidden = ~valid if mask is None else ~valid | mask
        done = integrator.integrate1d(
            np.where(valid, values, 0).astype("f4"),
            points,
            mask=hidden,
            error_model="poisson",
            correctSolidAngle=True,
            **options,
        )
        radial, present = done.radial, done.count > 0
        intensity[number, present], errors[number, present] = done.intensity[present], done.sigma[present]
        counts += done.count
    return radial, intensity, errors, counts


def _mean(intensity: np.ndarray[Any, Any], errors: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """Return the mean over frames and its error; NaN where no frame has a value."""
    import numpy as np

    known = np.isfinite(intensity)
    number = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, intensity, 0).sum(axis=0) / number
        sigma = np.sqrt((np.where(known, errors, 0) ** 2).sum(axis=0)) / number
    return mean, sigma


def _mask(path: str, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    import h5py

    if not Path(path).is_file():
        raise InvalidArgument(f"Mask file {path[:200]!r} does not exist.")
    if h5py.is_hdf5(path):
        with h5py.File(path, "r", locking=False) as file:
            found = images.find(file).parts[0]
            values = found[(0,) * (found.ndim - 2)]
    else:
        try:
            values = results.required("fabio", "A mask in another format than HDF5").open(path).data
        except OSError as error:
            raise InvalidArgument(f"Mask file {path[:200]!r} is not readable: {error}.") from None
    if values.shape != tuple(shape):
        sizes = ["x".join(map(str, size)) for size in (values.shape, shape)]
        raise InvalidArgument(f"Mask {path[:200]!r} is of {sizes[0]} pixels, the images are of {sizes[1]}.")
    result: np.ndarray[Any, Any] = values != 0
    return result


def _described(integrator: Any) -> dict[str, Any]:
    """Return how it was integrated, so that the result can be made again."""
    version = results.required("pyFAI", "Azimuthal integration").version
    known = {name: float(getattr(integrator, name)) for name in ("dist", "poni1", "poni2", "rot1", "rot2", "rot3")}
    known |= {"pixel1": float(integrator.pixel1), "pixel2": float(integrator.pixel2)}
    return {"program": f"pyFAI {version}", "wavelength": float(integrator.wavelength), **known}


def _write(target: Path, header: Mapping[str, Any], unit: str, columns: tuple[np.ndarray[Any, Any], ...]) -> None:
    import h5py

    radial, intensity, errors = columns
    with results.replaced(target) as partial, h5py.File(partial, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update(NX_class="NXentry", default="data")
        process = entry.create_group("process")
        process.attrs["NX_class"] = "NXprocess"
        for name, value in header.items():
            process[name] = results.plain(value)
        data = entry.create_group("data")
        axes = ["frame", "q"] if len(intensity) > 1 else ["q"]
        data.attrs.update(NX_class="NXdata", signal="I", axes=axes)
        rows = slice(None) if len(intensity) > 1 else 0
        for name, values in (("I", intensity[rows]), ("I_errors", errors[rows]), ("q", radial)):
            data.create_dataset(name, data=values)
        if len(intensity) > 1:
            data["frame"] = range(len(intensity))
        data["q"].attrs["units"] = UNITS[unit]
