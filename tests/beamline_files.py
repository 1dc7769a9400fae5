"""Files of real beamlines, where they lie beside the repository; they are not part of the product."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "beamline"
_STACK = "sas/nexus-example.hdf5"
_SHAPE = (10, 195, 487)


def beamline_file(name: str) -> Path:
    """Return one of them; where a clone has none beside it, the test is skipped, as nothing can install them."""
    if not FOLDER.is_dir():
        pytest.skip(f"the files of real beamlines are not in {FOLDER}")
    path = FOLDER / name
    assert path.is_file(), f"{path} is missing"
    return path


def copy_image_stack(target: Path) -> Path:
    """Copy a stack of SAXS images with ``entry/data/frames``: a real one, or one like it where there is none."""
    if FOLDER.is_dir():
        return Path(shutil.copyfile(beamline_file(_STACK), target))
    with h5py.File(target, "w") as file:
        y, x = np.indices(_SHAPE[1:])
        rings = 200 * np.exp(-np.hypot(y - 100, x - 240) / 60)
        frames = np.random.default_rng(7).poisson(rings, _SHAPE).astype("i4")
        file.create_dataset("entry/data/frames", data=frames, compression="gzip")
    return target
