"""Statistics and a thumbnail of the images in an HDF5 file, in one pass and in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument
from dm.station.workflows.tools import images, results
from dm.station.workflows.tools.images import Block, Images

if TYPE_CHECKING:
    import numpy as np

THUMBNAIL = 512
MAX_FRAMES_TOLD = 10_000
_WIDE = 20


@dataclass
class Moments:
    """Count, mean, spread, extremes of values that come in parts (Chan, Golub and LeVeque's update)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    minimum: float = field(default=float("inf"))
    maximum: float = field(default=float("-inf"))

    @classmethod
    def of(cls, values: np.ndarray[Any, Any]) -> Moments:
        """Return those of some values: float64, any shape, finite."""
        if not values.size:
            return cls()
        mean = float(values.mean())
        rest = values.ravel() - mean
        return cls(values.size, mean, float(rest @ rest), float(values.min()), float(values.max()))

    def merge(self, other: Moments) -> None:
        """Take in those of more values."""
        if not other.count:
            return
        count, difference = self.count + other.count, other.mean - self.mean
        self.squares += other.squares + difference * difference * self.count * other.count / count
        self.mean += difference * other.count / count
        self.count = count
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def told(self) -> dict[str, Any]:
        """Return them by name; without values only the count. The deviation is the population's."""
        if not self.count:
            return {"count": 0}
        return {
            "count": self.count,
            "mean": self.mean,
            "standardDeviation": (self.squares / self.count) ** 0.5,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "total": self.mean * self.count,
        }


class Thumbnail:
    """The mean of all frames, binned so that its longer side has at most so many pixels."""

    def __init__(self, rows: int, columns: int, pixels: int) -> None:
        import numpy as np

        self.bin = max(1, -(-max(rows, columns) // pixels))
        shape = (-(-rows // self.bin), -(-columns // self.bin))
        self._sums = np.zeros(shape)
        self._counts = np.zeros(shape)

    def add(self, block: Block, values: np.ndarray[Any, Any], whole: bool) -> None:
        """Take in a block. :param values: its values as float64, zero where not valid. :param whole: all are valid."""
        import numpy as np

        frames, height, width = values.shape
        rows, columns = self._edges(block.row, height), self._edges(block.column, width)
        top, left = block.row // self.bin, block.column // self.bin
        place = (slice(top, top + len(rows)), slice(left, left + len(columns)))
        self._sums[place] += self._reduced(values[0] if frames == 1 else values.sum(axis=0), rows, columns)
        if whole:
            self._counts[place] += frames * np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
        else:
            self._counts[place] += self._reduced(block.valid.sum(axis=0, dtype=float), rows, columns)

    def _edges(self, first: int, size: int) -> list[int]:
        return [0, *range(self.bin - first % self.bin, size, self.bin)]

    @staticmethod
    def _reduced(values: np.ndarray[Any, Any], rows: list[int], columns: list[int]) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)

    def mean(self) -> np.ndarray[Any, Any]:
        """Return the image; NaN where no pixel was valid."""
        import numpy as np

        with np.errstate(invalid="ignore"):
            result: np.ndarray[Any, Any] = self._sums / self._counts
        return result

    def draw(self, target: Path, pixels: int) -> None:
        """Write a PNG file: logarithmic where most would vanish on a linear scale, grey where nothing is known."""
        import numpy as np
        from PIL import Image
        from silx.math.colormap import apply_colormap

        mean = self.mean()
        known = mean[np.isfinite(mean)]
        low, high = np.percentile(known, (1, 99.8)) if known.size else (0.0, 1.0)
        if known.size and known.min() >= 0 and high > _WIDE * max(float(np.median(known)), 1e-9):
            mean, low, high = np.log1p(mean), np.log1p(low), np.log1p(high)
        level = np.clip(mean, low, max(high, low + 1e-12))
        drawn = apply_colormap(level, "viridis", vmin=float(low), vmax=float(max(high, low + 1e-12)))
        drawn[~np.isfinite(mean)] = (128, 128, 128, 255)
        scale = max(1, pixels // (2 * max(mean.shape)))
        drawn = drawn.repeat(scale, axis=0).repeat(scale, axis=1)
        with results.replaced(target) as partial:
            Image.fromarray(drawn[..., :3].astype("u1")).save(partial, "PNG")


def run(path: str, output: Path, dataset: str = "", pixels: int = THUMBNAIL, masking: bool = True) -> dict[str, Any]:
    """Write ``<name>.png`` and ``<name>.statistics.json`` of a file's images.

    :param path: HDF5 file. :param output: directory. :param dataset: which images; see :func:`images.find`.
    :param pixels: of the thumbnail's longer side, at most. :param masking: see :meth:`Images.blocks`.
    :returns: what :func:`results.tell` shows: dataset, type, sizes, statistics over all valid pixels.
    :raises InvalidArgument: no HDF5 file, or none with images.
    """
    import h5py

    if not h5py.is_hdf5(path):
        raise InvalidArgument(f"File {path[:200]!r} is not an HDF5 file.")
    with h5py.File(path, "r", locking=False) as file:
        found = images.find(file, dataset)
        overall, frames, thumbnail, left_out = _measured(found, pixels, masking)
        number, rows, columns = found.shape
        told = {
            "dataset": found.name,
            "dataType": str(found.parts[0].dtype),
            "nFrames": number,
            "nRows": rows,
            "nColumns": columns,
            **overall.told(),
            "nMaskedPixels": left_out,
        }
    picture = output / results.named(path, ".png")
    thumbnail.draw(picture, pixels)
    numbers = output / results.named(path, ".statistics.json")
    results.write_json(numbers, {"file": Path(path).name, **told, "binning": thumbnail.bin, "frames": frames})
    return {**told, "picture": picture.name, "statistics": numbers.name}


def _measured(found: Images, pixels: int, masking: bool) -> tuple[Moments, list[dict[str, Any]], Thumbnail, int]:
    """Return moments of all pixels and of each frame (of the first ones), the thumbnail, and the pixels left out."""
    import numpy as np

    number, rows, columns = found.shape
    overall, thumbnail, left_out = Moments(), Thumbnail(rows, columns, pixels), 0
    frames = [Moments() for _ in range(min(number, MAX_FRAMES_TOLD))]
    for block in found.blocks(masking):
        whole = bool(block.valid.all())
        values = (block.values if whole else np.where(block.valid, block.values, 0)).astype(float)
        left_out += 0 if whole else block.valid.size - int(block.valid.sum())
        thumbnail.add(block, values, whole)
        for place, frame in enumerate(values, block.frame):
            part = Moments.of(frame if whole else frame[block.valid[place - block.frame]])
            overall.merge(part)
            if place < len(frames):
                frames[place].merge(part)
    return overall, [moments.told() for moments in frames], thumbnail, left_out
