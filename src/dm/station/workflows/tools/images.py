"""Images in HDF5 files: which datasets hold them, and reading them in blocks of bounded size.

Written for what beamlines have: NeXus default plots, areaDetector files, Eiger masters whose frames lie in linked
files, plain datasets. A stack may have any number of leading dimensions; its last two are rows and columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument
from dm.station.workflows.tools import results

if TYPE_CHECKING:
    import h5py
    import numpy as np

BLOCK_VALUES = 1 << 21
MAX_CHUNK_VALUES = 1 << 28
MAX_OBJECTS = 20_000
MAX_DEPTH = 12
_SMALLEST = 4
_LOOKED_AT = 20
_SAMPLE = 256
_NUMBERED = re.compile(r"(.*?)(\d+)")
_PILATUS = (-1, -2)


@dataclass(frozen=True)
class Block:
    """A part of a stack of images.

    :param frame: number of its first frame. :param row: :param column: of its first pixel.
    :param values: shape (frames, rows, columns). :param valid: same shape, false where a pixel tells nothing.
    """

    frame: int
    row: int
    column: int
    values: np.ndarray[Any, Any]
    valid: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Images:
    """The images of a file.

    :param name: path of the (first) dataset. :param parts: datasets, one after the other; all of equal image size.
    :param mask: shape (rows, columns), true where the detector's own mask says that a pixel tells nothing; or ``None``.
    """

    name: str
    parts: Sequence[h5py.Dataset]
    mask: np.ndarray[Any, Any] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, rows, columns."""
        rows, columns = self.parts[0].shape[-2:]
        return sum(math.prod(part.shape[:-2]) for part in self.parts), rows, columns

    def blocks(self, masking: bool = True) -> Iterator[Block]:
        """Yield all pixels once, in blocks that need some tens of megabytes however large image or stack are.

        :param masking: leave out masked pixels: those of :attr:`mask`, the largest value of unsigned types of 16 bits
            and more (how detectors mark dead and saturated pixels), -1 and -2 of signed ones (gaps and dead pixels).
            NaN and infinity are always left out.
        """
        first = 0
        for part in self.parts:
            for block in _blocks(part):
                yield self._judged(first, block, masking)
            first += math.prod(part.shape[:-2])

    def frames(self, masking: bool = True) -> Iterator[tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Yield each frame as a whole: its number, its values and where they are valid, both (rows, columns)."""
        import numpy as np

        number = 0
        for part in self.parts:
            filters_present(part)
            for index in np.ndindex(part.shape[:-2]):
                values = part[index][np.newaxis]
                block = self._judged(0, Block(number, 0, 0, values, np.ones(values.shape, bool)), masking)
                yield number, block.values[0], block.valid[0]
                number += 1

    def valid(self, values: np.ndarray[Any, Any], row: int) -> np.ndarray[Any, Any]:
        """Return where values of whole rows, from ``row`` on and of any frames, are valid."""
        import numpy as np

        return self._judged(0, Block(0, row, 0, values, np.ones(values.shape, bool)), True).valid

    def _judged(self, first: int, block: Block, masking: bool) -> Block:
        import numpy as np

        values, valid = block.values, block.valid
        if values.dtype.kind in "fc":
            valid = np.isfinite(values)
            if values.dtype.kind == "c":
                values = np.abs(values)
        if masking:
            kind, size = values.dtype.kind, values.dtype.itemsize
            if kind == "u" and size > 1:
                valid = valid & (values != np.iinfo(values.dtype).max)
            elif kind == "i":
                valid = valid & ~np.isin(values, _PILATUS)
            if self.mask is not None:
                rows, columns = values.shape[1:]
                valid = valid & ~self.mask[block.row : block.row + rows, block.column : block.column + columns]
        return Block(first + block.frame, block.row, block.column, values, valid)


def find(file: h5py.File, dataset: str = "") -> Images:
    """Find the images of a file.

    :param file: open for reading. :param dataset: path of the one to take; default: what NeXus marks as the signal,
        else the dataset of most pixels. Datasets that are numbered like an Eiger's (``data_000001`` ...) count as one.
    :raises InvalidArgument: there is none.
    """
    known = {name: found for name, found in _datasets(file).items() if _is_image(found)}
    if dataset:
        name = dataset.strip("/")
        chosen = known.get(name) or file.get(name)
        if chosen is None or not hasattr(chosen, "shape") or not _is_image(chosen):
            raise InvalidArgument(f"Dataset {dataset[:200]!r} of {str(file.filename)[:200]!r} holds no images.")
        return _whole(file, name, {**known, name: chosen})
    if not known:
        raise InvalidArgument(f"File {str(file.filename)[:200]!r} holds no image.")
    return _whole(file, _signal(file, known) or _largest(known), known)


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the numeric datasets by path, through links too, each once; links that lead nowhere are passed over."""
    import h5py

    found: dict[str, h5py.Dataset] = {}
    seen: set[Any] = set()
    waiting: list[tuple[str, Any, int]] = [("", file, 0)]
    count = 0
    while waiting and count < MAX_OBJECTS:
        path, group, depth = waiting.pop(0)
        for name in group:
            count += 1
            try:
                item = group[name]
            except (KeyError, OSError, RuntimeError):  # its target is not here
                continue
            place = f"{path}/{name}" if path else name
            identity = h5py.h5o.get_info(item.id)
            if (identity.fileno, identity.addr) in seen:
                continue
            seen.add((identity.fileno, identity.addr))
            if isinstance(item, h5py.Dataset):
                found[place] = item
            elif isinstance(item, h5py.Group) and depth < MAX_DEPTH:
                waiting.append((place, item, depth + 1))
    return found


def _is_image(dataset: Any) -> bool:
    return (
        dataset.dtype.kind in "iufcb"
        and dataset.shape is not None
        and len(dataset.shape) >= 2
        and dataset.size > 0
        and min(dataset.shape[-2:]) >= _SMALLEST
    )


def _signal(file: h5py.File, known: dict[str, h5py.Dataset]) -> str:
    """Return which of the images NeXus marks for plotting, or empty text."""
    from silx.io.nxdata import get_default

    try:
        default = get_default(file, validate=False)
        signal = default.signal if default is not None and default.is_valid else None
    except (KeyError, OSError, RuntimeError, ValueError, TypeError, AttributeError):
        signal = None  # marked badly: as if it were not
    return next((name for name, found in known.items() if signal is not None and found == signal), "")


def _largest(known: dict[str, h5py.Dataset]) -> str:
    """Return the images of most pixels; of equal ones the first that is not constant, as images of motors are."""
    size = max(found.size for found in known.values())
    names = sorted(name for name, found in known.items() if found.size == size)
    return next((name for name in names[:_LOOKED_AT] if _varies(known[name])), names[0])


def _varies(dataset: h5py.Dataset) -> bool:
    filters_present(dataset)
    middle = tuple(size // 2 for size in dataset.shape[:-2])
    sample = dataset[(*middle, slice(_SAMPLE), slice(_SAMPLE))]
    return bool((sample != sample.flat[0]).any())


def _whole(file: h5py.File, name: str, known: dict[str, h5py.Dataset]) -> Images:
    """Join numbered datasets, and find the mask."""
    chosen = known[name]
    parts = [chosen]
    stem, last = name.rpartition("/")[::2]
    if numbered := _NUMBERED.fullmatch(last):
        family = [
            (int(match[2]), found)
            for other, found in known.items()
            if other.rpartition("/")[0] == stem
            and (match := _NUMBERED.fullmatch(other.rpartition("/")[2]))
            and match[1] == numbered[1]
            and found.shape[-2:] == chosen.shape[-2:]
            and found.dtype == chosen.dtype
            and found.ndim > 2
        ]
        if chosen.ndim > 2:
            parts = [found for _, found in sorted(family, key=lambda pair: pair[0])]
    return Images(name, parts, _mask(known, stem, chosen.shape[-2:]))


def _mask(known: dict[str, h5py.Dataset], beside: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    """Return the detector's mask: a dataset ``pixel_mask`` of the images' size, nearest to them; not 0 is masked."""
    names = [
        name for name, found in known.items() if name.rpartition("/")[2] == "pixel_mask" and found.shape == tuple(shape)
    ]
    if not names:
        return None
    nearest = max(names, key=lambda name: name.rpartition("/")[0] == beside)
    result: np.ndarray[Any, Any] = known[nearest][()] != 0
    return result


def _blocks(dataset: h5py.Dataset) -> Iterator[Block]:
    """Yield a dataset in blocks of whole chunks, so that none is read or decompressed twice."""
    import numpy as np

    filters_present(dataset)
    rows, columns = dataset.shape[-2:]
    outer, frames = dataset.shape[:-3], (dataset.shape[-3] if dataset.ndim > 2 else 1)
    step = _step((frames, rows, columns), dataset.chunks and (1, 1, *dataset.chunks)[-3:])
    for number, index in enumerate(np.ndindex(outer)):
        for frame in range(0, frames, step[0]):
            for row in range(0, rows, step[1]):
                for column in range(0, columns, step[2]):
                    inner = (slice(row, row + step[1]), slice(column, column + step[2]))
                    leading = (*index, slice(frame, frame + step[0])) if dataset.ndim > 2 else ()
                    values = np.asarray(dataset[(*leading, *inner)])
                    values = values.reshape((-1, *values.shape[-2:]))
                    if values.dtype.kind == "b":
                        values = values.astype("u1")
                    yield Block(number * frames + frame, row, column, values, np.ones(values.shape, bool))


def _step(shape: tuple[int, int, int], chunks: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Return the size of blocks: chunks joined along columns, then rows, then frames while they stay small."""
    step = [1, 1, 1] if chunks is None else [min(size, chunk) for size, chunk in zip(shape, chunks, strict=True)]
    if math.prod(step) > MAX_CHUNK_VALUES:
        raise InvalidArgument(f"A chunk of {'x'.join(map(str, step))} pixels is too large to be read.")
    for axis in (2, 1, 0):
        room = max(1, BLOCK_VALUES // math.prod(step))
        step[axis] = min(shape[axis], step[axis] * room)
    return step[0], step[1], step[2]


def filters_present(dataset: h5py.Dataset) -> None:
    """Make a dataset's compression readable.

    :raises ConfigurationError: it needs a filter that only the optional package hdf5plugin has.
    :raises InvalidArgument: nobody here knows its compression.
    """
    import h5py

    properties = dataset.id.get_create_plist()
    unknown = _unknown(properties)
    if unknown:
        results.required("hdf5plugin", f"Compression filter {unknown[0]} of {dataset.name!r}")
        if unknown := [code for code in unknown if not h5py.h5z.filter_avail(code)]:
            raise InvalidArgument(f"Compression filter {unknown[0]} of {dataset.name!r} is not known here.")


def _unknown(properties: Any) -> list[int]:
    import h5py

    if properties.get_layout() != h5py.h5d.CHUNKED:
        return []
    codes = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    return [code for code in codes if not h5py.h5z.filter_avail(code)]
