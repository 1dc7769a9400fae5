"""The steps of the XPCS pipeline of 8-ID that are programs: metadata into the raw file, and the correlation itself.

The published pipeline appends what the analysis needs to the raw HDF5 file on its way, and has a batch job compute the
intensity autocorrelation g2(tau) of each ring of equal q.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument
from dm.station.workflows.tools import images, results
from dm.station.workflows.tools.images import Images

if TYPE_CHECKING:
    import h5py
    import numpy as np

GROUP = "xpcs"
RINGS = 8
MAX_RINGS = 1_000
MAX_PIXELS = 1 << 26
_VERSION = "1.0"
_STRIP = 1 << 22


def append_metadata(path: str, values: Mapping[str, Any], rings: int = RINGS, dataset: str = "") -> dict[str, Any]:
    """Add group ``/xpcs`` to a raw file: which pixels belong to which ring, the values given, when and by whom.

    Nothing else in the file changes. Done again it replaces the group.

    :param path: HDF5 file, e.g. the copy on the cluster; it is changed in place.
    :param values: more metadata, one dataset each. Of these ``beam_x`` and ``beam_y`` (pixels; default: the image's
        middle) centre the rings, ``frame_time`` (seconds; default 1) is the time from frame to frame.
    :param rings: number of rings, of equal width. :param dataset: which images; see :func:`images.find`.
    :returns: what :func:`results.tell` shows.
    :raises InvalidArgument: no such file, or a value that does not fit.
    """
    import h5py
    import numpy as np

    if not 1 <= rings <= MAX_RINGS:
        raise InvalidArgument(f"Number of rings {rings} is not between 1 and {MAX_RINGS}.")
    if not h5py.is_hdf5(path):
        raise InvalidArgument(f"File {path[:200]!r} is not an HDF5 file.")
    with h5py.File(path, "r+") as file:
        found = images.find(file, dataset)
        number, rows, columns = found.shape
        centre = [_number(values, name, (size - 1) / 2) for name, size in (("beam_x", columns), ("beam_y", rows))]
        frame_time = _number(values, "frame_time", 1.0)
        if frame_time <= 0:
            raise InvalidArgument(f"The frame_time {frame_time:g} is not positive.")
        if GROUP in file:
            del file[GROUP]
        group = file.create_group(GROUP)
        group.attrs.update(NX_class="NXcollection", version=_VERSION, program="dm xpcs-metadata")
        radius = np.hypot(np.arange(rows)[:, None] - centre[1], np.arange(columns)[None, :] - centre[0])
        width = (radius.max() - radius.min()) / rings or 1.0
        index = np.minimum(((radius - radius.min()) / width).astype("i4"), rings - 1) + 1
        group.create_dataset("dynamic_roi_map", data=index, compression="gzip")
        group["ring_radius"] = radius.min() + width * (np.arange(rings) + 0.5)
        group["images"] = f"/{found.name}"
        group["appended"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        for name, value in {**values, "frame_time": frame_time, "beam_x": centre[0], "beam_y": centre[1]}.items():
            if name in group:
                raise InvalidArgument(f"Metadata name {name!r} is the pipeline's own; choose another.")
            group[name] = value
        file.flush()
    return {"nFrames": number, "nRings": rings, "nMetadata": len(values)}


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
    try:
        return float(values.get(name, default))
    except (TypeError, ValueError):
        raise InvalidArgument(f"Metadata {name!r} is {str(values[name])[:80]!r}, not a number.") from None


def correlate(path: str, target: Path) -> dict[str, Any]:
    """Compute g2 of each ring and write it to an HDF5 file: ``/xpcs`` of the raw file and ``/exchange``.

    ``/exchange/norm-0-g2`` has shape (delays, rings): the mean over a ring's pixels of <I(t) I(t+tau)> / (<I(t)>
    <I(t+tau)>), the means within taken over all pairs of frames so far apart; ``norm-0-stderr`` its standard error,
    ``tau`` the delays in seconds, ``ring_radius`` pixels, ``frame_sum`` each frame's total, ``pixel_mean`` the image.

    :param path: a file that :func:`append_metadata` has prepared. :param target: the result, whole or not at all.
    :returns: what :func:`results.tell` shows.
    :raises InvalidArgument: not prepared, fewer than two frames, or images too large.
    """
    import h5py
    import numpy as np

    if not h5py.is_hdf5(path):
        raise InvalidArgument(f"File {path[:200]!r} is not an HDF5 file.")
    with h5py.File(path, "r", locking=False) as file:
        if GROUP not in file:
            raise InvalidArgument(f"File {Path(path).name[:200]!r} has no group /{GROUP}; append the metadata first.")
        metadata = file[GROUP]
        found = images.find(file, results.plain(metadata["images"][()]))
        frames, rows, columns = found.shape
        if frames < 2 or rows * columns > MAX_PIXELS:
            raise InvalidArgument(f"{frames} frames of {rows}x{columns} pixels cannot be correlated here.")
        rings = metadata["dynamic_roi_map"][()]
        delays = _delays(frames)
        g2, error = np.empty((len(delays), int(rings.max()))), np.empty((len(delays), int(rings.max())))
        totals, mean = _correlated(found, rings, delays, g2, error)
        with results.replaced(target) as partial, h5py.File(partial, "w") as result:
            file.copy(metadata, result, GROUP)
            exchange = result.create_group("exchange")
            exchange.attrs["NX_class"] = "NXcollection"
            exchange["tau"] = np.array(delays) * float(metadata["frame_time"][()])
            exchange["norm-0-g2"], exchange["norm-0-stderr"] = g2, error
            exchange["ring_radius"] = metadata["ring_radius"][()]
            exchange["frame_sum"], exchange["pixel_mean"] = totals, mean
            result["source_file"] = results.named(path, "")
    return {"nFrames": frames, "nDelays": len(delays), "nRings": g2.shape[1], "g2First": float(np.nanmean(g2[0]))}


def _delays(frames: int, steps: int = 8) -> list[int]:
    """Return delays in frames as multi-tau has them: every one up to ``steps``, then each octave in half as many."""
    delays, step, last = [], 1, 0
    while last + step < frames:
        for _ in range(steps if step == 1 else steps // 2):
            last += step
            if last >= frames:
                break
            delays.append(last)
        step *= 2
    return delays


def _correlated(
    found: Images, rings: np.ndarray[Any, Any], delays: list[int], g2: np.ndarray[Any, Any], error: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Fill g2 and its error, strips of rows at a time; return each frame's total and the mean image."""
    import numpy as np

    frames, rows, columns = found.shape
    totals, mean = np.zeros(frames), np.zeros((rows, columns))
    count, sums, squares = (np.zeros(g2.shape) for _ in range(3))
    height = max(1, _STRIP // max(1, frames * columns))
    for top in range(0, rows, height):
        strip, valid = _strip(found, top, min(rows, top + height))
        totals += strip.sum(axis=(1, 2))
        mean[top : top + height] = strip.mean(axis=0)
        ring = rings[top : top + height][valid] - 1
        lit = strip[:, valid]
        for place, delay in enumerate(delays):
            early, late = lit[:-delay], lit[delay:]
            with np.errstate(invalid="ignore", divide="ignore"):
                each = (early * late).mean(axis=0) / (early.mean(axis=0) * late.mean(axis=0))
            known = np.isfinite(each)
            weights = (ring[known], each[known], g2.shape[1])
            count[place] += np.bincount(weights[0], minlength=weights[2])
            sums[place] += np.bincount(*weights)
            squares[place] += np.bincount(weights[0], weights[1] ** 2, weights[2])
    with np.errstate(invalid="ignore", divide="ignore"):
        g2[:] = sums / count
        error[:] = np.sqrt(np.maximum(squares / count - g2**2, 0) / count)
    return totals, mean


def _strip(found: Images, top: int, bottom: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return rows of all frames as float64, and which pixels are valid in each of them; others are zero."""
    import numpy as np

    parts: list[h5py.Dataset] = list(found.parts)
    for part in parts:
        images.filters_present(part)
    values = np.concatenate([part[..., top:bottom, :].reshape((-1, bottom - top, part.shape[-1])) for part in parts])
    valid = found.valid(values, top)
    everywhere: np.ndarray[Any, Any] = np.all(valid, axis=0)
    return np.where(everywhere, values, 0).astype(float), everywhere
