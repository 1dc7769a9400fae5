"""Converting detector images (TIFF, CBF, EDF, MarCCD and what else fabio reads) to HDF5, compared pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument, TransferError
from dm.station.workflows.tools import results

if TYPE_CHECKING:
    import numpy as np

COMPRESSIONS = ("gzip", "bitshuffle", "none")
MAX_FRAMES = 100_000
_PURPOSE = "Conversion of detector images"


def run(path: str, output: Path, compression: str = "gzip") -> dict[str, Any]:
    """Write ``<name>.h5``, a NeXus file with all frames of an image file and their headers.

    :param path: image file. :param output: directory. :param compression: of :data:`COMPRESSIONS`; bitshuffle (with
        LZ4) needs hdf5plugin, also to read it.
    :returns: what :func:`results.tell` shows: name and sizes.
    :raises InvalidArgument: no image fabio can read. :raises TransferError: the result does not read back the same.
    :raises ConfigurationError: fabio or hdf5plugin is not installed.
    """
    import h5py

    fabio = results.required("fabio", _PURPOSE)
    target = output / results.named(path, ".h5")
    with _opened(fabio, path) as image:
        frames, first = image.nframes, image.data
        if not 0 < frames <= MAX_FRAMES or first is None or first.ndim != 2:
            raise InvalidArgument(f"File {path[:200]!r} holds no two-dimensional images.")
        with results.replaced(target) as partial:
            with h5py.File(partial, "w") as file:
                data = _prepared(file, path, image, first, _filters(compression))
                headers = []
                for number in range(frames):
                    frame = image.getframe(number) if frames > 1 else image
                    _fits(path, frame.data, first)
                    data[number] = frame.data
                    headers.append(json.dumps(results.plain(dict(frame.header))))
                file["entry/instrument/detector/headers"] = headers
            _compared(fabio, path, partial)
    return {
        "converted": target.name,
        "format": type(image).__name__,
        "dataType": str(first.dtype),
        "nFrames": frames,
        "nRows": first.shape[0],
        "nColumns": first.shape[1],
        "originalSize": Path(path).stat().st_size,
        "convertedSize": target.stat().st_size,
    }


def _opened(fabio: Any, path: str) -> Any:
    if not Path(path).is_file():
        raise InvalidArgument(f"File {path[:200]!r} does not exist.")
    try:
        return fabio.open(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidArgument(f"File {path[:200]!r} is no image that fabio reads: {reason}.") from None


def _filters(compression: str) -> dict[str, Any]:
    if compression == "bitshuffle":
        return dict(results.required("hdf5plugin", "Compression with bitshuffle").Bitshuffle())
    return {"compression": "gzip", "compression_opts": 4, "shuffle": True} if compression == "gzip" else {}


def _prepared(file: Any, path: str, image: Any, first: np.ndarray[Any, Any], filters: dict[str, Any]) -> Any:
    """Make the groups, and the dataset for the frames; return it."""
    file.attrs.update(default="entry", creator="dm convert-to-hdf5")
    groups = (("entry", "NXentry"), ("entry/instrument", "NXinstrument"), ("entry/instrument/detector", "NXdetector"))
    for name, kind in (*groups, ("entry/data", "NXdata")):
        file.create_group(name).attrs["NX_class"] = kind
    file["entry"].attrs["default"] = "data"
    file["entry/data"].attrs["signal"] = "data"
    file["entry/source_file"] = results.named(path, "")
    file["entry/source_format"] = type(image).__name__
    detector = file["entry/instrument/detector"]
    shape = (image.nframes, *first.shape)
    dataset = detector.create_dataset("data", shape, first.dtype, chunks=(1, *first.shape), **filters)
    file["entry/data/data"] = dataset
    return dataset


def _fits(path: str, frame: np.ndarray[Any, Any], first: np.ndarray[Any, Any]) -> None:
    if frame.shape != first.shape or frame.dtype != first.dtype:
        raise InvalidArgument(f"The frames of {path[:200]!r} differ in size or type; they do not make one stack.")


def _compared(fabio: Any, path: str, written: Path) -> None:
    import h5py
    import numpy as np

    with h5py.File(written, "r") as file, _opened(fabio, path) as image:
        data = file["entry/data/data"]
        for number in range(image.nframes):
            frame = image.getframe(number) if image.nframes > 1 else image
            if not np.array_equal(data[number], frame.data, equal_nan=frame.data.dtype.kind == "f"):
                raise TransferError(f"Frame {number} of {path[:200]!r} does not read back the same.")
